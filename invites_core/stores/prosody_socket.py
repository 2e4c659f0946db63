"""The connection to Prosody's admin socket: one for each process, opened again when Prosody was restarted."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from invites_core.errors import OutcomeUnknown, StorageBusy, StorageError
from invites_core.process import PerProcess
from invites_core.stores.prosody_lua import format_prelude
from invites_core.stores.prosody_prelude import PRELUDE
from invites_core.stores.prosody_stream import (
    STREAM_OPENING,
    ProsodyStream,
    StreamBroken,
    StreamResult,
    format_input,
)

__all__ = ["ProsodySocket"]

CONNECT_SECONDS: Final = 5.0
PIECE: Final = 65536


class _NotSent(Exception):
    """The line did not get through to its end, so nothing of it was run."""


class _NoAnswer(Exception):
    """The line got through, and its answer did not come."""


class _Connection:
    """One stream, from its opening to its end."""

    def __init__(self, path: Path) -> None:
        self._stream = ProsodyStream()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(CONNECT_SECONDS)
            self._socket.connect(os.fspath(path))
            self._socket.setblocking(False)
            deadline = time.monotonic() + CONNECT_SECONDS
            lines = format_prelude(PRELUDE)
            self._send(STREAM_OPENING + _format_lines(lines), deadline)
            result = self._receive(len(lines), deadline)
        except BaseException:
            self.close()
            raise
        if not self._stream.is_open or result.is_error:
            self.close()
            # Without the module the socket is there, and nobody listens.
            raise _NotSent("Prosody takes no command on its admin socket: enable its module admin_shell")

    def close(self) -> None:
        self._socket.close()

    def is_usable(self) -> bool:
        """Tell whether the other end is still there, as far as one can know, and read what it has sent meanwhile."""
        try:
            # By poll: select knows no descriptor above 1,023.
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            while poll.poll(0):
                self._read()
        except (OSError, StreamBroken):
            return False
        return self._stream.take_result() is None

    def run(self, lines: Sequence[str], deadline: float) -> StreamResult:
        """Send lines at once and wait for the result of the last.

        Raises:
            _NotSent: They were not sent to their end.
            _NoAnswer: They were, and nothing came back.
        """
        try:
            self._send(_format_lines(lines), deadline)
        except OSError as error:
            raise _NotSent(_describe(error)) from error
        try:
            return self._receive(len(lines), deadline)
        except (OSError, StreamBroken) as error:
            raise _NoAnswer(_describe(error)) from error

    def _send(self, data: bytes, deadline: float) -> None:
        left = memoryview(data)
        while left:
            self._wait(deadline, writing=True)
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                continue

    def _receive(self, count: int, deadline: float) -> StreamResult:
        """Return the last of as many results, or the first that is an error."""
        results: list[StreamResult] = []
        while len(results) < count:
            if (result := self._stream.take_result()) is not None:
                results.append(result)
                continue
            self._wait(deadline, writing=False)
            self._read()
        return next((result for result in results if result.is_error), results[-1])

    def _read(self) -> None:
        try:
            piece = self._socket.recv(PIECE)
        except BlockingIOError:
            return
        if not piece:
            raise StreamBroken("it closed the connection")
        self._stream.feed(piece)

    def _wait(self, deadline: float, *, writing: bool) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT if writing else select.POLLIN)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError("it did not answer in time")


class _Link:
    """What one process holds: its connection, and whose turn it is."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: _Connection | None = None

    def drop(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


class ProsodySocket:
    """Sends lines to a running Prosody, one at a time. A child after a fork has a connection of its own."""

    def __init__(self, path: Path, *, timeout: float) -> None:
        """Take where the socket is; nothing is opened before the first line.

        Args:
            path: The socket.
            timeout: How long a line may take, with the wait for its turn, in seconds.
        """
        self.path = path.absolute()
        self._timeout = timeout
        self._link = PerProcess(_Link)

    def run(self, *lines: str, changes: bool) -> StreamResult:
        """Run lines inside Prosody and return the result of the last, or the first that is an error.

        Args:
            lines: The lines, one at least; all but the last have no effect by themselves.
            changes: Whether the last may change something.

        Raises:
            StorageBusy: Others had the connection for too long; nothing was changed.
            OutcomeUnknown: The lines were sent, the last may change something, and no answer came.
            StorageError: They were not sent to their end, or nothing came back to a question; nothing was changed.
        """
        deadline = time.monotonic() + self._timeout
        with self._turn(deadline) as link:
            try:
                return self._run(link, lines, deadline)
            except _NotSent as error:
                link.drop()
                raise StorageError(f"Prosody cannot be reached at {self.path}: {error}") from error
            except _NoAnswer as error:
                link.drop()
                if changes:
                    raise OutcomeUnknown(f"Prosody was asked, and the answer did not come: {error}") from error
                raise StorageError(f"Prosody did not answer: {error}") from error
            except BaseException:
                # An interrupted caller leaves an answer behind that is nobody's.
                link.drop()
                raise

    def close(self) -> None:
        """Close this process's connection."""
        link = self._link.peek()
        if link is not None:
            with link.lock:
                link.drop()

    @contextmanager
    def _turn(self, deadline: float) -> Iterator[_Link]:
        link = self._link.get()
        if not link.lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise StorageBusy("Prosody is busy with other requests")
        try:
            yield link
        finally:
            link.lock.release()

    def _run(self, link: _Link, lines: Sequence[str], deadline: float) -> StreamResult:
        if link.connection is not None and link.connection.is_usable():
            try:
                return link.connection.run(lines, deadline)
            except _NotSent:
                # It had gone since it was looked at, and no line was run: a new one takes it.
                if time.monotonic() >= deadline:
                    raise
        link.drop()
        try:
            link.connection = _Connection(self.path)
        except (OSError, StreamBroken) as error:
            raise _NotSent(_describe(error)) from error
        return link.connection.run(lines, deadline)


def _format_lines(lines: Sequence[str]) -> bytes:
    return b"".join(map(format_input, lines))


def _describe(error: Exception) -> str:
    """Say in words what happened, without the path, which the message has already."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
