"""One version of a model, answered by the server's parts on a thread of its own, without a server.

Commands and the library use it. Callers needn't have an event loop, and may have one that runs.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Coroutine, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from condconv_serve.bootstrap import Service
from condconv_serve.domain import ImageResult, ImageSource, PixelSource, ServedModel
from condconv_serve.errors import OutOfMemory, ServiceError, unexpected_error
from condconv_serve.runtime.model_loader import ModelLoader
from condconv_serve.settings import Settings
from condconv_serve.tasks.task import Task

Answer = TypeVar("Answer")
Result = TypeVar("Result")
logger = logging.getLogger(__name__)

_READERS = 4
"""Images read at once: a file system over a network may take longer for one than the network takes to answer it."""
_SECONDS_TO_END = 5.0

LOADING = threading.Lock()
"""Held while TensorFlow is imported, or a network built: once at a time."""


class ReadableImage(Protocol):
    """An image that can be read when its turn comes."""

    @property
    def id(self) -> str:
        """Names it in its result."""
        ...

    @property
    def filename(self) -> str | None:
        """Of its file, if it has one."""
        ...

    def read(self, model: ServedModel, *, max_bytes: int) -> ImageSource | PixelSource:
        """Read it for a model, on any thread.

        Raises:
            ServiceError: it can't be read, or has more bytes.
        """
        ...


class LocalService:
    """Answers tasks about images, for any number of threads at once.

    Use as a context manager, or close it.
    """

    def __init__(
        self, settings: Settings, bundle: Path, *, load: ModelLoader | None = None, release: bool = True
    ) -> None:
        """Load and warm up a version.

        Args:
            settings: as for a server.
            bundle: directory of the version.
            load: makes an engine of a bundle; the usual one if None.
            release: whether closing releases the weights, which takes some tenths of a second. A command's process ends
                then anyway.

        Raises:
            BundleError: the version is damaged, or doesn't fit. ConfigurationError: this machine lacks what the
                settings ask for.
        """
        quiet = settings.model_copy(update={"routing_statistics": False, "otlp_endpoint": None})
        with LOADING:
            self._service = Service(quiet, only=bundle.parent.name, load=load)
            self.model = self._service.load_only(bundle)
        self._release = release
        self._max_bytes, self._max_rows = settings.max_body_bytes, settings.max_queue_rows
        # Keeps decoders and streams busy.
        self._ahead = min(4 * self._service.plan.max_batch_size * self._service.plan.streams, self._max_rows)
        self._process, self._closed, self._lock = os.getpid(), False, threading.Lock()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._answering: set[asyncio.Task[Any]] = set()
        self._started: Future[None] = Future()
        # A daemon: the interpreter waits for other threads before it calls `_close_all`.
        self._thread = threading.Thread(target=self._run, name=f"model-{self.model.name}", daemon=True)
        self._thread.start()
        self._started.result()
        _open.add(self)

    def stream(self, images: Iterable[tuple[ReadableImage, Task[Answer]]]) -> Generator[ImageResult[Answer]]:
        """Do a task for each image, and yield the results in order, each as soon as all before it are there.

        Some images are read ahead, however many there are. Whoever stops early leaves no work behind.

        Raises:
            InvalidParameter: a task is impossible for the model. An image's own error is in its result.
            RuntimeError: this is closed, or belongs to another process.
        """
        coming: deque[Future[ImageResult[Answer]]] = deque()
        try:
            for image, task in images:
                task.check(self.model.info)
                while coming and (len(coming) >= self._ahead or coming[0].done()):
                    yield self._result(coming.popleft())
                coming.append(self._submit(self._answer(image, task)))
            while coming:
                yield self._result(coming.popleft())
        finally:
            for future in coming:
                future.cancel()

    def close(self) -> None:
        """Give up what is unanswered, and end the threads. A second time it does nothing."""
        self.stop()
        if self._process == os.getpid() and threading.current_thread() is not self._thread:
            self._thread.join(_SECONDS_TO_END)

    def stop(self) -> None:
        """Begin to close, and wait for nothing."""
        with self._lock:
            if self._closed or self._process != os.getpid():
                return
            self._closed = True
            self._loop.call_soon_threadsafe(self._stop.set)

    def __enter__(self) -> LocalService:
        """Answer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        try:
            with self._lock:
                self._check_open()
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise

    def _check_open(self) -> None:
        if self._process != os.getpid():
            raise RuntimeError(
                f"{self.model.name} was loaded in another process, and its threads are there. Load it in this one, and "
                "start processes by spawn rather than fork: TensorFlow doesn't survive a fork."
            )
        if self._closed:
            raise RuntimeError(f"{self.model.name} has been closed. Load it again.")

    def _result(self, future: Future[Result]) -> Result:
        try:
            return future.result()
        except CancelledError:
            self._check_open()
            raise

    async def _answer(self, image: ReadableImage, task: Task[Answer]) -> ImageResult[Answer]:
        running = asyncio.current_task()
        assert running is not None
        self._answering.add(running)
        running.add_done_callback(self._answering.discard)
        model = self.model
        async with self._room:  # many threads may ask for more than the queue holds
            try:
                read = partial(image.read, model, max_bytes=self._max_bytes)
                source = await asyncio.get_running_loop().run_in_executor(self._readers, read)
            except ServiceError as error:
                return ImageResult(id=image.id, filename=image.filename, error=error)
            except MemoryError:
                none = OutOfMemory("There is too little memory to read this image.", retry_after=5.0)
                return ImageResult(id=image.id, filename=image.filename, error=none)
            except Exception:  # Pillow's readers may raise anything; others of the call must not be lost
                logger.exception("reading an image met an unexpected error")
                return ImageResult(id=image.id, filename=image.filename, error=unexpected_error())
            answered = await self._service.images.run([source], task, model=model.name, version=model.version)
            return replace(answered.results[0], filename=image.filename)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._started.done():
                logger.exception("the thread of %s ended", self.model.name)
            else:
                self._started.set_exception(error)
        finally:
            self._readers.shutdown(wait=False, cancel_futures=True)
            if self._release:
                released = threading.Event()
                self._service.registry.unload(self.model.name, self.model.version, done=released.set)
                released.wait(_SECONDS_TO_END)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._room = asyncio.Semaphore(self._max_rows)
        async with self._service.computing():
            self._started.set_result(None)
            await self._stop.wait()
            for task in self._answering:
                task.cancel()


_open: weakref.WeakSet[LocalService] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Let threads end before the interpreter does: TensorFlow's own destructors must not meet them."""
    for service in list(_open):
        service._release = False
        service.close()
