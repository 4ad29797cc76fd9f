"""Where weights may lie, and what is said of those that are of another network."""

import gzip
import sys
import tarfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from condconv_serve.errors import ImportFailed
from condconv_serve.nn import build_network
from condconv_serve.store.importers import import_weights, read_source
from tests.contract.narrow_family import CONDCONV, LITE_CONDCONV
from tests.parity.golden_models import write_archive, write_checkpoint
from tests.unit.store.importers.naming import official_tensors, timm_tensors
from tests.unit.store.samples import of_float8

pytestmark = pytest.mark.tensorflow

ARCHITECTURE = LITE_CONDCONV


@pytest.fixture(scope="module")
def network(narrow_family, randomise):
    return randomise(build_network(ARCHITECTURE.changed(num_classes=3)))


@pytest.fixture(scope="module")
def tensors(network):
    return official_tensors(network)


@pytest.fixture(scope="module")
def checkpoint(tensors, tmp_path_factory):
    return write_checkpoint(tensors, tmp_path_factory.mktemp("checkpoint") / "b0" / "model.ckpt")


def assert_read(source, tensors):
    read = read_source(source)
    assert read.naming == "official"
    assert read.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(read.tensors[name], value, name)


def assert_same(imported, network):
    assert imported.weights.keys() == {variable.path for variable in network.weights}
    for variable in network.weights:
        np.testing.assert_array_equal(imported.weights[variable.path], np.array(variable), variable.path)
    assert imported.architecture.num_classes == network.output["logits"].shape[-1]


@pytest.mark.parametrize(
    "source",
    [
        lambda prefix: prefix,
        lambda prefix: prefix.with_name("model.ckpt.index"),
        lambda prefix: prefix.parent,
        lambda prefix: prefix.parent.parent,
        write_archive,
        lambda prefix: write_archive(prefix).rename(prefix.parent.parent / "b0.tgz"),
    ],
    ids=["prefix", "index", "directory", "directory above", "tar.gz", "tgz"],
)
def test_checkpoints(source, checkpoint, tensors):
    assert_read(source(checkpoint), tensors)


def test_state_dicts(network, tmp_path):
    save_file(timm_tensors(network), tmp_path / "w.safetensors")
    imported = import_weights(tmp_path / "w.safetensors", ARCHITECTURE)
    assert imported.source.naming == "timm"
    assert_same(imported, network)


def test_state_dicts_of_parallel_training(network, tmp_path):
    tensors = {f"module.{name}": value for name, value in timm_tensors(network).items()}
    save_file(tensors, tmp_path / "w.safetensors")
    assert_same(import_weights(tmp_path / "w.safetensors", ARCHITECTURE), network)
    save_file(tensors | timm_tensors(network), tmp_path / "w.safetensors")
    with pytest.raises(ImportFailed, match=r"left over: module\.blocks"):
        import_weights(tmp_path / "w.safetensors", ARCHITECTURE)


def variants(tensors):
    """The same weights under the names that other versions of TensorFlow would give."""

    def renamed(*pairs):
        names = {}
        for name, value in tensors.items():
            for old, new in pairs:
                name = name.replace(old, new)
            names[name] = value
        return names

    def renumbered(name):
        scope, part, layer, leaf = name.split("/")
        kind, _, number = layer.rpartition("_")
        if not number.isdecimal():
            kind, number = layer, "0"
        return f"{scope}/{part}/{kind}_{int(number) + 40}/{leaf}"

    return {
        "with model/": renamed(("narrow/", "narrow/model/")),
        "without tpu_": renamed(("tpu_batch_normalization", "batch_normalization")),
        "without a scope": renamed(("narrow/", "")),
        "numbered onward": {renumbered(name): value for name, value in tensors.items()},
        "averaged": {f"{name}/ExponentialMovingAverage": value for name, value in tensors.items()}
        | {name: value + 1 for name, value in tensors.items()},
        "with an optimiser's state": tensors
        | {f"{name}/RMSProp_1": value for name, value in tensors.items()}
        | {"global_step": np.int64(9)},
    }


@pytest.mark.parametrize(
    "variant",
    ["with model/", "without tpu_", "without a scope", "numbered onward", "averaged", "with an optimiser's state"],
)
def test_variants_of_names(variant, tensors, network, tmp_path):
    prefix = write_checkpoint(variants(tensors)[variant], tmp_path / "model.ckpt")
    assert_same(import_weights(prefix, ARCHITECTURE), network)


def test_several_checkpoints(checkpoint, tensors, tmp_path):
    for step in (1, 2):
        write_checkpoint(tensors, tmp_path / f"model.ckpt-{step}")
    (tmp_path / "._model.ckpt-1.index").write_bytes(b"what Macs put beside it")
    with pytest.raises(
        ImportFailed, match=r"holds 2 checkpoints \(model\.ckpt-1, model\.ckpt-2\); name one by its prefix"
    ):
        read_source(tmp_path)
    assert read_source(tmp_path / "model.ckpt-2").naming == "official"


def test_a_directory_of_the_same_name_does_not_lead_elsewhere(tensors, tmp_path):
    (tmp_path / "own").mkdir()
    prefix = write_checkpoint(tensors, tmp_path / "own" / "model.ckpt")
    other = write_checkpoint({name: value + 1 for name, value in tensors.items()}, tmp_path / "other.ckpt")
    prefix.mkdir()
    (prefix / "checkpoint").write_text(f'model_checkpoint_path: "{other}"\n')
    for source in (prefix.with_name("model.ckpt.index"), tmp_path / "own"):
        read = read_source(source).tensors
        assert all((read[name] == value).all() for name, value in tensors.items())
    prefix.with_name("model.ckpt.index").write_bytes(b"junk")
    with pytest.raises(ImportFailed, match=r"^model\.ckpt is no readable TensorFlow checkpoint"):
        read_source(tmp_path / "own")


def packed(directory, change):
    archive = directory / "w.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        change(tar, directory)
    return archive


def empty(tar, directory):
    (directory / "readme").write_text("nothing else")
    tar.add(directory / "readme", arcname="readme")


def leading_out(tar, directory):
    (directory / "evil").write_text("evil")
    tar.add(directory / "evil", arcname="../../evil")


def link(tar, directory):
    (directory / "model.ckpt.index").symlink_to("/etc/passwd")
    tar.add(directory / "model.ckpt.index", arcname="model.ckpt.index")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (empty, "w.tar.gz holds no TensorFlow checkpoint"),
        (leading_out, "may lead out"),
        (link, "neither a file nor a directory"),
    ],
)
def test_odd_archives(change, says, tmp_path):
    with pytest.raises(ImportFailed, match=says) as caught:
        read_source(packed(tmp_path, change))
    assert "/tmp" not in str(caught.value)
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("name", ["w.tar.gz", "w.safetensors", "w.keras", "w.h5", "w.ckpt.index"])
@pytest.mark.parametrize("data", [b"", b"garbage" * 100, gzip.compress(b"garbage", mtime=0), of_float8()])
def test_garbage_of_any_name(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImportFailed, match=r"^w") as caught:
        read_source(tmp_path / name)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", ["w.tar.gz", "w.safetensors", "w.pth", "w.keras", "w.weights.h5", "w.ckpt", "w"])
def test_what_is_not_there(name, tmp_path):
    with pytest.raises(ImportFailed, match=r"^w") as caught:
        read_source(tmp_path / name)
    assert str(tmp_path) not in str(caught.value)


def test_pytorch_files_without_pytorch(monkeypatch, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"never looked at")
    monkeypatch.setitem(sys.modules, "torch", None)  # what an import of it then finds
    with pytest.raises(ImportFailed, match=r"PyTorch is needed to read w\.pth: pip install 'condconv-serve\[torch\]'"):
        read_source(tmp_path / "w.pth")


@pytest.mark.parametrize("cut", ["model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_truncated_checkpoints(cut, tensors, tmp_path):
    prefix = write_checkpoint(tensors, tmp_path / "model.ckpt")
    file = tmp_path / cut
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ImportFailed, match=r"^model\.ckpt is no readable TensorFlow checkpoint") as caught:
        read_source(prefix)
    assert str(tmp_path) not in str(caught.value)


def test_the_right_architecture_is_named(narrow_family, tmp_path):
    save_file(timm_tensors(build_network(CONDCONV.changed(num_experts=5))), tmp_path / "w.safetensors")
    with pytest.raises(ImportFailed) as caught:
        import_weights(tmp_path / "w.safetensors", ARCHITECTURE)
    assert " By their shapes they look like --architecture narrow-condconv-4e --experts 5." in str(caught.value)


def test_no_hint_where_nothing_fits(network, tmp_path):
    state = timm_tensors(network)
    state["conv_stem.weight"] = np.zeros((7, 3, 3, 3), np.float32)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ImportFailed) as caught:
        import_weights(tmp_path / "w.safetensors", ARCHITECTURE)
    assert "misshaped: conv_stem.weight is [3, 3, 3, 7], but stem/kernel is [3, 3, 3, 8]" in str(caught.value)
    assert "By their shapes" not in str(caught.value)


@pytest.mark.parametrize("asked", [None, 3])
def test_classes_are_counted(asked, network, tmp_path):
    save_file(timm_tensors(network), tmp_path / "w.safetensors")
    assert_same(
        import_weights(tmp_path / "w.safetensors", ARCHITECTURE, given={} if asked is None else {"num_classes": asked}),
        network,
    )
    with pytest.raises(ImportFailed, match=r"misshaped: classifier\.bias is \[3\], but logits/bias is \[4\]"):
        import_weights(tmp_path / "w.safetensors", ARCHITECTURE, given={"num_classes": 4})


def test_kernel_and_bias_that_disagree(network, tmp_path):
    state = timm_tensors(network)
    state["classifier.bias"] = np.zeros(5, np.float32)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        ImportFailed, match=r"misshaped: classifier\.weight is \[\d+, 3\], but logits/kernel is \[\d+, 5\]"
    ):
        import_weights(tmp_path / "w.safetensors", ARCHITECTURE)


def test_variances_below_0(network, tmp_path):
    tensors = {name: np.ascontiguousarray(value) for name, value in timm_tensors(network).items()}
    save_file(tensors | {"bn1.running_var": np.zeros_like(tensors["bn1.running_var"])}, tmp_path / "w.safetensors")
    import_weights(tmp_path / "w.safetensors", ARCHITECTURE)  # 0 is one: of a channel that never varies
    save_file(tensors | {"bn1.running_var": -tensors["bn1.running_var"]}, tmp_path / "w.safetensors")
    with pytest.raises(ImportFailed, match=r"^w\.safetensors is damaged.*below 0, such as stem_norm/moving_variance"):
        import_weights(tmp_path / "w.safetensors", ARCHITECTURE)
