"""Sockets and HTTP/1.1: the server's life, the guard of its connections, what happens around every request."""
