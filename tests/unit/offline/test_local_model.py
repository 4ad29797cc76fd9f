"""The library's model, with a network that is a stand-in: what it takes, what it gives, and how it ends."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import copy
import gc
import io
import os
import pickle
import shutil
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from condconv_serve import draw_objects
from condconv_serve.drawing.colours import colour_of
from condconv_serve.errors import InvalidParameter, MissingImage, ServiceError, UnsupportedImage
from condconv_serve.inputs import given, picture_of
from condconv_serve.offline.model import Model
from condconv_serve.results import ImageDetections, ImageFeatures, ImagePrediction, ImageRouting
from condconv_serve.settings import Settings
from tests.contract.fake_server import load_fake
from tests.contract.fakes import FunctionEngine
from tests.e2e.server import wait_for
from tests.e2e.tiny_models import write_colour_detector, write_fake
from tests.pictures import jpeg, oriented, photo, png

pytestmark = pytest.mark.usefixtures("without_openvino")
ROOT = Path(__file__).parents[3]
COFFEE, CAT = photo("coffee", (80, 60)), photo("cat", (80, 60))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_fake(tmp_path_factory.mktemp("store"), "fake", 3)


@pytest.fixture
def make_model(bundle, monkeypatch):
    """Makes models, whose engines may compute before they answer, and closes them."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CONDCONV_{name.upper()}", raising=False)
    with contextlib.ExitStack() as opened:

        def make(before=None, *, loaded=lambda model: None, **options):
            def load(*given, **others):
                model = load_fake(*given, **others)
                engine = model.engine
                if before is not None:

                    def compute(rows, stream):
                        before()
                        return engine(rows, stream)

                    model = replace(model, engine=FunctionEngine(compute))
                loaded(model)
                return model

            settings = Settings(
                **{"native": "off", "engine": "tensorflow", "streams": 1, "max_batch_size": 2} | options
            )
            return opened.enter_context(Model(bundle, settings, load=load))

        yield make


@pytest.fixture(scope="module")
def model(bundle):
    """One for all tests that leave it as it was."""
    settings = Settings(native="off", engine="tensorflow", streams=2, max_batch_size=4)
    with Model(bundle, settings, load=load_fake) as made:
        yield made


@pytest.fixture(scope="module")
def exact_model(bundle):
    """One whose rows aren't rounded, and overshoot the scale of levels."""

    def load(*given, **options):
        model = load_fake(*given, **options)
        exact = replace(model.info.preprocessing, transform="official", exact_decoding=True)
        return replace(model, info=replace(model.info, preprocessing=exact))

    with Model(bundle, Settings(native="off", engine="tensorflow", streams=1), load=load) as made:
        yield made


@pytest.fixture
def photos(tmp_path):
    """Twelve photos, in the order of their names, and what is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.png").write_bytes(png(np.roll(COFFEE, 7 * number, axis=1)))
    (folder / "notes.txt").write_text("no image")
    return folder


def routing_of(results):
    return np.stack([result.routing.weights for result in results])


class TestForms:
    @pytest.mark.parametrize(
        ("form", "filename"),
        [
            (lambda file: str(file), True),
            (lambda file: file, True),
            (lambda file: file.read_bytes(), False),
            (lambda file: bytearray(file.read_bytes()), False),
            (lambda file: memoryview(file.read_bytes()), False),
            (lambda file: io.BytesIO(file.read_bytes()), False),
            (lambda file: Image.open(io.BytesIO(file.read_bytes())), False),
            (lambda file: COFFEE, False),
            (lambda file: memoryview(file.read_bytes()).toreadonly(), False),
        ],
        ids=["name", "path", "bytes", "bytearray", "memoryview", "open file", "PIL", "array", "read-only"],
    )
    def test_one_image(self, form, filename, model, photos):
        found = model.predict(form(photos / "00.png"))
        assert type(found) is ImagePrediction
        assert found.ok
        assert found.error is None
        assert (found.id, found.filename) == ("0", str(photos / "00.png") if filename else None)
        assert (found.label, len(found.classes)) == ("class 3", 5)
        assert str(found.model) == "fake/3"
        assert found.probability == pytest.approx(1, abs=1e-6)
        assert found.timings.total > 0
        assert found.batch_size == 1
        assert found.routing.weights.shape == (2, 4)
        assert np.array_equal(found.routing.weights, model.predict(png(COFFEE)).routing.weights)

    @pytest.mark.parametrize(
        "form",
        [
            lambda folder: str(folder),
            lambda folder: folder,
            lambda folder: f"{folder}/*.png",
            lambda folder: sorted(folder.glob("*.png")),
            lambda folder: tuple(str(file) for file in sorted(folder.glob("*.png"))),
            lambda folder: (file for file in sorted(folder.glob("*.png"))),
            lambda folder: [folder],
            lambda folder: [f"{folder}/0*.png", folder / "10.png", png(np.roll(COFFEE, 77, axis=1))],
            lambda folder: np.stack([np.roll(COFFEE, 7 * number, axis=1) for number in range(12)]),
            lambda folder: [np.roll(COFFEE, 7 * number, axis=1) for number in range(12)],
            lambda folder: np.array([str(file) for file in sorted(folder.glob("*.png"))]),
        ],
        ids=[
            "folder's name",
            "folder",
            "pattern",
            "list",
            "tuple",
            "generator",
            "folder in a list",
            "mixed",
            "array of many",
            "arrays",
            "array of names",
        ],
    )
    def test_many_images(self, form, model, photos):
        found = model.predict(form(photos), top_k=1)
        assert [result.id for result in found] == [str(number) for number in range(12)]
        assert {len(result.classes) for result in found} == {1}
        expected = [model.predict(np.roll(COFFEE, 7 * number, axis=1)) for number in range(12)]
        assert np.array_equal(routing_of(found), routing_of(expected))
        assert len(np.unique(routing_of(found)[:, 0, 0])) == 12

    def test_a_list_of_one_gives_a_list(self, model, photos):
        (photos / "one").mkdir()
        shutil.copy(photos / "00.png", photos / "one")
        assert len(model.predict([photos / "00.png"])) == 1
        assert len(model.predict(photos / "one")) == 1
        assert len(model.predict(COFFEE[None])) == 1

    def test_none(self, model):
        assert model.predict([]) == []
        assert model.predict(iter(())) == []
        assert model.routing(()) == []

    def test_arrays_of_other_libraries(self, model):
        class Tensor:
            def __array__(self, dtype=None, copy=None):
                return COFFEE

        expected = model.predict(COFFEE).routing.weights
        assert np.array_equal(model.predict(Tensor()).routing.weights, expected)
        assert np.array_equal(model.predict([Tensor()])[0].routing.weights, expected)

    def test_what_changes_or_is_closed_with_the_next_one(self, model, photos):
        files = sorted(photos.glob("*.png"))
        frame = np.empty_like(COFFEE)

        def frames():
            for file in files:
                frame[:] = np.asarray(Image.open(file))
                yield frame

        def opened():
            for file in files:
                with file.open("rb") as handle:
                    yield handle

        def pictures():
            for file in files:
                with Image.open(file) as picture:
                    yield picture

        expected = routing_of(model.predict(files))
        for images in (frames(), opened(), pictures()):
            assert np.array_equal(routing_of(model.predict(images)), expected)

    def test_an_iterable_that_breaks(self, model):
        def images():
            yield from [COFFEE] * 3
            raise OSError("the camera is gone")

        with pytest.raises(OSError, match="the camera is gone"):
            model.predict(images())
        assert model.predict(COFFEE).ok

    def test_images_are_taken_as_they_are_needed(self, make_model):
        """Half a million pixels each, and nobody can hold them all: a few are read ahead, and the rest waits."""
        taken, most = [], []
        computed = []
        model = make_model(lambda: computed.append(1) or most.append(len(taken) - 2 * len(computed)))

        def images():
            for number in range(60):
                taken.append(number)
                yield COFFEE

        assert len(model.predict(images())) == 60
        assert max(most) < 20

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
    @pytest.mark.parametrize("exact", [False, True])
    def test_pictures_are_what_their_files_are(self, mode, exact, request, exact_model):
        """Their pixels go to the network without becoming a file first, unless its rows aren't whole levels."""
        model = exact_model if exact else request.getfixturevalue("model")
        picture = Image.fromarray(COFFEE).convert(mode if mode not in ("PA", "I;16") else "P" if mode == "PA" else "L")
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        if mode in ("LA", "RGBA"):
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        if mode == "PA":
            picture.info["transparency"] = 3
        saved = picture if mode not in ("CMYK", "YCbCr", "HSV") else picture.convert("RGB")
        saved.save(file := io.BytesIO(), "PNG")
        found, expected = model.predict([picture, file.getvalue()])
        assert np.array_equal(found.routing.weights, expected.routing.weights)

    def test_one_after_the_other(self, model, photos):
        found = model.predict_iter(photos, top_k=1)
        assert next(found).id == "0"
        assert [result.id for result in found] == [str(number) for number in range(1, 12)]
        assert [result.error.slug for result in model.predict_iter(b"no image")] == ["unsupported_image"]
        with pytest.raises(UnsupportedImage, match=r"^Image 1: "):
            list(model.predict_iter([COFFEE, b"no image"], on_error="raise"))

    def test_a_picture_that_lies_on_its_side(self, model):
        exif = Image.Exif()
        exif[0x0112] = 6
        picture = Image.fromarray(COFFEE)
        picture.save(file := io.BytesIO(), "PNG", exif=exif)
        opened = Image.open(io.BytesIO(file.getvalue()))
        weights = [model.predict(form).routing.weights for form in (file.getvalue(), opened, picture)]
        assert np.array_equal(weights[0], weights[1])
        assert not np.array_equal(weights[0], weights[2])


class TestRefusals:
    def test_a_bad_image_among_others(self, model, photos):
        bad = [
            b"no image",
            b"",
            photos / "gone.png",
            "https://example.org/a.png",
            COFFEE.astype(float),
            str(photos / "*.gif"),
        ]
        found = model.predict([COFFEE, *bad, CAT])
        assert [result.ok for result in found] == [True, *[False] * len(bad), True]
        slugs = [result.error.slug for result in found[1:-1]]
        assert slugs == ["unsupported_image", *["missing_image"] * 3, "invalid_parameter", "missing_image"]
        assert [result.filename for result in found[3:5]] == [str(photos / "gone.png"), "https://example.org/a.png"]
        failed = found[1]
        assert (failed.classes, failed.routing, failed.timings, str(failed.model)) == ((), None, None, "fake/3")
        with pytest.raises(UnsupportedImage, match=r"^Image 1: "):
            _ = failed.label
        assert repr(failed).startswith("ImagePrediction('1': UnsupportedImage: ")

    @pytest.mark.parametrize(("error", "slug"), [(MemoryError(), "out_of_memory"), (KeyError(1), "internal_error")])
    def test_whatever_goes_wrong_with_one_is_its_own_error(self, error, slug, model, monkeypatch):
        def fail(picture):
            if picture is odd:
                raise error
            return picture_of(picture)

        monkeypatch.setattr(given, "picture_of", fail)
        odd = Image.new("CMYK", (8, 8))
        found = model.predict([COFFEE, odd, CAT])
        assert [result.ok for result in found] == [True, False, True]
        assert found[1].error.slug == slug

    def test_raised_instead(self, model, photos):
        with pytest.raises(UnsupportedImage, match=r"^Image 1: "):
            model.predict([COFFEE, b"no image", CAT], on_error="raise")
        (photos / "bad.png").write_bytes(b"no image")
        with pytest.raises(UnsupportedImage, match=r"bad\.png: "):
            model.routing(photos, on_error="raise")
        assert model.predict(COFFEE).ok, "it is of use all the same"

    @pytest.mark.parametrize(
        ("given", "error", "says"),
        [
            (b"no image", UnsupportedImage, "JPEG, PNG"),
            (b"", MissingImage, "empty"),
            ("gone.png", MissingImage, "there is no such file"),
            ("*.gone", MissingImage, "no file matches"),
            ("http://example.org/a.png", MissingImage, "this is a URL"),
            ("", MissingImage, "name is empty"),
            (COFFEE.astype(np.float32), InvalidParameter, "uint8"),
            (np.zeros((0, 4, 3), np.uint8), InvalidParameter, "uint8"),
            (io.StringIO("text"), TypeError, "rb"),
            (7, TypeError, "not int"),
            (None, TypeError, "not NoneType"),
            ([COFFEE, None], TypeError, "not NoneType"),
        ],
        ids=[
            "no image",
            "nothing",
            "no file",
            "pattern",
            "URL",
            "no name",
            "floats",
            "no pixels",
            "text",
            "7",
            "None",
            "[None]",
        ],
    )
    def test_no_image(self, given, error, says, model):
        with pytest.raises(error, match=says):
            model.predict(given)

    def test_a_folder_without_images(self, model, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(MissingImage, match="this folder is empty"):
            model.predict(tmp_path / "empty")
        (tmp_path / "empty" / "notes.txt").write_text("x")
        with pytest.raises(MissingImage, match=r"Left out: 1 file that has no image's suffix"):
            model.predict(str(tmp_path / "empty"))

    def test_a_file_that_is_too_large(self, make_model, photos):
        (photos / "large.png").write_bytes(bytes(2000))
        found = make_model(max_body_bytes=1024).predict([photos / "large.png", bytes(1025)])
        assert [result.error.slug for result in found] == ["body_too_large"] * 2

    @pytest.mark.parametrize("images", [[], COFFEE])
    def test_parameters(self, images, model):
        with pytest.raises(InvalidParameter, match="top_k must be from 1 to 16"):
            model.predict(images, top_k=17)
        with pytest.raises(InvalidParameter, match="on_error may be keep or raise, not 'ignore'"):
            model.predict(images, on_error="ignore")
        with pytest.raises(InvalidParameter, match="on_error may be"):
            model.predict_iter(images, on_error="ignore")


class TestAnswers:
    def test_routing(self, model, photos):
        one, many = model.routing(COFFEE), model.routing(photos, top_k=2)
        assert type(one) is ImageRouting
        assert list(one.routing.by_block()) == ["block_4", "block_5"]
        assert [block.block for block in one.insight.blocks] == ["block_4", "block_5"]
        assert one.insight.blocks[0].strongest[0] == one.routing.weights[0].argmax()
        assert one.insight.unusual is None, "this model has no reference profile"
        assert {(len(result.classes), len(result.insight.blocks)) for result in many} == {(2, 2)}
        (failed,) = model.routing([b""])
        assert (failed.insight, failed.error.slug) == (None, "missing_image")

    def test_features(self, model, photos):
        one = model.features(COFFEE)
        assert type(one) is ImageFeatures
        assert one.features.dtype == np.float32
        assert (one.features.shape, one.logits) == (model.info.outputs[2].shape, None)
        bad, *many = model.features([b"", *sorted(photos.glob("*.png"))], logits=True)
        assert (bad.ok, bad.features, bad.logits) == (False, None, None)
        assert {result.logits.shape for result in many} == {(16,)}
        assert np.array_equal(many[0].features, one.features)
        assert len(np.unique([result.features[0] for result in many])) == 12
        assert [result.id for result in model.features_iter(photos)] == [str(number) for number in range(12)]
        assert repr(one) == f"ImageFeatures('0': float32 {list(one.features.shape)})"

    def test_a_model_without_features(self, make_model):
        def lose(model):
            object.__setattr__(model.info, "outputs", model.info.outputs[:2])

        with pytest.raises(InvalidParameter, match="has no features"):
            make_model(loaded=lose).features([])

    def test_threshold(self, model):
        (found,) = model.predict([COFFEE], top_k=3, threshold=0.5)
        assert [scored.label for scored in found.classes] == ["class 3"]
        assert len(model.predict(COFFEE, top_k=3).classes) == 3
        assert [len(result.classes) for result in model.predict_iter(COFFEE, threshold=0.5)] == [1]
        with pytest.raises(InvalidParameter, match="threshold must be from 0 to 1"):
            model.predict(COFFEE, threshold=2)

    def test_what_it_is(self, model):
        assert (model.name, model.version, model.info.task) == ("fake", "3", "classification")
        assert [label.label for label in model.labels[:2]] == ["class 0", "class 1"]
        assert repr(model) == "<Model fake/3, computed by numpy in float32 on CPU: a fake>"
        assert repr(model.predict(COFFEE, top_k=1)) == "ImagePrediction('0': class 3 100.0%)"


class TestThreadsAndLoops:
    def test_inside_a_running_loop(self, model):
        async def answer():
            return model.predict([COFFEE, CAT]), await asyncio.to_thread(model.predict, COFFEE)

        many, one = asyncio.run(answer())
        assert [result.label for result in (*many, one)] == ["class 3"] * 3

    def test_many_threads_ask_for_more_than_the_queue_holds(self, make_model):
        model = make_model(max_queue_rows=4)
        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(lambda number: model.predict([COFFEE, CAT] * 8), range(6)))
        expected = routing_of(model.predict([COFFEE, CAT] * 8))
        assert all(np.array_equal(routing_of(results), expected) for results in found)

    def test_images_are_computed_together(self, make_model):
        first = []

        def wait_for_others():
            if first:
                queue = first.pop()
                wait_for(lambda: sum(map(len, queue._queues.values())) >= 4)

        model = make_model(wait_for_others, max_batch_size=4)
        first.append(model._service._service._batcher._queue)
        assert max(result.batch_size for result in model.predict([COFFEE] * 12)) == 4

    def test_two_models(self, make_model):
        one, other = make_model(), make_model()
        assert one.predict(COFFEE).label == other.predict(COFFEE).label
        one.close()
        assert other.predict(COFFEE).label == "class 3"

    def test_ctrl_c_leaves_it_usable(self, make_model):
        calls = []

        def press():
            calls.append(1)
            if len(calls) == 5:
                _thread.interrupt_main()

        model = make_model(press, max_batch_size=1)
        with pytest.raises(KeyboardInterrupt):
            model.predict([COFFEE] * 1000)
        assert len(calls) < 100
        assert model.predict(COFFEE).label == "class 3"

    def test_another_process(self, model, monkeypatch):
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(RuntimeError, match="was loaded in another process"):
            model.predict(COFFEE)
        model.close()
        monkeypatch.undo()
        assert model.predict(COFFEE).ok, "a copy of it closes nothing"


def test_it_is_not_copied(model):
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"Call condconv_serve\.load there, too"):
            copied(model)


class TestEnd:
    def test_closed(self, make_model):
        engines = []
        with make_model(loaded=lambda model: engines.append(model.engine)) as model:
            assert model.predict(COFFEE).ok
            names = {thread.name for thread in threading.enumerate()}
            assert "model-fake" in names
        assert engines[0]._engine.closed.is_set()
        model.close()
        for ask in (model.predict, model.routing, model.features):
            with pytest.raises(RuntimeError, match=r"^fake has been closed. Load it again.$"):
                ask(COFFEE)

    def test_closed_while_somebody_waits(self, make_model):
        computing, go = threading.Event(), threading.Event()
        model = make_model()
        slow = make_model(lambda: computing.set() or (threading.current_thread().name == "stream-0" and go.wait(60)))
        computing.clear()

        def go_on_once_it_closes():
            wait_for(slow._service._stop.is_set)
            go.set()

        with ThreadPoolExecutor(2) as threads:
            waiting = threads.submit(slow.predict, [COFFEE] * 5)
            assert computing.wait(60)
            threads.submit(go_on_once_it_closes)
            slow.close()
            with pytest.raises(RuntimeError, match="has been closed"):
                waiting.result()
        assert model.predict(COFFEE).ok

    def test_dropped(self, make_model, bundle):
        engines = []

        def load(*given, **options):
            model = load_fake(*given, **options)
            engines.append(model.engine._engine)
            return model

        make_model()  # for its settings: none from outside
        model = Model(bundle, Settings(native="off", engine="tensorflow", streams=1, max_batch_size=1), load=load)
        assert model.predict(COFFEE).ok
        gone = weakref.ref(model)
        del model
        gc.collect()
        assert gone() is None
        assert engines[0].closed.wait(60)

    def test_nothing_is_said_at_the_end_of_a_process(self, bundle):
        program = f"""
            from pathlib import Path
            from condconv_serve.inputs import picture_of
from condconv_serve.inputs import given
from condconv_serve.offline.model import Model
            from condconv_serve.settings import Settings
            from tests.contract.fake_server import load_fake
            settings = Settings(native="off", engine="tensorflow", streams=2)
            model = Model(Path({str(bundle)!r}), settings, load=load_fake)
            other = Model(Path({str(bundle)!r}), settings, load=load_fake)
            print(model.predict({str(ROOT / "service/condconv_serve/samples/coffee.jpg")!r}).label)
            other.close()
        """
        lines = "\n".join(line.strip() for line in program.splitlines())
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", lines], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "class 3\n", "")


def test_an_engine_that_fails_fails_its_image_only(make_model):
    answers = iter([None, None, None, RuntimeError("broken")])

    def fail():
        if (error := next(answers, None)) is not None:
            raise error

    model = make_model(fail, max_batch_size=1)
    found = model.predict([COFFEE] * 6)
    assert [result.error.slug for result in found if not result.ok] == ["inference_failed"]
    assert issubclass(ServiceError, Exception)


def test_jpegs_are_read_as_ever(model):
    assert model.predict(jpeg(COFFEE)).ok


class TestDetect:
    @pytest.fixture(scope="class")
    @staticmethod
    def detector(tmp_path_factory):
        bundle = write_colour_detector(tmp_path_factory.mktemp("store"))
        settings = Settings(native="off", engine="tensorflow", streams=2, max_batch_size=4)
        with Model(bundle, settings, load=load_fake) as made:
            yield made

    PATCHES = np.full((80, 160, 3), 128, np.uint8)
    PATCHES[20:30, 20:40] = (255, 0, 0)
    PATCHES[50:60, 120:140] = (0, 0, 255)

    @pytest.mark.parametrize(
        "form",
        [
            png,
            lambda pixels: pixels,
            Image.fromarray,
            lambda pixels: Image.open(io.BytesIO(oriented(pixels, 6, "PNG"))),
            lambda pixels: oriented(pixels, 8, "PNG"),
        ],
        ids=["file", "array", "PIL", "PIL on its side", "file on its side"],
    )
    def test_boxes_lie_in_the_upright_photo(self, form, detector):
        found = detector.detect(form(self.PATCHES))
        assert type(found) is ImageDetections
        assert (found.ok, found.id, found.width, found.height, str(found.model)) == (True, "0", 160, 80, "colours/1")
        assert [(one.label, one.score > 0.9) for one in found.objects] == [("red", True), ("blue", True)]
        boxes = [(one.box.xmin, one.box.ymin, one.box.xmax, one.box.ymax) for one in found.objects]
        np.testing.assert_allclose(boxes, [(20, 20, 40, 30), (120, 50, 140, 60)], atol=1e-3)
        assert found.objects[1].box_normalized.xmax == pytest.approx(140 / 160)
        assert found.routing.weights.shape == (2, 3)
        assert found.timings.total > 0
        assert repr(found) == "ImageDetections('0': 1 red, 1 blue)"

    @pytest.mark.parametrize(
        "form",
        [lambda pixels: oriented(pixels, 6, "PNG"), lambda pixels: pixels, Image.fromarray],
        ids=["file on its side", "array", "PIL"],
    )
    def test_what_was_found_is_drawn(self, form, detector):
        image = form(self.PATCHES)
        drawn = draw_objects(image, detector.detect(image).objects)
        assert (drawn.size, drawn.mode) == ((160, 80), "RGB")
        assert (drawn.getpixel((20, 25)), drawn.getpixel((139, 55))) == (colour_of(0), colour_of(2))
        assert drawn.getpixel((25, 25)) == (255, 0, 0), "boxes aren't filled"
        with pytest.raises(UnsupportedImage):
            draw_objects(b"no image", ())

    def test_many(self, detector):
        images = [self.PATCHES, b"no image", np.full((10, 10, 3), 90, np.uint8)] * 3
        found = detector.detect(images)
        assert [len(one.objects) for one in found] == [2, 0, 0] * 3
        assert [one.ok for one in found] == [True, False, True] * 3
        assert found[1].width is None
        assert list(map(repr, detector.detect_iter(images))) == list(map(repr, found))
        with pytest.raises(UnsupportedImage):
            list(detector.detect_iter(images, on_error="raise"))
        with pytest.raises(UnsupportedImage, match="Image 1:"):
            detector.detect(images, on_error="raise", progress=False)

    def test_routing(self, detector, model):
        one, bad = detector.routing([self.PATCHES, b"no image"], max_detections=1)
        assert (one.width, [found.label for found in one.objects], one.classes, bad.ok) == (160, ["red"], (), False)
        assert one.routing.weights.shape == (2, 3)
        assert [block.block for block in one.insight.blocks] == ["block_1", "block_2"]
        assert [len(each.objects) for each in detector.routing_iter([self.PATCHES], score_threshold=0.3)] == [2]
        assert (model.routing(COFFEE).width, model.routing(COFFEE).objects) == (None, ())
        with pytest.raises(InvalidParameter, match="top_k: not for colours, a model for detection"):
            detector.routing(self.PATCHES, top_k=1)
        with pytest.raises(InvalidParameter, match="score_threshold: not for fake, a model for classification"):
            model.routing_iter([COFFEE], score_threshold=0.5)

    def test_thresholds(self, detector):
        pixels = self.PATCHES.copy()
        pixels[50:60, 120:140] = (150, 150, 255)
        assert len(detector.detect(pixels).objects) == 1
        assert len(detector.detect(pixels, score_threshold=0.3).objects) == 2
        assert len(detector.detect(pixels, score_threshold=np.float32(0.3), max_detections=1).objects) == 1
        assert detector.detect(pixels, score_threshold=0.3, iou_threshold=0).counts() == {"red": 1, "blue": 1}

    @pytest.mark.parametrize(
        ("option", "says"),
        [
            ({"score_threshold": 1.5}, "score_threshold must be from 0 to 1, not 1.5"),
            ({"score_threshold": "0.5"}, "score_threshold must be from 0 to 1, not '0.5'"),
            ({"iou_threshold": True}, "iou_threshold must be from 0 to 1, not True"),
            ({"iou_threshold": float("nan")}, "iou_threshold must be from 0 to 1, not nan"),
            ({"max_detections": 0}, "max_detections must be from 1 to 1000, not 0"),
            ({"max_detections": 2.5}, "max_detections must be a whole number from 1 to 1000, not 2.5"),
            ({"max_detections": "many"}, "max_detections must be a whole number from 1 to 1000, not 'many'"),
            ({"on_error": "ignore"}, "on_error may be keep or raise"),
        ],
    )
    def test_impossible_options(self, option, says, detector):
        for ask in (detector.detect, detector.detect_iter):
            with pytest.raises(InvalidParameter, match=says):
                ask(self.PATCHES, **option)

    def test_a_model_for_something_else(self, detector, model):
        for ask in (model.detect, model.detect_iter):
            with pytest.raises(InvalidParameter, match="fake is a model for classification: it finds no boxes"):
                ask(COFFEE)
        for ask in (detector.predict, detector.predict_iter):
            with pytest.raises(InvalidParameter, match="colours is a model for detection: it doesn't classify"):
                ask(COFFEE)
        with pytest.raises(InvalidParameter, match="colours"):
            detector.features(COFFEE)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"top_k": "3"}, "top_k must be a whole number from 1 to 16, the number of classes of fake, not '3'"),
        ({"top_k": 2.0}, "top_k must be a whole number"),
        ({"top_k": True}, "top_k must be from 1 to 16"),
        ({"top_k": [1]}, "top_k must be a whole number"),
        ({"threshold": "0.5"}, "threshold must be from 0 to 1, not '0.5'"),
        ({"threshold": ""}, "threshold must be from 0 to 1, not ''"),
        ({"threshold": False}, "threshold must be from 0 to 1, not False"),
    ],
)
def test_options_that_are_no_numbers(option, says, model):
    for ask in (model.predict, model.predict_iter):
        with pytest.raises(InvalidParameter, match=says):
            ask(COFFEE, **option)
    assert len(model.predict(COFFEE, top_k=np.int64(3)).classes) == 3
