import json

from typer.testing import CliRunner

from service.cli import app
from tests.pictures import jpeg, photo

MODEL = "efficientnet-lite0-condconv-4e"
run = CliRunner().invoke


def test_predict_answers_the_good_and_names_the_bad(tmp_path):
    (tmp_path / "coffee.jpg").write_bytes(jpeg(photo("coffee")))
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    result = run(app, ["predict", str(tmp_path), "--top-k", "2", "--json"])
    assert result.exit_code == 1
    bad, good = json.loads(result.stdout)["predictions"]
    assert bad["error"]["slug"] == "unsupported_image"
    assert good["classes"][0]["label"] == "espresso"
    assert len(good["classes"]) == 2


def test_routing_plots(tmp_path):
    (tmp_path / "coffee.jpg").write_bytes(jpeg(photo("coffee")))
    target = tmp_path / "routing.png"
    result = run(app, ["routing", str(tmp_path / "*.jpg"), "--plot", str(target)])
    assert result.exit_code == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    assert "block_15" in result.stdout


def test_wrong_usage_and_missing_files():
    assert run(app, ["predict", "x.jpg", "--top-k", "0"]).exit_code == 2
    assert run(app, ["predict", "/nowhere/at/all.jpg"]).exit_code == 1
    assert run(app, ["routing", "x.jpg", "--plot", "x.txt"]).exit_code == 1


def test_models():
    assert MODEL in run(app, ["models", "list"]).stdout
    assert json.loads(run(app, ["models", "show", MODEL, "--json"]).stdout)["num_classes"] == 1000
    assert run(app, ["models", "verify", MODEL]).exit_code == 0
    assert run(app, ["models", "verify", "unknown"]).exit_code == 1
