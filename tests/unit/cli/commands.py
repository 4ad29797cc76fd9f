"""Commands as tests run them: here, or in a process of their own."""

import os
import subprocess
import sys

from typer.testing import CliRunner

from condconv_serve.cli import app

MODEL = "efficientnet-lite0-condconv-4e"


def condconv(*arguments):
    """Run the command here; returns exit code, standard output, standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def in_own_process(*command, **environment):
    """Run Python in a process of its own, with the environment that a user has."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONDCONV_", "TF_"))}
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=kept | environment, timeout=120
    )
