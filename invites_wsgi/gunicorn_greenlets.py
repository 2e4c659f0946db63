"""A worker that answers in its event loop, for an app that waits for nothing but what `invites_core.waiting` knows of.

Where each request has a thread, the threads of a process hand the interpreter's lock to one another several times for
each answer, and more time goes into that than into the answer. Here each request has a greenlet.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from types import FrameType
from typing import Any, Final

from greenlet import getcurrent

from invites_core.waiting import get_waiting, set_waiting
from invites_wsgi.greenlets import MOST_SECONDS, Greenlets
from invites_wsgi.gunicorn_connections import SEND_SECONDS, Connection, WaitingWorker

__all__ = ["GreenletWorker"]

MOST_ACCEPTED: Final = 64
"""How many connections are taken in a turn of the event loop."""
THREADS: Final = 4
"""How many works go on at once: of those that take long a store does one after the other, or hardly ever."""


class _Socket(socket.socket):
    """A connection that holds up nobody; who sends more than there is room for lets others go on."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        super().setblocking(False)

    def setblocking(self, flag: bool) -> None:
        """Do nothing: gunicorn says how a thread is to wait for a socket, and no thread waits for this one."""

    def settimeout(self, value: float | None) -> None:
        """Do nothing, for the same reason."""

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of it within `SEND_SECONDS`.

        Raises:
            TimeoutError: The client did not take it.
        """
        left, due = memoryview(data), None
        while True:
            with contextlib.suppress(BlockingIOError):
                left = left[self.send(left, flags) :]
            if not left:
                return
            now = time.monotonic()
            due = due or now + SEND_SECONDS
            if not get_waiting().wait_for(self.fileno(), reads=False, writes=True, timeout=due - now):
                raise TimeoutError


class GreenletWorker(WaitingWorker):
    """Answers each request in a greenlet of its main thread."""

    _greenlets: Greenlets

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ready: deque[Connection] = deque()
        self._main = getcurrent()

    def run(self) -> None:
        """Answer until the worker is told to stop."""
        self._greenlets = Greenlets(self.poller, self.method_queue.defer, threads=THREADS)
        set_waiting(self._greenlets)
        try:
            super().run()
        finally:
            self._greenlets.end()

    def adopt(self, sock: socket.socket) -> socket.socket:
        """Return a socket that does not hold up the event loop."""
        return _Socket(sock)

    def accept(self, listener: socket.socket) -> None:
        """Take several of those who have connected: there is more to do in a turn than where threads answer."""
        for _ in range(MOST_ACCEPTED):
            if self.nr_conns >= self.worker_connections or not self.accept_one(listener):
                return

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """End at once; raised in a request, gunicorn could take the end for an error of the app's."""
        if getcurrent() is self._main:
            super().handle_quit(sig, frame)
        else:
            self.method_queue.defer(super().handle_quit, sig, frame)

    def enqueue_req(self, conn: Any) -> None:
        """Note that a request has come as a whole."""
        self._ready.append(conn)

    def wait_for_and_dispatch_events(self, timeout: float | None) -> None:
        """Wait for events, and answer all who have sent a request."""
        pause = 0.0 if self._ready else self._greenlets.find_pause()
        if pause is not None:
            timeout = pause if timeout is None else min(timeout, pause)
        super().wait_for_and_dispatch_events(timeout)
        until = time.monotonic() + MOST_SECONDS
        # Not who comes meanwhile: a client that sends many requests at once has its turn like others.
        for _ in range(len(self._ready)):
            self._greenlets.start(self._answer, self._ready.popleft())
            if time.monotonic() >= until:
                break
        self._greenlets.begin_works()

    def murder_pending(self) -> None:
        """Part with those whose time is over."""
        super().murder_pending()
        self._greenlets.give_up()
        self._greenlets.begin_works()

    def _answer(self, conn: Connection) -> None:
        self.finish(conn, keep=self.handle(conn) is True)
