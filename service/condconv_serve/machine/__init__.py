"""This process on its machine: cores, memory, threads. Knows no TensorFlow."""
