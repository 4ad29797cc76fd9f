"""The native kernels: compiled from `csrc`, loaded where the library is there, and called with banks and programs."""
