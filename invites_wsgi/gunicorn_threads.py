"""Threads that stay with a connection whose next request is about to come.

Left alone gunicorn hands a connection back to its main thread after each answer, and gets it from there again with the
next request: a pipe, two turns of the interpreter's lock and an entry in a table of the kernel, each time. A client
that has one request after the other is served without all this, by the thread that has just answered it.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from typing import Any, Final

from invites_wsgi.gunicorn_connections import RECEIVE_BYTES, Connection, WaitingWorker
from invites_wsgi.gunicorn_requests import Progress, ReceivedRequest

__all__ = ["StayingWorker"]

STAY_MILLISECONDS: Final = 5
"""How long a thread waits for the next request on its connection: a queued one waits at most for that much longer."""


class StayingWorker(WaitingWorker):
    """A worker whose threads wait a moment for the next request before they give a connection back.

    One that is not there as a whole they leave where it is: the event loop waits for the rest.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A mark for each connection that is to be handled and that no thread has begun with. Its ends are atomic.
        self._queued: deque[None] = deque()

    def enqueue_req(self, conn: Any) -> None:
        """Hand a connection to the threads."""
        self._queued.append(None)
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        """Answer a request, in a thread, and those that follow at once on the same connection."""
        self._queued.popleft()
        while True:
            outcome = super().handle(conn)
            if outcome is not True or not self._receives_next(conn):
                return outcome

    def _receives_next(self, conn: Connection) -> bool:
        """Wait for the next request unless others wait for a thread, and tell whether it is there as a whole."""
        if self._queued or not self.alive or conn.unreader.has_left:
            return False
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        if not poll.poll(STAY_MILLISECONDS):
            return False
        try:
            # Looked at only: the end of the connection, and an error, are for the event loop to find.
            data = conn.sock.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT | socket.MSG_PEEK)
            following = ReceivedRequest()
            if following.add(data) is not Progress.READY:
                return False
            conn.sock.recv(len(data), socket.MSG_DONTWAIT)
        except OSError:
            return False
        conn.unreader.give(bytes(following.data))
        return True
