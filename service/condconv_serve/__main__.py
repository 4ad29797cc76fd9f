"""`python -m condconv_serve` is the command `condconv`."""

from condconv_serve.cli import main

main()
