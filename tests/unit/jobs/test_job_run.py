"""Questions on several threads, and jobs that are disturbed in every way."""

import io
import os
import random
import threading
import time
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from condconv_serve.domain import ImageResult
from condconv_serve.errors import CorruptImage, DeadlineExceeded, QueueFull, RemoteFailed
from condconv_serve.jobs.journal import Journal
from condconv_serve.jobs.parallel import in_parallel
from condconv_serve.jobs.photos import Photos
from condconv_serve.jobs.progress import Progress
from condconv_serve.jobs.run import Job
from condconv_serve.jobs.table import OF_FEATURES
from condconv_serve.tasks.features import Embedding


def test_results_do_not_wait_for_items_that_are_slow_in_coming():
    """A run that goes on may pass over a million photos before it finds the next one to ask about."""
    done, taken = threading.Semaphore(0), []

    def items():
        for number in range(10):
            taken.append(number)
            yield number
            done.acquire(timeout=60)
            time.sleep(0.1)  # nothing tells that its result is there

    results = in_parallel(lambda item: done.release(), items(), threads=8)
    next(results)
    assert len(taken) < 8
    assert len(list(results)) == 9


def test_what_work_raises_is_raised():
    def work(item):
        if item == 3:
            raise ValueError("three")
        return item

    with pytest.raises(ValueError, match="three"):
        list(in_parallel(work, range(100), threads=4))


class Server:
    """Answers each photo by its content; a photo without content is corrupt. Unless it is calm, all goes wrong."""

    def __init__(self, seed, *, calm=False):
        self._random, self._lock, self._calm = random.Random(seed), threading.Lock(), calm
        self.asked = Counter()

    def __call__(self, images):
        with self._lock:
            self.asked.update(image.name for image in images)
            fate = 1.0 if self._calm else self._random.random()
        if fate < 0.05:
            raise RemoteFailed("It is away.")
        if fate < 0.1:
            raise KeyboardInterrupt
        if fate < 0.15:
            raise QueueFull("It is full.")
        if fate < 0.3:
            raise timed_out()
        return [self._answer(image, number) for number, image in enumerate(images)]

    def _answer(self, image, number):
        content = image.read_bytes(100)
        with self._lock:
            late = not self._calm and self._random.random() < 0.1
        if late or not content:
            error = timed_out() if late else CorruptImage("It is empty.")
            return ImageResult(id=str(number), filename=None, error=error)
        features = np.array([float(content)], np.float32)
        return ImageResult(
            id=str(number),
            filename=None,
            prediction=Embedding(features=features, logits=None, timings=None, batch_size=1),
        )


def timed_out():
    error = DeadlineExceeded("It was too late.")
    error.status = 504
    return error


@pytest.mark.parametrize("seed", range(8))
def test_however_a_job_is_disturbed_each_photo_has_one_true_row(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    chance, ends = random.Random(seed), Counter()
    for number in range(300):
        folder = tmp_path / "photos" / str(number % 7)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_text(str(number) if number % 50 else "")

    def run(server):
        with Journal(tmp_path / "out.jsonl") as journal:
            job = Job(
                photos=Photos(["photos"]), journal=journal, columns=OF_FEATURES, concurrency=3, retry_failed=False
            )
            with Progress(Console(file=io.StringIO()), lambda: 0) as progress:
                job.run(server, progress)

    for number in range(12):
        changed = tmp_path / "photos" / "1" / f"{chance.randrange(42) * 7 + 1}.jpg"
        changed.write_text(changed.read_text() and str(int(changed.read_text()) + 1000))
        os.utime(changed, ns=(0, chance.randrange(10**18)))
        try:
            run(Server(f"{seed} {number}"))
        except (RemoteFailed, QueueFull, KeyboardInterrupt) as error:
            ends[type(error)] += 1
    assert ends
    run(Server(seed, calm=True))
    run(last := Server(seed, calm=True))
    assert not last.asked, "all is known"
    with Journal(tmp_path / "out.jsonl") as journal:
        rows = {entry.photo.path: entry for entry in journal}
        assert len(rows) == len(journal) == 300
    for path, entry in rows.items():
        content = (tmp_path / path).read_text()
        assert (entry.slug, entry.answer) == (
            (None, {"features": [float(content)]}) if content else ("corrupt_image", {})
        )
