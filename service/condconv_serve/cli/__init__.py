"""The command `condconv`: arguments -> one call. One module per group of commands."""

from condconv_serve.cli.app import app, main

__all__ = ["app", "main"]
