import numpy as np
import pytest

from condconv_serve.errors import ConfigurationError, DataSetError
from condconv_serve.training.checkpoint import RunDirectory

pytestmark = pytest.mark.tensorflow

OPTIONS = {"epochs": 3, "teacher": None}


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path, "flowers", "1")


def interrupt(run, options=OPTIONS):
    with pytest.raises(KeyboardInterrupt), run.claimed(options, resume=False):  # noqa: PT012
        run.save({"weights/0": np.arange(3, dtype=np.float32), "count": np.array(7)}, {"best": 2})
        raise KeyboardInterrupt


def test_a_finished_run_leaves_nothing(run, tmp_path):
    with run.claimed(OPTIONS, resume=False):
        (run.path / "training").mkdir()
        (run.path / "training" / "rows.npy").touch()
        assert run.load() is None
        run.save({}, {})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_is_resumed(run, tmp_path):
    interrupt(run)
    assert [child.name.startswith(".") for child in tmp_path.iterdir()] == [True], "hidden from readers of the store"
    with run.claimed(OPTIONS, resume=True):
        tensors, figures = run.load()
        assert tensors["weights/0"].tolist() == [0, 1, 2]
        assert (tensors["count"].shape, int(tensors["count"])) == ((), 7)
        assert figures == {"best": 2}


def test_an_interrupted_run_is_not_lost_by_accident(run):
    interrupt(run)
    with (
        pytest.raises(ConfigurationError, match="unfinished run of flowers/1: continue it with --resume"),
        run.claimed(OPTIONS, resume=False),
    ):
        pass
    assert run.load() is not None


def test_an_interrupted_run_is_forgotten_on_demand(run):
    interrupt(run)
    with run.claimed({"epochs": 9}, resume=False, restart=True):
        assert run.load() is None


def test_only_the_same_run_is_resumed(run):
    interrupt(run)
    with (
        pytest.raises(ConfigurationError, match=r"these things differ now: epochs \(was 3, is 4\)"),
        run.claimed(OPTIONS | {"epochs": 4}, resume=True),
    ):
        pass
    assert run.load() is not None


def test_nothing_to_resume_is_a_new_run(run):
    with run.claimed(OPTIONS, resume=True):
        assert run.load() is None


def test_a_run_that_could_not_begin_leaves_nothing(run, tmp_path):
    with pytest.raises(DataSetError), run.claimed(OPTIONS, resume=False):
        raise DataSetError("no images")
    assert not (run.path / "options.json").exists()
    with run.claimed(OPTIONS, resume=False):
        pass


def test_one_process_at_a_time(run, tmp_path):
    with run.claimed(OPTIONS, resume=False):
        with (
            pytest.raises(ConfigurationError, match="Another process is training flowers/1"),
            RunDirectory(tmp_path, "flowers", "1").claimed(OPTIONS, resume=True),
        ):
            pass
        assert (run.path / "options.json").exists()


def test_a_damaged_state(run):
    interrupt(run)
    (run.path / "state.safetensors").write_bytes(b"damaged")
    with (
        run.claimed(OPTIONS, resume=True),
        pytest.raises(ConfigurationError, match="can't be read; forget it with --restart"),
    ):
        run.load()


def test_the_state_before_stays_until_the_new_one_is_complete(run, monkeypatch):
    interrupt(run)

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("condconv_serve.training.checkpoint.save_tensors", full)
    with pytest.raises(OSError, match="no space left"):
        run.save({"weights/0": np.zeros(9)}, {})
    assert run.load()[1] == {"best": 2}
