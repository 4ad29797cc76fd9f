"""Messages between two of our own processes, over a pair of connected sockets, on the event loop.

Messages are Python objects, pickled. That is safe here, and only here: such a pair of sockets has no name and no
address, the process that starts all others makes it and hands one end to each, and both ends run the same code as the
same user. All messages of one turn of the loop travel together.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import pickle
import socket
import struct
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

_HEADER = struct.Struct("<I")
_READ_BYTES = 256 * 1024
_MAX_FRAME = 2**30
_MAX_FILES = 16
"""Most open files that one frame brings along."""
_FILES_ROOM = socket.CMSG_SPACE(_MAX_FILES * array("i").itemsize) if hasattr(socket, "CMSG_SPACE") else 0
logger = logging.getLogger(__name__)


class Link:
    """One end of a connection. Use it on one event loop only."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        on_message: Callable[[Any, Link], None],
        on_close: Callable[[Link], None] = lambda link: None,
        pack: Callable[[Any], Any] = lambda message: message,
        unpack: Callable[[Any], Any] = lambda message: message,
    ) -> None:
        """Start to read.

        Args:
            connection: connected; the link closes it.
            on_message: gets each message. If it raises, the other end broke the rules, and the link is closed.
            on_close: called once, when the link is closed from either end.
            pack: makes what is pickled of each message.
            unpack: undoes that; both ends have the same two.
        """
        self._connection = connection
        self._on_message = on_message
        self._on_close = on_close
        self._pack = pack
        self._unpack = unpack
        self._loop = asyncio.get_running_loop()
        self._room = bytearray(_READ_BYTES)
        self._received = bytearray()
        self._files: deque[int] = deque()
        self._to_send: list[Any] = []
        self._files_to_send: list[int] = []
        self._unsent: deque[tuple[memoryview, Sequence[int]]] = deque()
        self.closed = False
        connection.setblocking(False)
        self._loop.add_reader(connection, self._read)

    def send(self, message: Any, *, file: int | None = None) -> None:
        """Send a message at the end of this turn of the loop. Messages for a closed link are lost.

        Args:
            message: anything that can be pickled.
            file: an open file that travels with it; the receiver takes its own copy by `take_file`.

        Raises:
            OSError: the file can't be sent, and so the message isn't.
        """
        if file is not None and len(self._files_to_send) == _MAX_FILES:
            self._flush()
        if self.closed:
            return
        if file is not None:
            self._files_to_send.append(os.dup(file))
        if not self._to_send:
            self._loop.call_soon(self._flush)
        self._to_send.append(message)

    @property
    def stalls(self) -> bool:
        """Whether the other end has not taken all that was sent before this turn of the loop."""
        return bool(self._unsent)

    def take_file(self) -> int:
        """The next open file that came along; the caller closes it.

        Raises:
            ValueError: none came.
        """
        if not self._files:
            raise ValueError("A message without its file.")
        return self._files.popleft()

    def close(self) -> None:
        """Close it at once. What has not been sent is lost."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)
        self._connection.close()
        for file in (*self._files, *self._files_to_send, *(file for _, files in self._unsent for file in files)):
            os.close(file)
        self._files.clear()
        self._files_to_send.clear()
        self._unsent.clear()
        self._to_send.clear()
        self._on_close(self)

    def _flush(self) -> None:
        if self.closed or not self._to_send:
            return
        messages, self._to_send = self._to_send, []
        files, self._files_to_send = self._files_to_send, []
        try:
            body = _pickled([*map(self._pack, messages)])
        except Exception:  # whoever waits for an answer to one of them would wait for ever
            logger.exception("what another process of the service should get can't be sent; its connection is closed")
            self._files_to_send = files
            self.close()
            return
        waiting = bool(self._unsent)
        self._unsent.append((memoryview(_HEADER.pack(len(body)) + body), files))
        if not waiting:
            self._write()

    def _write(self) -> None:
        try:
            while self._unsent:
                data, files = self._unsent[0]
                sent = self._send(data, files)
                self._unsent[0] = (data[sent:], ())
                for file in files:
                    os.close(file)
                if sent == len(data):
                    self._unsent.popleft()
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._connection, self._write)
            return
        except OSError:  # the other end has gone
            self.close()
            return
        self._loop.remove_writer(self._connection)

    def _send(self, data: memoryview, files: Sequence[int]) -> int:
        if not files:
            return self._connection.send(data)
        return socket.send_fds(self._connection, [data], list(files))

    def _read(self) -> None:
        try:
            length = self._receive()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            length = 0
        if not length:
            self.close()
            return
        self._received += memoryview(self._room)[:length]
        try:
            self._hand_out()
        except Exception:
            logger.exception("another process of the service sent what makes no sense; its connection is closed")
            self.close()

    def _receive(self) -> int:
        length, ancillary, flags, _ = self._connection.recvmsg_into([self._room], _FILES_ROOM)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                files = array("i")
                files.frombytes(data[: len(data) - len(data) % files.itemsize])
                for file in files:
                    os.set_inheritable(file, False)
                self._files.extend(files)
        return 0 if flags & socket.MSG_CTRUNC else length

    def _hand_out(self) -> None:
        start = 0
        while not self.closed and len(self._received) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._received, start)
            if length > _MAX_FRAME:
                raise ValueError(f"A frame of {length} bytes is too long.")
            end = start + _HEADER.size + length
            if len(self._received) < end:
                break
            with memoryview(self._received) as whole, whole[start + _HEADER.size : end] as body:
                messages = pickle.loads(body)
            start = end
            for message in messages:
                if self.closed:
                    return
                self._on_message(self._unpack(message), self)
        del self._received[:start]


class _Pickler(pickle.Pickler):
    """Pickles named tuples in less than half of the usual time, which goes into Python code that names their parts."""

    def reducer_override(self, value: Any) -> Any:
        """A named tuple is made again from its fields."""
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value), tuple(value)
        return NotImplemented


def _pickled(messages: Sequence[Any]) -> memoryview:
    written = io.BytesIO()
    _Pickler(written, pickle.HIGHEST_PROTOCOL).dump(messages)
    return written.getbuffer()
