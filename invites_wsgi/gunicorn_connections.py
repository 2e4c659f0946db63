"""A worker that gives a thread only what it can answer at once, so that no client can keep one waiting.

gunicorn's own reads a request in the thread that answers it. As many clients as there are threads that send a byte a
second, or connect and send nothing, or announce a body and stop, then keep all others from being served; and a client
that does not close its end after the last answer stops the worker's event loop for two seconds. Here the event loop,
which has room for a thousand connections, does all the waiting.
"""

from __future__ import annotations

import errno
import io
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gunicorn.http.errors import NoMoreData
from gunicorn.http.unreader import Unreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from invites_wsgi.gunicorn_requests import Progress, ReceivedRequest

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["RECEIVE_BYTES", "REQUEST_SECONDS", "Connection", "WaitingWorker"]

REQUEST_SECONDS: Final = 30.0
"""How long a request may take to come in, from its first byte to its last."""
SEND_SECONDS: Final = 10.0
"""How long a client may take to take an answer."""
LEAVING_SECONDS: Final = 2.0
LEAVING_BYTES: Final = 64 * 1024
STOPPING_SECONDS: Final = 2.0
"""How long a worker that is told to stop waits for the next request of those who are connected."""
LOOK_SECONDS: Final = 1.0
RECEIVE_BYTES: Final = 16 * 1024
PIECE_BYTES: Final = 4 * 1024
MAX_HELD: Final = 8 * 1024 * 1024
"""How many bytes of unfinished requests a worker holds, of all connections together."""

_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NOBODY: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ECONNABORTED})

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_REFUSAL: Final = "HTTP/1.1 {}\r\nConnection: close\r\nContent-Length: 0\r\n{}\r\n"
_TOO_SLOW: Final = _REFUSAL.format("408 Request Timeout", "").encode()
_HEAD_TOO_LARGE: Final = _REFUSAL.format("431 Request Header Fields Too Large", "").encode()
_BUSY: Final = _REFUSAL.format("503 Service Unavailable", "Retry-After: 1\r\n").encode()


class _NotReceived(NoMoreData, TimeoutError):
    """A parser asks for more than has come. gunicorn then closes the connection and does not log an error."""


class _Received(Unreader):
    """What gunicorn's parser reads from: only what has come already."""

    def __init__(self) -> None:
        super().__init__()
        self._data = b""
        self._at = 0
        self.has_ended = False
        """Whether the client has sent all that it will ever send."""

    def give(self, data: bytes) -> None:
        """Let all of this be read; what was given before has been read or taken back."""
        self._data, self._at = data, 0

    @property
    def has_left(self) -> bool:
        """Whether there is something that was not read."""
        return self._at < len(self._data) or bool(self.buf.getvalue())

    def take_back(self) -> bytes:
        """Return what was not read."""
        left = self.buf.getvalue() + self._data[self._at :]
        self.buf, self._data, self._at = io.BytesIO(), b"", 0
        return left

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return some of it, in pieces as from a socket: the parser copies what it holds for each chunk of a body."""
        piece = self._data[self._at : self._at + max(PIECE_BYTES, size_hint or 0)]
        self._at += len(piece)
        if not piece and not self.has_ended:
            raise _NotReceived
        return piece


class Connection(TConn):
    """A connection, and what has come of its next request."""

    parser: Any

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any) -> None:
        super().__init__(cfg, sock, client, server)
        self.received = ReceivedRequest()
        self.unreader = _Received()
        self.due = 0.0
        self.is_watched = False
        self.left_bytes = 0
        # gunicorn's thread then does not wait for it.
        self.data_ready = True

    def init(self) -> None:
        """Prepare it for a thread; called by gunicorn in the thread, before each request."""
        if not self.initialized:
            super().init()
            self.parser.unreader = self.unreader
        self.sock.settimeout(SEND_SECONDS)


class WaitingWorker(ThreadWorker):
    """Reads requests in its event loop, and has them answered in `enqueue_req`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # In the order in which they time out. Those that have sent nothing yet are in gunicorn's own two queues.
        self._reading: dict[Connection, None] = {}
        self._leaving: dict[Connection, None] = {}
        self._held = 0

    def accept(self, listener: socket.socket) -> None:
        """Take a connection, if there is one."""
        self.accept_one(listener)

    def accept_one(self, listener: socket.socket) -> bool:
        """Take a connection, and tell whether there was one."""
        try:
            sock, client = listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                self._make_room()
            elif error.errno not in _NOBODY:
                raise
            return False
        self.nr_conns += 1
        conn = Connection(self.cfg, self.adopt(sock), client, listener.getsockname())
        if self.nr_conns >= self.worker_connections:
            self._make_room()
        self._begin(conn)
        return True

    def adopt(self, sock: socket.socket) -> socket.socket:
        """Return a socket as the worker needs it."""
        return sock

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Answer a request."""
        try:
            return super().handle_request(req, conn)
        except TimeoutError as error:
            # To gunicorn that is an error of the server's, with a traceback in the log.
            raise ConnectionResetError(errno.ECONNRESET, "the client does not take its answer") from error

    def on_pending_socket_readable(self, conn: Any, client: Any) -> None:
        """Begin to read the first request of a connection."""
        if self._unwatch(conn):
            self.pending_conns.remove(conn)
            self._begin(conn)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """Begin to read the next request of a connection that was kept."""
        if self._unwatch(conn):
            self.keepalived_conns.remove(conn)
            self._begin(conn)

    def finish_request(self, conn: Any, fs: Future[bool]) -> None:
        """Keep a connection whose request was answered in a thread, or end it."""
        self.finish(conn, keep=not fs.cancelled() and fs.exception() is None and fs.result())

    def finish(self, conn: Any, *, keep: bool) -> None:
        """Keep a connection whose request was answered, or end it."""
        if not keep:
            self._leave(conn)
            return
        try:
            conn.sock.setblocking(False)
        except OSError:
            self._end(conn)
            return
        # Some clients do not wait for the answer before they send the next request.
        if following := conn.unreader.take_back():
            self._add(conn, following)
            return
        conn.set_timeout()
        if not self.alive:
            conn.timeout = min(conn.timeout, time.monotonic() + STOPPING_SECONDS)
        self.keepalived_conns.append(conn)
        self._watch(conn, self.on_client_socket_readable)

    def murder_pending(self) -> None:
        """Part with those whose time is over."""
        super().murder_pending()
        now = time.monotonic()
        while (slow := next(iter(self._reading), None)) and slow.due <= now:
            self._unwatch(slow)
            self._refuse(slow, _TOO_SLOW)
        while (leaving := next(iter(self._leaving), None)) and leaving.due <= now:
            self._unwatch(leaving)
            self._end(leaving)

    def wait_for_and_dispatch_events(self, timeout: float | None) -> None:
        """Wait for events, but never so long that somebody's time is over unseen."""
        # gunicorn 26 waits for 30 seconds at once when it stops.
        super().wait_for_and_dispatch_events(LOOK_SECONDS if timeout is None else min(timeout, LOOK_SECONDS))

    def hurry_pending(self) -> None:
        """Wait no longer than a moment for those who have sent nothing: the worker is about to stop."""
        latest = time.monotonic() + STOPPING_SECONDS
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout or latest, latest)

    def _watch(self, conn: Connection, then: Callable[[Any, Any], None]) -> None:
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(then, conn))
        conn.is_watched = True

    def _unwatch(self, conn: Connection) -> bool:
        """Watch a connection no longer, and tell whether it was watched.

        Events come several at once, and what is done for one, such as making room, can end the connection of another.
        """
        was_watched, conn.is_watched = conn.is_watched, False
        if was_watched:
            self.poller.unregister(conn.sock)
        return was_watched

    def _begin(self, conn: Connection) -> None:
        """Read the beginning of a request, or wait for it."""
        if not self._receive(conn):
            conn.set_timeout()
            self.pending_conns.append(conn)
            self._watch(conn, self.on_pending_socket_readable)

    def _receive(self, conn: Connection) -> bool:
        """Read what has come, and tell whether there was anything, be it the end; the poller does not watch it."""
        try:
            data = conn.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            self._end(conn)
            return True
        if data:
            self._add(conn, data)
        elif conn.received:
            # Who has closed one direction may still read the answer.
            conn.unreader.has_ended = True
            self._hand_over(conn)
        else:
            self._end(conn)
        return True

    def _receive_more(self, conn: Connection, client: Any) -> None:
        if self._unwatch(conn) and not self._receive(conn):
            self._watch(conn, self._receive_more)

    def _add(self, conn: Connection, data: bytes) -> None:
        if conn in self._reading:
            self._held += len(data)
        progress = conn.received.add(data)
        if progress is Progress.READY:
            self._hand_over(conn)
        elif progress is Progress.HEAD_TOO_LARGE:
            self._refuse(conn, _HEAD_TOO_LARGE)
        else:
            self._wait_for_more(conn)

    def _wait_for_more(self, conn: Connection) -> None:
        if conn not in self._reading:
            conn.due = time.monotonic() + REQUEST_SECONDS
            self._reading[conn] = None
            self._held += len(conn.received)
        if self._held > MAX_HELD:
            self._refuse(conn, _BUSY)
            return
        if conn.received.expects_continue:
            conn.received.expects_continue = False
            self._send(conn, _CONTINUE)
        self._watch(conn, self._receive_more)

    def _hand_over(self, conn: Connection) -> None:
        """Let a thread answer the request."""
        self._forget(conn)
        conn.unreader.give(bytes(conn.received.data))
        conn.received = ReceivedRequest()
        self.enqueue_req(conn)

    def _forget(self, conn: Connection) -> None:
        if conn in self._reading:
            del self._reading[conn]
            self._held -= len(conn.received)

    def _refuse(self, conn: Connection, answer: bytes) -> None:
        self._forget(conn)
        self._send(conn, answer)
        self._leave(conn)

    def _send(self, conn: Connection, answer: bytes) -> None:
        """Send some bytes if they can be sent at once, as they mostly can: nothing else is under way."""
        try:
            conn.sock.send(answer)
        except OSError as error:
            self.log.debug("a client could not be told: %s", error)

    def _leave(self, conn: Connection) -> None:
        """Close a connection so that the client can read the last answer (RFC 9112, section 9.6)."""
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            conn.due = time.monotonic() + LEAVING_SECONDS
            self._watch(conn, self._drain)
        except (OSError, ValueError):
            self._end(conn)
            return
        self._leaving[conn] = None

    def _drain(self, conn: Connection, client: Any) -> None:
        if not conn.is_watched:
            return
        try:
            data = client.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        conn.left_bytes += len(data)
        if not data or conn.left_bytes > LEAVING_BYTES:
            self._unwatch(conn)
            self._end(conn)

    def _end(self, conn: Connection) -> None:
        self._leaving.pop(conn, None)
        self.nr_conns -= 1
        conn.close()

    def _make_room(self) -> None:
        """Part with a connection that is worth least: who holds many open must not keep others out."""
        for waiting in (self.pending_conns, self._leaving, self._reading, self.keepalived_conns):
            oldest: Any = next(iter(waiting), None)
            if oldest is None:
                continue
            self._unwatch(oldest)
            if waiting is self._reading:
                self._forget(oldest)
                self._send(oldest, _BUSY)
            elif waiting is not self._leaving:
                waiting.remove(oldest)  # type: ignore[union-attr]  # both are queues
            self._end(oldest)
            return
