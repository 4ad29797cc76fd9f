"""The inference plane: rows in, named tensors out. It doesn't know what they mean, or who asks."""
