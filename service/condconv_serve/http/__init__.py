"""Sockets and HTTP/1.1 for any front: the server, the guard of its connections, and the middleware."""
