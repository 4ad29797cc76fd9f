"""A version that is too large for the server's memory, in a real control group with a limit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from condconv_serve.domain.manifest import PreprocessingSpec
from condconv_serve.store import NewBundle, open_bundle, read_labels, write_bundle
from tests import pictures
from tests.e2e.server import BUNDLE, MODEL, Server, assert_problem, command, environment, wait_for
from tests.unit.machine.processes import group_within_a_limited_one

LIMIT = 600 * 2**20


@pytest.fixture
def store(tmp_path: Path) -> Path:
    shutil.copytree(BUNDLE, tmp_path / "store" / MODEL / "1")
    return tmp_path / "store"


def write_large(store: Path) -> None:
    """A second version with 20 million weights.

    TensorFlow's own operations would need a gigabyte for it. The stand-in that the server loads first needs next to
    nothing, which corrects the estimate as far as it goes.
    """
    bundle = open_bundle(BUNDLE)
    write_bundle(
        store,
        NewBundle(
            name=MODEL,
            version="2",
            architecture={"name": MODEL},
            preprocessing=PreprocessingSpec(transform="pillow", image_size=224, mean=(127,) * 3, std=(128,) * 3),
            weights={"a": np.zeros(20_000_000, np.float16)},
            labels=read_labels(bundle),
            provenance=bundle.manifest.provenance,
            licence="MIT",
            model_card="# Large\n",
        ),
    )


def test_a_version_that_does_not_fit_is_refused_and_serving_goes_on(store: Path) -> None:
    photo = pictures.jpeg(pictures.photo("coffee", (60, 40)))
    with group_within_a_limited_one(LIMIT) as group, Server(model_store=store, native="off") as server:
        for process in server.processes():
            (group / "cgroup.procs").write_text(str(process))
        write_large(store)

        def second() -> dict[str, str]:
            versions = server.client.get(f"/models/{MODEL}").json()["all_versions"]
            return next((version for version in versions if version["version"] == "2"), {})

        wait_for(lambda: second().get("state") == "failed")
        says = f"{MODEL}/2 needs about 802 MB of memory to load, but the memory limit leaves "
        assert says in second()["reason"]
        assert int(second()["reason"].removeprefix(says).removesuffix(" MB.")) <= LIMIT / 1e6
        loading = server.client.post(f"/models/{MODEL}/versions/2/load")
        assert_problem(loading, 503, "too_little_memory", "needs about 802 MB")
        assert int(loading.headers["Retry-After"]) == 30
        answer = server.client.post("/predict", content=photo)
        assert answer.json()["model"] == {"name": MODEL, "version": "1"}


def test_a_server_whose_only_model_does_not_fit_says_so_and_ends(store: Path) -> None:
    shutil.rmtree(store / MODEL / "1")
    write_large(store)
    enter = 'echo $$ > "$0"; exec "$@"'
    with group_within_a_limited_one(LIMIT) as group:
        said = subprocess.run(
            ["sh", "-c", enter, group / "cgroup.procs", *command("--port", "0", real=False)],
            env=environment(model_store=store, engine="tensorflow", native="off"),
            capture_output=True,
            text=True,
            check=False,
        )
    assert said.returncode == 1
    assert f"{MODEL}/2 needs about 1180 MB of memory to load, but the memory limit leaves" in said.stderr
    assert "Traceback" not in said.stderr
