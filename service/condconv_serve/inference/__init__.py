"""The inference plane: rows in, named tensors out, whatever they mean and whoever asks."""
