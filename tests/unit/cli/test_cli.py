"""What commands refuse before anything is loaded, what they say of themselves, and `condconv serve`."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from condconv_serve import __version__, bootstrap, serve
from condconv_serve.cli import app
from condconv_serve.errors import ConfigurationError
from condconv_serve.offline import profile, verify
from tests.unit.cli.commands import MODEL, condconv, in_own_process


@pytest.fixture(autouse=True)
def _environment(shipped_store):
    pass


@pytest.fixture
def _nothing_loaded(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a model was loaded, though the command could have failed before")

    for module in (bootstrap, profile, verify):
        monkeypatch.setattr(module, "load_model", fail)


def test_nothing_but_computing_needs_tensorflow():
    result = in_own_process(
        "-c",
        "import sys, condconv_serve.fronts.native, condconv_serve.bootstrap, condconv_serve.cli\n"
        "import condconv_serve.offline.load\n"
        "print([name for name in ('tensorflow', 'keras', 'openvino', 'matplotlib') if name in sys.modules])",
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "[]\n", "")


def test_a_wrong_setting_in_a_process_of_its_own():
    result = in_own_process("-m", "condconv_serve", "models", "list", CONDCONV_PORT="http", CONDCONV_STREAMS="0")
    assert (result.returncode, result.stdout) == (2, "")
    port, *streams = result.stderr.splitlines()
    assert port.startswith("error: CONDCONV_PORT: ")
    assert port.endswith(", not 'http'")
    assert all(line.startswith("error: CONDCONV_STREAMS: ") for line in streams)
    assert streams


@pytest.mark.usefixtures("_nothing_loaded")
class TestRefusals:
    @pytest.mark.parametrize("command", ["predict", "routing"])
    @pytest.mark.parametrize(
        ("argument", "says"),
        [
            ("absent.jpg", "there is no such file or folder"),
            ("*.gif", "no file matches this pattern, and none has this name"),
            ("[x].jpg", "no file matches this pattern, and none has this name"),
        ],
    )
    def test_no_such_file(self, command, argument, says, photos):
        code, out, err = condconv(command, photos / "coffee.jpg", photos / argument)
        assert (code, out) == (1, "")
        assert err == f"error: {photos / argument}: {says}.\n"

    @pytest.mark.parametrize("top_k", ["0", "-1", "five"])
    def test_impossible_top_k(self, top_k, photos):
        code, out, err = condconv("predict", photos / "coffee.jpg", "--top-k", top_k)
        assert (code, out) == (2, "")
        assert "--top-k" in err

    def test_no_image(self):
        code, _, err = condconv("predict")
        assert code == 2
        assert "IMAGE" in err

    def test_an_unknown_model(self, photos):
        code, out, err = condconv("predict", photos / "coffee.jpg", "--model", "resnet")
        assert (code, out) == (1, "")
        assert err == f"error: There is no model 'resnet' in the store; there are: {MODEL}.\n"

    @pytest.mark.parametrize(
        ("plot", "says"), [("plot.txt", "a plot is written as"), ("no/plot.png", "there is no directory")]
    )
    def test_impossible_plots(self, plot, says, photos, tmp_path):
        code, out, err = condconv("routing", photos / "coffee.jpg", "--plot", tmp_path / plot)
        assert (code, out) == (1, "")
        assert says in err

    @pytest.mark.tensorflow  # which device there is, it says
    def test_an_impossible_device(self, photos, monkeypatch):
        monkeypatch.setenv("CONDCONV_DEVICE", "tpu")
        code, out, err = condconv("predict", photos / "coffee.jpg")
        assert (code, out) == (1, "")
        assert "There is no device 'tpu' here" in err

    def test_a_default_model_that_is_not_there(self, photos, monkeypatch):
        monkeypatch.setenv("CONDCONV_DEFAULT_MODEL", "b0[/x]")
        code, _, err = condconv("predict", photos / "coffee.jpg")
        assert code == 1
        assert err.startswith("error: The default model 'b0[/x]' is not in the store")

    @pytest.mark.parametrize(
        "arguments",
        [
            ["predict", "coffee.jpg"],
            ["routing", "coffee.jpg"],
            pytest.param(["models", "verify"], marks=pytest.mark.tensorflow),
        ],
    )
    def test_an_empty_store(self, arguments, photos, tmp_path, monkeypatch):
        monkeypatch.chdir(photos)
        code, out, err = condconv(*arguments, "--model-store", tmp_path)
        assert (code, out) == (1, "")
        assert "no bundle" in err

    @pytest.mark.parametrize("arguments", [["predict", "coffee.jpg"], ["models", "list"], ["models", "verify"]])
    def test_no_store(self, arguments, photos, tmp_path, monkeypatch):
        monkeypatch.chdir(photos)
        code, out, err = condconv(*arguments, "--model-store", tmp_path / "absent")
        assert (code, out) == (1, "")
        assert err == f"error: The model store {tmp_path / 'absent'} is no directory.\n"


class TestServe:
    @pytest.fixture
    def served(self, monkeypatch):
        """The settings that a server would have got."""
        calls = []
        monkeypatch.setattr(serve, "serve", calls.append)
        yield calls
        logging.getLogger("condconv_serve").setLevel(logging.NOTSET)

    def test_options_come_before_the_environment(self, served, tmp_path, monkeypatch):
        monkeypatch.setenv("CONDCONV_PORT", "9000")
        monkeypatch.setenv("CONDCONV_HOST", "::1")
        monkeypatch.setenv("CONDCONV_LOG_LEVEL", "warning")
        assert condconv("serve", "--port", 9001, "--model-store", tmp_path)[0] == 0
        (settings,) = served
        assert (settings.port, settings.host, settings.model_store) == (9001, "::1", tmp_path)
        assert logging.getLogger("condconv_serve").level == logging.WARNING

    @pytest.mark.parametrize("port", ["65536", "-1", "http"])
    def test_impossible_ports(self, port, served):
        code, _, err = condconv("serve", "--port", port)
        assert code == 2
        assert "--port" in err
        assert served == []

    @pytest.mark.usefixtures("served")
    def test_what_cannot_be_served(self, monkeypatch):
        def fail(_):
            raise ConfigurationError("Can't listen on 127.0.0.1:80: Permission denied.")

        monkeypatch.setattr(serve, "serve", fail)
        assert condconv("serve") == (1, "", "error: Can't listen on 127.0.0.1:80: Permission denied.\n")


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ("serve", "condconv serve --port 9000"),
        ("predict", "condconv predict photo.jpg 'holiday/*.png' --top-k 3"),
        ("routing", "condconv routing photo.jpg --plot routing.png"),
        ("models show", f"condconv models show {MODEL}"),
        ("models verify", "condconv models verify"),
        ("models import", "condconv models import efficientnet-condconv-b0-8e.tar.gz"),
        ("models pull", "condconv models pull efficientnet-condconv-b0-8e"),
        ("models catalogue", "condconv models catalogue --json"),
    ],
)
def test_help_shows_an_example(command, example):
    for option in ("--help", "-h"):
        code, out, err = condconv(*command.split(), option)
        assert (code, err) == (0, "")
        assert f"Example: {example}" in " ".join(out.split())


def commands(group, *before):
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *before, name)
    yield before


@pytest.mark.parametrize("command", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_command_has_help(command):
    code, out, err = condconv(*command, "--help")
    assert (code, err) == (0, "")
    assert out.split()[0] == "Usage:"


@pytest.mark.parametrize("arguments", [[], ["models"]])
def test_without_a_command_there_is_help(arguments):
    code, out, err = condconv(*arguments)
    assert code == 2
    assert "Usage: " in out + err
    assert "list" in out + err or "predict" in out + err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_help_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "condconv_serve", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert (result.returncode, result.stderr) == (1, "error: No space left on device: standard output\n")


def test_version():
    assert condconv("--version") == (0, f"condconv-serve {__version__}\n", "")


def test_wrong_settings_name_their_variable(monkeypatch):
    monkeypatch.setenv("CONDCONV_MAX_QUEUE_ROWS", "[bold]many[/x]")
    code, out, err = condconv("models", "list")
    assert (code, out) == (2, "")
    assert err.startswith("error: CONDCONV_MAX_QUEUE_ROWS: ")
    assert err.endswith(", not '[bold]many[/x]'\n")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("STREAMS", "none", "Input should be a valid integer, unable to parse string as an integer or 'auto'"),
        ("STREAMS", "0", "Input should be greater than or equal to 1 or 'auto'"),
        ("MAX_BATCH_SIZE", "5000", "Input should be less than or equal to 1024 or 'auto'"),
    ],
)
def test_a_setting_of_two_kinds_is_refused_in_one_line(name, value, wanted, monkeypatch):
    monkeypatch.setenv(f"CONDCONV_{name}", value)
    assert condconv("models", "list") == (2, "", f"error: CONDCONV_{name}: {wanted}, not {value!r}\n")
