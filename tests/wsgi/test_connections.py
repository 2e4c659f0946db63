"""Clients that keep a connection and the service waiting keep nobody else waiting."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from invites_core import ApiKeys, Invites, KeyPolicy
from invites_core.stores.sqlite import SqliteStore
from tests.helpers import PATIENCE, wait_until
from tests.wsgi.support import ask_server, make_serve, read_json_log, send_raw
from tests.wsgi.test_gunicorn import exit_code_of, make_key

pytestmark = pytest.mark.real_server

MANY = 100
"""Connections: with eight threads, and gunicorn's own seconds for each, they would wait longer than any test does."""
JSON_LOG = '[log]\nformat = "json"\n'
MODULE = "import invites_wsgi.gunicorn_connections as connections"


@contextlib.contextmanager
def connected(port: int, *, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", port))
        yield connection


def make_head(key: str, *fields: str, method: str = "POST", path: str = "/invites_api") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: example.com", f"Authorization: Bearer {key}", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


def read_answer(connection: socket.socket) -> http.client.HTTPResponse:
    """Read one answer, with its body, of a connection that goes on."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65_536):
            received += chunk
    return received


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param("", id="nothing"),
        pytest.param("GET /invites_api HTTP/1.1\r\nX-Slow: ", id="half-a-head"),
        pytest.param("POST /invites_api HTTP/1.1\r\nContent-Length: 60000\r\n\r\n{", id="half-a-body"),
        pytest.param("POST /invites_api HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{", id="half-a-chunk"),
        pytest.param("GET /nothing HTTP/1.1\r\nConnection: close\r\n\r\n", id="answered-and-left-open"),
        pytest.param("GET /nothing HTTP/1.1\r\nContent-Length: 60000\r\n\r\n", id="body-that-nobody-reads"),
        pytest.param("GET /nothing HTTP/1.1\r\nContent-Length: 600000\r\n\r\n", id="large-body-that-nobody-reads"),
    ],
)
def test_who_keeps_a_connection_open_keeps_nobody_out(tmp_path: Path, database: Path, begun: str) -> None:
    """While many have begun something and do not go on, others are answered, on new connections and on old ones."""
    key = make_key(database)
    with make_serve(tmp_path / "serve", database) as server, contextlib.ExitStack() as stack:
        old = stack.enter_context(connected(server.port))
        old.sendall(make_head(key))
        assert read_answer(old).status == 201
        for _ in range(MANY):
            stack.enter_context(connected(server.port)).sendall(begun.encode())
        for _ in range(20):
            assert ask_server(server.port, "/invites_api", headers={"Authorization": f"Bearer {key}"}).status == 201
            old.sendall(make_head(key))
            assert read_answer(old).status == 201


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        pytest.param("Content-Length: 18", b'{"note": "slowly"}', id="length"),
        pytest.param("Transfer-Encoding: chunked", b'9\r\n{"note": \r\n9\r\n"slowly"}\r\n0\r\n\r\n', id="chunks"),
    ],
)
def test_a_slow_request_is_answered_when_it_is_whole(tmp_path: Path, database: Path, framing: str, body: bytes) -> None:
    """A request that comes byte by byte does what it would have done at once."""
    head = make_head(make_key(database), "Content-Type: application/json", "Accept: application/json", framing)
    with make_serve(tmp_path / "serve", database) as server, connected(server.port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head + body:
            connection.sendall(bytes((byte,)))
            time.sleep(0.001)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 201
        assert json.loads(answer.read())["note"] == "slowly"


def test_a_request_that_does_not_come_to_its_end_is_408(tmp_path: Path, database: Path) -> None:
    """Who has begun a request and does not end it in time is told so; who has sent nothing is told nothing."""
    prelude = f"{MODULE}\nconnections.REQUEST_SECONDS = 0.5\nconnections.Connection.set_timeout = lambda conn: "
    prelude += "setattr(conn, 'timeout', connections.time.monotonic() + 0.5)"
    server = make_serve(tmp_path / "serve", database, JSON_LOG, prelude=prelude)
    with server, connected(server.port) as begun, connected(server.port) as silent:
        begun.sendall(b"GET /invites_api HTTP/1.1\r\n")
        told = read_to_end(begun)
        assert told.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nConnection: close\r\n" in told
        assert read_to_end(silent) == b""
    assert [entry for entry in read_json_log(server) if entry["level"].lower() in ("warning", "error")] == []


def test_a_head_without_an_end_is_431(tmp_path: Path, database: Path) -> None:
    """A head that goes on and on is not collected for ever."""
    with make_serve(tmp_path / "serve", database) as server:
        told = send_raw(server.port, b"GET /invites_api HTTP/1.1\r\nX: " + b"x" * 70_000)
    assert told.startswith(b"HTTP/1.1 431 ")


def test_unfinished_requests_have_a_bound_together(tmp_path: Path, database: Path) -> None:
    """Who goes beyond what a worker holds of unfinished requests is told when to come again; others go on."""
    key = make_key(database)
    prelude = f"{MODULE}\nconnections.MAX_HELD = 20_000"
    with make_serve(tmp_path / "serve", database, prelude=prelude) as server, contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(connected(server.port)) for _ in range(2))
        body = b'{"note": "' + b"x" * 100 + b'"}' + b" " * 15_000
        head = make_head(key, f"Content-Length: {len(body)}", "Content-Type: application/json")
        first.sendall(head + body[:-1])
        # The second is read after the first, which one answer in between makes sure of.
        assert ask_server(server.port, "/invites_api", headers={"Authorization": f"Bearer {key}"}).status == 201
        second.sendall(head + body[:-1])
        refused = read_answer(second)
        assert (refused.status, refused.headers["Retry-After"], refused.headers["Connection"]) == (503, "1", "close")
        first.sendall(body[-1:])
        assert read_answer(first).status == 201
        with connected(server.port) as third:
            third.sendall(head + body)
            assert read_answer(third).status == 201


@pytest.mark.parametrize(
    "begun", [pytest.param(b"", id="nothing"), pytest.param(b"GET / HTTP/1.1\r\n", id="half-a-head")]
)
@pytest.mark.parametrize("others", [pytest.param(128, id="within-the-limit"), pytest.param(0, id="at-the-limit")])
def test_more_connections_than_descriptors(tmp_path: Path, database: Path, begun: bytes, others: int) -> None:
    """Where connections take all descriptors that there are, the oldest that do nothing make room for new ones."""
    prelude = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))\n"
    prelude += f"import invites_wsgi.server\ninvites_wsgi.server.OTHER_FILES = {others}"
    server = make_serve(tmp_path / "serve", database, JSON_LOG, prelude=prelude)
    with server, contextlib.ExitStack() as stack:
        [worker] = server.worker_pids()
        for _ in range(400):
            stack.enter_context(connected(server.port)).sendall(begun)
        for _ in range(10):
            assert ask_server(server.port, "/invites_api/openapi.json").status == 200
        assert server.worker_pids() == [worker]
    assert [entry for entry in read_json_log(server) if entry["level"].lower() in ("warning", "error")] == []


def test_requests_that_do_not_wait_for_answers_get_them_in_order(tmp_path: Path, database: Path) -> None:
    """Several requests at once on one connection, the last of them cut, are answered one after another."""
    key = make_key(database)
    create, show = make_head(key), make_head(key, method="GET", path="/invites_api/key")
    body = make_head(key, "Content-Length: 2", "Content-Type: application/json") + b"{}"
    with make_serve(tmp_path / "serve", database) as server, connected(server.port) as connection:
        connection.sendall(create + show + body + show[:20])
        stream = connection.makefile("rb")
        found = [read_status(stream) for _ in range(3)]
        connection.sendall(show[20:])
        assert [*found, read_status(stream)] == [201, 200, 201, 200]


def read_status(stream: socket.SocketIO | object) -> int:
    """Read one answer of several from one stream, and return its status."""
    readline, read = stream.readline, stream.read  # type: ignore[union-attr]  # a file, as makefile() returns it
    status = int(readline().split()[1])
    length = 0
    while (line := readline().strip()) != b"":
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    read(length)
    return status


def test_who_waits_to_be_told_to_go_on_is_told(tmp_path: Path, database: Path) -> None:
    """``Expect: 100-continue`` is answered before the body has come, once, and then the request is."""
    fields = ("Content-Type: application/json", "Content-Length: 2", "Expect: 100-continue")
    head = make_head(make_key(database), *fields)
    with make_serve(tmp_path / "serve", database) as server, connected(server.port) as connection:
        connection.sendall(head)
        assert connection.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 201 ")


def test_who_does_not_take_answers_is_left(tmp_path: Path, database: Path) -> None:
    """A client that asks for much and reads nothing loses its connection, and the log has no error."""
    store = SqliteStore(database)
    try:
        policy = KeyPolicy(scopes=frozenset({"create", "read"}))
        issued = ApiKeys(store).create("example.com", policy=policy)
        Invites(store).create_many(issued.key, 1000)
    finally:
        store.close()
    prelude = f"{MODULE}\nconnections.SEND_SECONDS = 0.2"
    ask = make_head(issued.combined, method="GET", path="/invites_api/invites?limit=1000")
    server = make_serve(tmp_path / "serve", database, JSON_LOG, prelude=prelude)
    with server, contextlib.ExitStack() as stack:
        [worker] = server.worker_pids()
        before = count_sockets(worker)
        for _ in range(10):
            stack.enter_context(connected(server.port, receive_bytes=4096)).sendall(ask * 12)
        wait_until(lambda: count_sockets(worker) > before)
        wait_until(lambda: count_sockets(worker) <= before)
        assert ask_server(server.port, "/healthz").status == 200
    assert [entry for entry in read_json_log(server) if entry["level"].lower() in ("warning", "error")] == []


def count_sockets(pid: int) -> int:
    """Count the sockets that a process has open."""
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(descriptor).startswith("socket:")
    return count


def test_who_sends_nothing_does_not_hold_up_the_end(tmp_path: Path, database: Path) -> None:
    """A service that is told to stop does not wait for connections on which nothing has come."""
    # gunicorn itself would wait for as long as the test does.
    prelude = f"{MODULE}\nconnections.Connection.set_timeout = lambda conn: "
    prelude += f"setattr(conn, 'timeout', connections.time.monotonic() + {2 * PATIENCE})"
    with make_serve(tmp_path / "serve", database, prelude=prelude) as server, connected(server.port) as silent:
        assert ask_server(server.port, "/healthz").status == 200
        os.kill(server.pid, signal.SIGTERM)
        assert exit_code_of(server.pid) == 0
        assert read_to_end(silent) == b""
