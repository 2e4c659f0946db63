"""The connection to Prosody before servers that fail: what is certain, what is not, and that it goes on afterwards."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from invites_core.errors import OutcomeUnknown, StorageBusy, StorageError
from invites_core.stores import prosody_socket
from invites_core.stores.prosody_lua import format_prelude
from invites_core.stores.prosody_prelude import PRELUDE
from invites_core.stores.prosody_socket import ProsodySocket
from invites_core.stores.prosody_stream import StreamResult
from tests.helpers import PATIENCE, wait_until
from tests.processes import Fork

OPENING = (
    b"<?xml version='1.0'?>"
    b"<stream:stream xmlns:stream='http://etherx.jabber.org/streams' xmlns='xmpp:prosody.im/admin' id='' version='1.0'>"
)
RESULT = b"<repl-result>Result: nil</repl-result>"
END_OF_LINE = b"</repl-input>"

Script = Callable[["Peer"], object]


class Peer:
    """The server's end of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.left = b""

    def read_line(self) -> bytes:
        """Return a line, or what came before the end."""
        while END_OF_LINE not in self.left:
            piece = self.connection.recv(65536)
            if not piece:
                return self.left
            self.left += piece
        line, _, self.left = self.left.partition(END_OF_LINE)
        return line

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def greet(self) -> None:
        """Open the stream and take the prelude."""
        lines = len(format_prelude(PRELUDE))
        for _ in range(lines):
            self.read_line()
        self.send(OPENING + lines * RESULT)

    def echo(self) -> None:
        """Answer lines to the end of the connection."""
        while line := self.read_line():
            self.send(b"<repl-result>" + line[-4:] + b"</repl-result>")


class FakeProsody:
    """Listens where Prosody would, and runs a script for each connection; the last one for all that follow."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scripts: list[Script] = []
        self.connections = 0
        self.opened: list[socket.socket] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(os.fspath(path))
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            script = self.scripts[min(self.connections, len(self.scripts) - 1)]
            self.connections += 1
            self.opened.append(connection)
            threading.Thread(target=self.serve, args=(connection, script), daemon=True).start()

    def serve(self, connection: socket.socket, script: Script) -> None:
        try:
            script(Peer(connection))
        except OSError:
            pass
        connection.close()

    def close(self) -> None:
        if self.listener.fileno() < 0:
            return
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.opened:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def serve_well(peer: Peer) -> None:
    peer.greet()
    peer.echo()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeProsody]:
    """A server without scripts."""
    server = FakeProsody(tmp_path / "p.sock")
    yield server
    server.close()


@pytest.fixture
def link(fake: FakeProsody) -> Iterator[ProsodySocket]:
    """What speaks to the server."""
    opened = ProsodySocket(fake.path, timeout=PATIENCE)
    yield opened
    opened.close()


def test_one_connection_serves_many_lines(fake: FakeProsody, link: ProsodySocket) -> None:
    """Threads share the connection, and each gets its own answer."""
    fake.scripts = [serve_well]
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        answers[number] = [link.run(f"{number:04}", changes=True).text for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [f"{number:04}"] * 20 for number in range(8)}
    assert fake.connections == 1


def drop_at_once(peer: Peer) -> None:
    pass


def drop_in_the_opening(peer: Peer) -> None:
    peer.send(OPENING[:20])


def drop_after_the_prelude(peer: Peer) -> None:
    peer.read_line()
    peer.send(OPENING)


def refuse_the_prelude(peer: Peer) -> None:
    peer.send(OPENING)
    while peer.read_line():
        peer.send(b"<repl-result type='error'>No module handled this query.</repl-result>")


def speak_http(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    peer.echo()


def declare_entities(peer: Peer) -> None:
    peer.send(b"<!DOCTYPE x [<!ENTITY a 'b'>]>" + OPENING + RESULT)
    peer.echo()


@pytest.mark.parametrize(
    "script",
    [drop_at_once, drop_in_the_opening, drop_after_the_prelude, refuse_the_prelude, speak_http, declare_entities],
)
def test_failure_before_the_line_changes_nothing(fake: FakeProsody, link: ProsodySocket, script: Script) -> None:
    """What fails before the line was sent is a StorageError that is certain, and the next call is served."""
    fake.scripts = [script, serve_well]
    with pytest.raises(StorageError) as caught:
        link.run("line", changes=True)
    assert type(caught.value) is StorageError
    assert caught.value.retry_after > 0
    assert "\n" not in str(caught.value)
    assert link.run("next", changes=True) == StreamResult("next", False)


def take_the_line(peer: Peer) -> None:
    peer.greet()
    peer.read_line()


def answer_in_part(peer: Peer) -> None:
    take_the_line(peer)
    peer.send(b"<repl-output>x</repl-output><repl-result>Res")


def answer_with_garbage(peer: Peer) -> None:
    take_the_line(peer)
    peer.send(b"\xff<<<")
    peer.echo()


def end_the_stream(peer: Peer) -> None:
    take_the_line(peer)
    peer.send(b"</stream:stream>")
    peer.echo()


@pytest.mark.parametrize("script", [take_the_line, answer_in_part, answer_with_garbage, end_the_stream])
@pytest.mark.parametrize(("changes", "error"), [(True, OutcomeUnknown), (False, StorageError)])
def test_failure_after_the_line_is_unknown(
    fake: FakeProsody, link: ProsodySocket, script: Script, changes: bool, error: type[StorageError]
) -> None:
    """Once the line was sent, a change may have happened and a question has not been answered."""
    fake.scripts = [script, serve_well]
    with pytest.raises(StorageError) as caught:
        link.run("line", changes=changes)
    assert type(caught.value) is error
    assert link.run("next", changes=True) == StreamResult("next", False)


def test_line_that_was_not_read_to_its_end_changes_nothing(fake: FakeProsody, link: ProsodySocket) -> None:
    """A connection that is lost in the middle of a line ran none of it."""

    def read_a_part(peer: Peer) -> None:
        peer.greet()
        peer.connection.recv(100)

    fake.scripts = [read_a_part, serve_well]
    with pytest.raises(StorageError) as caught:
        link.run("x" * 5_000_000, changes=True)
    assert type(caught.value) is StorageError
    assert link.run("next", changes=True).text == "next"


def test_server_that_hangs_is_given_up(fake: FakeProsody) -> None:
    """After the time limit a change is unknown; those who wait for their turn changed nothing."""
    hung = threading.Event()

    def hang(peer: Peer) -> None:
        peer.greet()
        peer.read_line()
        hung.set()
        peer.connection.recv(1)

    fake.scripts = [hang, serve_well]
    link = ProsodySocket(fake.path, timeout=1.0)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            link.run("line", changes=True)
        except StorageError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert hung.wait(PATIENCE)
    link._timeout = 0.1
    with pytest.raises(StorageBusy):
        link.run("next", changes=True)
    thread.join()
    assert [type(error) for error in errors] == [OutcomeUnknown]
    link._timeout = PATIENCE
    assert link.run("next", changes=True).text == "next"
    link.close()


def test_server_that_never_greets_is_given_up(
    fake: FakeProsody, link: ProsodySocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes connections and says nothing costs the time limit of connecting, and nothing was changed."""
    monkeypatch.setattr(prosody_socket, "CONNECT_SECONDS", 0.1)
    fake.scripts = [lambda peer: peer.connection.recv(100_000) and peer.read_line() and peer.read_line()]
    with pytest.raises(StorageError, match="did not answer in time") as caught:
        link.run("line", changes=True)
    assert type(caught.value) is StorageError


def test_answer_of_a_call_that_was_given_up_is_nobodys(fake: FakeProsody) -> None:
    """A late answer is not taken for that of the next call."""
    late = threading.Event()

    def answer_late(peer: Peer) -> None:
        peer.greet()
        peer.read_line()
        assert late.wait(PATIENCE)
        peer.send(b"<repl-result>late</repl-result>")
        peer.echo()

    fake.scripts = [answer_late, serve_well]
    link = ProsodySocket(fake.path, timeout=0.2)
    with pytest.raises(OutcomeUnknown):
        link.run("line", changes=True)
    late.set()
    link._timeout = PATIENCE
    assert link.run("next", changes=True).text == "next"
    link.close()


def test_result_that_nobody_asked_for_ends_the_connection(fake: FakeProsody, link: ProsodySocket) -> None:
    """What comes unasked is not taken for the answer of the next line: another connection is made."""
    sent = threading.Event()

    def send_twice(peer: Peer) -> None:
        peer.greet()
        peer.read_line()
        peer.send(b"<repl-result>line</repl-result><repl-result>more</repl-result>")
        sent.set()
        peer.echo()

    fake.scripts = [send_twice, serve_well]
    assert link.run("line", changes=True).text == "line"
    assert sent.wait(PATIENCE)
    assert link.run("next", changes=True).text == "next"
    assert fake.connections == 2


def test_spaces_that_keep_a_connection_alive_are_read(fake: FakeProsody, link: ProsodySocket) -> None:
    """What Prosody sends on a quiet connection does no harm, and the connection stays."""

    def send_spaces(peer: Peer) -> None:
        peer.greet()
        peer.send(b" " * 10)
        peer.echo()

    fake.scripts = [send_spaces]
    assert [link.run(f"{number:04}", changes=True).text for number in range(3)] == ["0000", "0001", "0002"]
    assert fake.connections == 1


def test_restarted_server_is_found_again(fake: FakeProsody, link: ProsodySocket, tmp_path: Path) -> None:
    """While nobody listens there is an error that names the socket; then the next call is served, without an error."""
    fake.scripts = [serve_well]
    link.run("line", changes=True)
    fake.close()
    with pytest.raises(StorageError, match=f"cannot be reached at {fake.path}: Connection refused") as caught:
        link.run("line", changes=True)
    assert type(caught.value) is StorageError
    fake.path.unlink()
    with pytest.raises(StorageError, match="No such file"):
        link.run("line", changes=True)
    again = FakeProsody(tmp_path / "p.sock")
    again.scripts = [serve_well]
    assert link.run("next", changes=True).text == "next"
    again.close()


def test_connection_that_was_closed_meanwhile_is_no_error(fake: FakeProsody, link: ProsodySocket) -> None:
    """Where the server closed a quiet connection, the next call makes another one by itself."""
    closing = threading.Event()

    def close_after_one(peer: Peer) -> None:
        peer.greet()
        peer.read_line()
        peer.send(b"<repl-result>line</repl-result>")
        peer.connection.shutdown(socket.SHUT_RDWR)
        closing.set()

    fake.scripts = [close_after_one, serve_well]
    assert link.run("line", changes=True).text == "line"
    assert closing.wait(PATIENCE)
    assert link.run("next", changes=True).text == "next"


def test_child_has_a_connection_of_its_own(fake: FakeProsody, link: ProsodySocket, fork: Fork) -> None:
    """After a fork the child opens its own connection, and the parent's still works."""
    fake.scripts = [serve_well]
    assert link.run("line", changes=True).text == "line"
    assert fork(lambda: link.run("fork", changes=True).text).result() == "fork"
    assert link.run("next", changes=True).text == "next"
    wait_until(lambda: fake.connections == 2)
