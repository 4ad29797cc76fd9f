"""The command `condconv`, and `python -m condconv_serve`."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; see `condconv_serve.cli.main`."""
    try:
        from condconv_serve.cli import main as run
    except KeyboardInterrupt:  # importing takes a second, in which somebody may change their mind
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
