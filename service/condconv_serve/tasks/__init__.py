"""What a network's named tensors mean: each task turns the tensors of one row into an answer. NumPy only."""
