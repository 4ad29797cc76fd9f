"""`python -m service` is the command `condconv`."""

from service.cli import main

main()
