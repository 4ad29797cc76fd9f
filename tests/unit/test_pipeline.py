import asyncio
import contextlib
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from condconv_serve.domain import Copies, ImageSource, PixelSource, rows_of
from condconv_serve.errors import (
    CorruptImage,
    Draining,
    ImageTooLarge,
    InferenceFailed,
    InvalidParameter,
    ModelNotFound,
    QueueFull,
    UnsupportedImage,
)
from condconv_serve.imaging import ImageDecoder, decoder
from condconv_serve.inference.batching import Batcher
from condconv_serve.inference.plane import InferencePlane
from condconv_serve.inference.runner import finite_rows
from condconv_serve.pipeline import ImagePipeline
from condconv_serve.routing.live import LiveRouting
from condconv_serve.store.aliases import Alias
from condconv_serve.tasks.classification import Classify
from condconv_serve.telemetry.metrics import Metrics
from tests.contract.fakes import FakeModels, FunctionEngine, ShadeEngine, even_layout, model_info, served_model
from tests.pictures import encode

CLASSES, BLOCKS, EXPERTS = 6, ("block_8", "block_9"), 3
NAN, INFINITE, GUILTY = 250, 252, 251
INFO = model_info("fake", "3", layout=even_layout(BLOCKS, EXPERTS), classes=CLASSES)
IMAGE_SIZE = INFO.preprocessing.image_size
SHADES = ShadeEngine(classes=CLASSES, layout=INFO.routing)


def compute(rows, stream):
    """As `ShadeEngine`, but some shades break it."""
    shades = rows[:, 0, 0, 0].astype(int)
    if (shades == GUILTY).any():
        raise RuntimeError("secret")
    output = SHADES(rows, stream)
    output["logits"][shades == NAN, 2] = np.nan
    output["features"][shades == INFINITE, 1] = np.inf
    return output


MODEL = served_model(INFO, FunctionEngine(compute))


def image(shade, **names):
    """A grey picture."""
    return ImageSource(encode(Image.new("RGB", (40, 30), (shade,) * 3), "PNG"), **names)


TEXT = ImageSource(b"not an image", filename="a.txt")
TRUNCATED = ImageSource(image(1).data[:60], filename="half.png")
HUGE = ImageSource(encode(Image.new("L", (200, 200)), "PNG"), filename="huge.png")


class CountingBatcher(Batcher):
    """`submitted` can be acquired once per row that waits or has waited in the queue."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.submitted = asyncio.Semaphore(0)

    def put(self, *args, **options):
        self.submitted.release()
        return super().put(*args, **options)


class Subject:
    """A running pipeline with what surrounds it. Batches wait while `free` is cleared."""

    def __init__(self, decoders, **limits):
        self.metrics = Metrics(CollectorRegistry())
        self.free, self.started = asyncio.Event(), asyncio.Event()
        self.free.set()
        routing = LiveRouting()
        self.metrics.routing.set_source(routing.exported)
        self.batcher = CountingBatcher(self._run, streams=1, metrics=self.metrics, **limits)
        plane = InferencePlane(FakeModels(MODEL), self.batcher, metrics=self.metrics, observe=routing.observe)

        self.pipeline = ImagePipeline(plane, ImageDecoder(decoders, max_pixels=20_000))

    async def classify(self, images, *, top_k=None, model=None):
        return await self.pipeline.run(images, Classify(top_k), model=model)

    async def _run(self, model, rows):
        self.started.set()
        await self.free.wait()
        return finite_rows(model.engine(np.stack(rows), 0))

    def read(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels)

    def rows(self):
        """Counted rows by outcome."""
        (family,) = (family for family in self.metrics.registry.collect() if family.name == "condconv_rows")
        return {s.labels["outcome"]: s.value for s in family.samples if s.name == "condconv_rows_total"}


@contextlib.asynccontextmanager
async def running(*, max_queue_rows=64, max_batch_size=4):
    with ThreadPoolExecutor(2) as decoders:
        subject = Subject(decoders, max_queue_rows=max_queue_rows, max_batch_size=max_batch_size)
        async with asyncio.timeout(20), subject.batcher:
            yield subject


@pytest.fixture
async def subject():
    async with running() as subject:
        yield subject


async def test_one_image(subject):
    answer = await subject.classify([image(10)], top_k=2)
    assert answer.model is INFO
    (result,) = answer.results
    assert (result.id, result.filename, result.error) == ("0", None, None)
    best, second = result.prediction.classes
    assert (best.index, best.label, best.synset) == (4, "class 4", None)
    assert best.probability == pytest.approx(np.exp(5) / (np.exp(5) + 5))
    assert (second.index, second.label) == (0, "class 0")
    assert result.prediction.batch_size == 1
    assert result.prediction.routing.layout.blocks == BLOCKS
    np.testing.assert_allclose(result.prediction.routing.weights, np.full((2, 3), 10 / 255), rtol=1e-6)
    timings = result.prediction.timings
    assert min(timings.decode, timings.queue, timings.inference) >= 0
    assert timings.total >= timings.decode + timings.queue + timings.inference > 0


async def test_each_of_many_images_gets_its_own_answer(subject):
    requests = [[image(shade) for shade in range(start, start + 5)] for start in range(0, 40, 5)]
    answers = await asyncio.gather(*(subject.classify(images, top_k=1) for images in requests))
    shades = [
        round(float(result.prediction.routing.weights[1, 2]) * 255) for answer in answers for result in answer.results
    ]
    assert shades == list(range(40))
    winners = [result.prediction.classes[0].index for answer in answers for result in answer.results]
    assert winners == [shade % CLASSES for shade in range(40)]


async def test_ids_and_filenames(subject):
    images = [image(1, id="x", filename="a.png"), image(2, filename="b.png"), image(3, id="x"), TEXT]
    results = (await subject.classify(images)).results
    assert [(r.id, r.filename) for r in results] == [("x", "a.png"), ("1", "b.png"), ("x", None), ("3", "a.txt")]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (TEXT, UnsupportedImage),
        (TRUNCATED, CorruptImage),
        (HUGE, ImageTooLarge),
        (image(NAN), InferenceFailed),
        (image(INFINITE), InferenceFailed),
        (image(GUILTY), InferenceFailed),
    ],
    ids=["unsupported", "corrupt", "too large", "not finite", "features not finite", "engine fails"],
)
async def test_a_bad_image_leaves_the_others_alone(bad, error, subject):
    results = (await subject.classify([image(0), bad, image(2)])).results
    assert [result.prediction is None for result in results] == [False, True, False]
    assert [result.error is None for result in results] == [True, False, True]
    assert type(results[1].error) is error
    assert "secret" not in str(results[1].error)
    assert [results[i].prediction.classes[0].index for i in (0, 2)] == [0, 2]
    assert subject.rows() == {"answered": 2, error.slug: 1}
    assert subject.read("condconv_queue_rows") == 0


@pytest.mark.parametrize("top_k", [1, 5, CLASSES])
async def test_top_k(top_k, subject):
    (result,) = (await subject.classify([image(9)], top_k=top_k)).results
    classes = result.prediction.classes
    assert len(classes) == top_k
    assert classes[0].index == 3
    assert sorted(classes, key=lambda c: -c.probability) == list(classes)


@pytest.mark.parametrize("top_k", [0, -1, CLASSES + 1])
async def test_impossible_top_k(top_k, subject):
    with pytest.raises(InvalidParameter) as caught:
        await subject.classify([image(1)], top_k=top_k)
    assert str(caught.value) == f"top_k must be from 1 to 6, the number of classes of fake, not {top_k}."
    assert subject.rows() == {}


async def test_an_unknown_model(subject):
    with pytest.raises(ModelNotFound):
        await subject.classify([image(1)], model="other")


@pytest.fixture
def decoded(monkeypatch):
    """What was decoded."""
    calls = []

    def counted(data, *arguments, **options):
        calls.append(data)
        return make_row(data, *arguments, **options)

    make_row = decoder.make_row
    monkeypatch.setattr(decoder, "make_row", counted)
    return calls


async def test_a_full_queue_is_told_before_anything_is_decoded(decoded):
    async with running(max_queue_rows=4) as subject:
        with pytest.raises(QueueFull):
            await subject.classify([image(shade) for shade in range(5)])
        assert decoded == []
        assert subject.rows() == {}
        assert len((await subject.classify([image(shade) for shade in range(4)])).results) == 4
        assert len(decoded) == 4


async def test_nothing_is_decoded_while_draining(decoded, subject):
    subject.batcher.close()
    with pytest.raises(Draining):
        await subject.classify([image(1)])
    assert decoded == []


async def test_images_that_cannot_be_decoded_give_their_room_back():
    async with running(max_queue_rows=2) as subject:
        for _ in range(3):
            results = (await subject.classify([TEXT, TRUNCATED])).results
            assert [type(result.error) for result in results] == [UnsupportedImage, CorruptImage]
            assert subject.read("condconv_queue_rows") == 0
        results = (await subject.classify([image(1), image(2)])).results
        assert all(result.prediction for result in results)


async def test_images_of_several_requests_ride_together(subject):
    subject.free.clear()
    first = asyncio.create_task(subject.classify([image(1)]))
    await subject.started.wait()
    others = [asyncio.create_task(subject.classify([image(shade)])) for shade in (2, 3)]
    for _ in range(3):
        await subject.batcher.submitted.acquire()
    subject.free.set()
    answers = await asyncio.gather(first, *others)
    assert [answer.results[0].prediction.batch_size for answer in answers] == [1, 2, 2]


@pytest.mark.parametrize("stage", ["decode", "inference"])
async def test_cancelled_images_are_counted_and_give_their_room_back(stage, subject, monkeypatch):
    entered, leave = threading.Event(), threading.Event()

    def slow(data, *arguments, **options):
        entered.set()
        assert leave.wait(20)
        return make_row(data, *arguments, **options)

    make_row = decoder.make_row
    if stage == "decode":
        monkeypatch.setattr(decoder, "make_row", slow)
    else:
        subject.free.clear()
    request = asyncio.create_task(subject.classify([image(1), image(2), image(3)]))
    try:
        if stage == "decode":
            await asyncio.to_thread(entered.wait, 20)
        else:
            await subject.started.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    finally:
        leave.set()
        subject.free.set()
    assert subject.rows() == {"cancelled": 3}
    assert subject.read("condconv_queue_rows") == 0
    (result,) = (await subject.classify([image(4)])).results
    assert result.prediction.classes[0].index == 4
    assert subject.rows() == {"cancelled": 3, "answered": 1}


async def test_metrics(subject):
    await subject.classify([image(51), image(204), TEXT])
    for stage in ("decode", "queue", "inference", "total"):
        assert subject.read("condconv_stage_seconds_count", stage=stage) == 2
    for block in BLOCKS:
        for expert in range(EXPERTS):
            labels = {"model": "fake", "version": "3", "block": block, "expert": str(expert)}
            assert subject.read("condconv_routing_weight_count", **labels) == 2
            assert subject.read("condconv_routing_weight_sum", **labels) == pytest.approx(1.0)
            assert subject.read("condconv_routing_weight_bucket", **labels, le="0.3") == 1


async def test_unexpected_error_of_one_image_leaves_the_others_alone(subject, monkeypatch):
    make_row = decoder.make_row

    def faulty(data, *arguments, **options):
        if data == b"boom":
            raise ZeroDivisionError("secret")
        return make_row(data, *arguments, **options)

    monkeypatch.setattr(decoder, "make_row", faulty)
    bad, good = (await subject.classify([ImageSource(b"boom"), image(1)])).results
    assert (bad.error.slug, good.prediction is not None) == ("internal_error", True)
    assert "secret" not in str(bad.error)


async def test_every_answered_row_is_observed_where_the_engine_is(subject):
    with subject.pipeline.plane.lease() as model:
        await subject.pipeline.plane.infer(model, np.full((2, IMAGE_SIZE, IMAGE_SIZE, 3), 51, np.uint8))
    await subject.classify([image(1), ImageSource(b"no image")])
    labels = {"model": "fake", "version": "3", "block": BLOCKS[0], "expert": "0"}
    assert subject.read("condconv_routing_weight_count", **labels) == 3


async def test_statistics_that_fail_cost_nobody_an_answer(subject, monkeypatch, caplog):
    def broken(model, row):
        raise ZeroDivisionError

    plane = subject.pipeline.plane
    monkeypatch.setattr(plane, "_counting", dataclasses.replace(plane._counting, observe=broken))
    results = (await subject.classify([image(1), image(2)])).results
    assert [result.error for result in results] == [None, None]
    assert caplog.text.count("missing in the statistics") == 2
    assert subject.rows()["answered"] == 2


PHOTO = image(100)
PIXELS = PixelSource(np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 100, np.uint8))


@pytest.mark.parametrize(
    ("source", "mirror", "copies"),
    [
        (PHOTO, {}, None),
        (PHOTO, {"4": 100}, Copies(to=("4",))),
        (PHOTO, {"5": 100}, Copies(to=("5",), image=PHOTO.data)),
        (PHOTO, {"4": 100, "5": 100}, Copies(to=("4", "5"), image=PHOTO.data)),
        (PHOTO, {"9": 100}, Copies(to=("9",))),
        (PIXELS, {"5": 100}, Copies(to=("5",), is_pixels=True)),
    ],
    ids=["nobody", "same crop", "other crop", "both", "not served", "pixels"],
)
async def test_a_copy_has_the_file_if_a_version_crops_in_another_way(source, mirror, copies):
    """Version 4 takes the same rows, and version 5 larger ones."""
    others = [model_info("fake", "4", classes=CLASSES), model_info("fake", "5", classes=CLASSES, image_size=64)]
    models, metrics, mirrored = FakeModels(MODEL, *map(served_model, others)), Metrics(CollectorRegistry()), []
    models.served["fake"]["stable"] = MODEL

    async def run(model, rows):
        return rows_of(model.engine(np.stack(rows), 0))

    with ThreadPoolExecutor(1) as decoders:
        async with Batcher(run, streams=1, max_batch_size=4, max_queue_rows=8, metrics=metrics) as batcher:
            plane = InferencePlane(
                models, batcher, metrics=metrics, mirror=lambda model, made, answer: mirrored.append(made)
            )
            alias = Alias(versions={"3": 1}, mirror=mirror)
            pipeline = ImagePipeline(
                plane, ImageDecoder(decoders, max_pixels=20_000), aliases=lambda name: {"stable": alias}
            )
            await pipeline.run([source], Classify(None), version="stable", split_key="ann")
    assert [made.copies for made in mirrored] == [copies]
