import subprocess
import sys

from condconv_serve.store.scratch import scratch_directory

HOLD = """
import sys, time
from pathlib import Path
from condconv_serve.store.scratch import scratch_directory
with scratch_directory(Path(sys.argv[1])) as scratch:
    (scratch / "half").write_text("half")
    print("written", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_nothing_for_long(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == b"written\n"
            (theirs,) = tmp_path.iterdir()
            with scratch_directory(tmp_path) as ours:
                assert theirs.is_dir(), "who still writes is left alone"
        finally:
            writer.kill()
    assert (theirs / "half").exists()
    with scratch_directory(tmp_path) as ours:
        assert list(tmp_path.iterdir()) == [ours]
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_scratch_directory_stays(tmp_path):
    (tmp_path / ".writing-1").mkdir()
    (tmp_path / ".writing-2").write_text("")
    (tmp_path / "model").mkdir()
    with scratch_directory(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writing-1", ".writing-2", "model"]
