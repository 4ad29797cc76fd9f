"""What the commands make of variables that nobody reads, or that mean something else."""

import pytest
from typer.testing import CliRunner

from condconv_serve import serve
from condconv_serve.cli import app
from condconv_serve.settings import unknown_variables


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a command with variables; returns exit code and standard error. A server that starts is an error."""

    def started(_):
        raise AssertionError("a server was started")

    monkeypatch.setattr(serve, "serve", started)
    monkeypatch.setenv("CONDCONV_MODEL_STORE", str(tmp_path))

    def invoke(*command, **environment):
        result = CliRunner().invoke(app, command, env=environment)
        assert result.stdout == ""
        return result.exit_code, result.stderr

    assert list(unknown_variables()) == []
    return invoke


@pytest.mark.parametrize("command", [["serve"], ["models", "list"], ["predict", "photo.jpg"]])
def test_an_unknown_variable_ends_the_command(command, run):
    """One letter short, it would have left a server open to everybody."""
    says = "error: CONDCONV_API_KEY_FILE: there is no such setting. Did you mean CONDCONV_API_KEYS_FILE?\n"
    assert run(*command, CONDCONV_API_KEY_FILE="/run/keys.json") == (2, says)


def test_all_that_is_wrong_is_named_at_once(run):
    code, err = run("serve", CONDCONV_PRT="1", CONDCONV_ZZZ="s3cret", CONDCONV_PORT="http")
    unknown, other, wrong = err.splitlines()
    assert code == 2
    assert unknown == "error: CONDCONV_PRT: there is no such setting. Did you mean CONDCONV_PORT?"
    assert other == "error: CONDCONV_ZZZ: there is no such setting.", "its value may be a secret"
    assert wrong.startswith("error: CONDCONV_PORT: Input should be a valid integer")


def test_what_kubernetes_sets_for_a_service_of_the_same_name(run):
    code, err = run("serve", CONDCONV_PORT="tcp://10.0.0.1:80", CONDCONV_SERVICE_HOST="10.0.0.1")
    wrong, advice = err.splitlines()
    assert code == 2
    assert wrong.startswith("error: CONDCONV_PORT: ")
    assert advice.endswith("set enableServiceLinks: false in the pod's spec.")
