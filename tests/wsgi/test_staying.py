"""Threads that stay with a connection for a moment: what they wait for, and that nobody waits for them in vain."""

from __future__ import annotations

import http.client
import select
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from invites_wsgi.gunicorn_connections import Connection, WaitingWorker
from invites_wsgi.gunicorn_threads import StayingWorker
from tests.helpers import PATIENCE
from tests.wsgi.support import make_serve
from tests.wsgi.test_gunicorn import make_key

REQUEST = b"GET / HTTP/1.1\r\n\r\n"


@pytest.fixture
def connection() -> Iterator[Any]:
    """What a worker has of a client that is connected, and the client's end."""
    sock, client = socket.socketpair()
    made: Any = Connection(Config(), sock, "", "")
    made.client = client
    made.unreader.give(REQUEST)
    yield made
    sock.close()
    client.close()


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A worker; answering a request gives one of ``outcomes``."""
    made: Any = StayingWorker.__new__(StayingWorker)
    made._queued = deque([None])
    made.alive = True
    made.outcomes = [True] * 9
    made.handled = 0

    def handle(self: Any, conn: Any) -> Any:
        assert conn.unreader.chunk(len(REQUEST)).startswith(REQUEST)
        self.handled += 1
        return self.outcomes.pop(0)

    monkeypatch.setattr(WaitingWorker, "handle", handle)
    return made


def test_requests_that_follow_are_answered_at_once(
    worker: Any, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request after the other is answered without giving the connection back; then it is given back."""
    following = iter([REQUEST, REQUEST])

    class Poll:
        """As if the client sent its next request after each answer, and none after the third."""

        def register(self, sock: socket.socket, event: int) -> None:
            assert (sock, event) == (connection.sock, select.POLLIN)

        def poll(self, milliseconds: int) -> bool:
            connection.client.sendall(request := next(following, b""))
            return bool(request)

    monkeypatch.setattr(select, "poll", Poll)
    assert worker.handle(connection) is True
    assert worker.handled == 3
    assert not worker._queued


@pytest.mark.parametrize("sent", [b"", REQUEST[:-1], b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"])
def test_what_is_not_whole_is_left_to_the_event_loop(worker: Any, connection: Any, sent: bytes) -> None:
    """Part of a request stays in the socket, and no thread waits for the rest."""
    connection.client.sendall(sent)
    assert worker.handle(connection) is True
    assert worker.handled == 1
    connection.client.close()
    assert connection.sock.recv(99) == sent


def test_an_end_is_left_to_the_event_loop(worker: Any, connection: Any) -> None:
    """A client that hangs up is no next request."""
    connection.client.close()
    assert worker.handle(connection) is True
    assert worker.handled == 1


def test_nobody_stays_while_others_wait(worker: Any, connection: Any) -> None:
    """Where a connection waits for a thread, the next request on this one waits for its turn."""
    connection.client.sendall(REQUEST)
    worker._queued.append(None)
    assert worker.handle(connection) is True
    assert worker.handled == 1


def test_nobody_stays_when_the_worker_ends(worker: Any, connection: Any) -> None:
    """The event loop closes connections at the end, so it is given all of them."""
    connection.client.sendall(REQUEST)
    worker.alive = False
    assert worker.handle(connection) is True
    assert worker.handled == 1


def test_what_came_with_a_request_is_left_to_the_event_loop(worker: Any, connection: Any) -> None:
    """Of requests that came together the second has its turn after those of others."""
    connection.client.sendall(REQUEST)
    connection.unreader.give(REQUEST + b"G")
    connection.unreader.buf.write(b"G")
    assert worker.handle(connection) is True
    assert worker.handled == 1


@pytest.mark.parametrize("outcome", [False, object()])
def test_a_connection_that_ends_is_not_stayed_with(worker: Any, connection: Any, outcome: object) -> None:
    """One that is to be closed is not looked at again."""
    connection.client.sendall(REQUEST)
    worker.outcomes.insert(0, outcome)
    assert worker.handle(connection) is outcome
    assert worker.handled == 1


@pytest.mark.real_server
def test_one_thread_serves_many_connections(tmp_path: Path) -> None:
    """With a single thread, connections that are kept alive are answered in turn, and new ones too."""
    database = tmp_path / "invites.db"
    key = make_key(database)
    # Stores that wait for a server are served like that; this one is at hand.
    prelude = "from invites_wsgi import server\nserver._waits_well = lambda settings: False"
    with make_serve(tmp_path / "serve", database, options=["--threads", "1"], prelude=prelude) as server:
        kept = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE) for _ in range(5)]
        try:
            for _ in range(20):
                for one in kept:
                    one.request("GET", f"/invites_api?key={key}")
                for one in kept:
                    answer = one.getresponse()
                    assert (answer.status, answer.read()) == (201, b"")
        finally:
            for one in kept:
                one.close()
