"""What is done with models and files without a server."""
