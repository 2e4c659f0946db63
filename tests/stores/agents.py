"""Agents for tests: in threads of this process, and peers that do what no client would."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from invites_core.store import InviteStore
from invites_core.stores.agent_guard import GuardedInvites
from invites_core.stores.agent_server import AgentServer
from invites_core.stores.agent_socket import listening
from invites_core.stores.agent_wire import HELLO
from tests.helpers import PATIENCE

FAR_FUTURE: Final = datetime(9999, 12, 31, tzinfo=UTC)
"""Where the clock of these agents stands: no time in a test is still to come."""


@contextlib.contextmanager
def serving(store: InviteStore, path: Path, *, hosts: frozenset[str] | None = None, **options: Any) -> Iterator[None]:
    """Let an agent in a thread of this process serve a store on a socket, to hosts or to all."""
    options.setdefault("log", logging.getLogger("tests.agent"))
    guarded = GuardedInvites(store, serves=lambda host: hosts is None or host in hosts, clock=lambda: FAR_FUTURE)
    with contextlib.closing(AgentServer(guarded, **options)) as server, listening(path) as listener:
        thread = threading.Thread(target=server.serve, args=(listener,), name="agent", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the agent did not come to an end"


class Stranger:
    """A peer of an agent that sends what it likes."""

    def __init__(self, path: Path, *, greets: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Without a time limit, as the system then waits where it would refuse while the agent lets others in.
        self.socket.connect(str(path))
        self.socket.settimeout(PATIENCE)
        if greets:
            self.send(HELLO)
            assert self.receive()["version"] == HELLO["version"]

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, content: object) -> None:
        """Send something of JSON as a frame."""
        self.send_body(json.dumps(content).encode())

    def send_body(self, body: bytes) -> None:
        self.socket.sendall(len(body).to_bytes(4, "big") + body)

    def ask(self, verb: str, **arguments: object) -> Any:
        """Ask for a verb with arguments as they stand in JSON, and return the answer."""
        self.send({"verb": verb, "arguments": arguments})
        return self.receive()

    def receive(self) -> Any:
        """Return what is in the next frame, or None where the agent has hung up."""
        header = self._receive(4)
        return None if header is None else json.loads(self._receive(int.from_bytes(header, "big")) or b"")

    def _receive(self, size: int) -> bytes | None:
        received = b""
        while len(received) < size:
            try:
                chunk = self.socket.recv(size - len(received))
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                return None
            received += chunk
        return received


@contextlib.contextmanager
def fake_agent(path: Path, *answers: bytes | None) -> Iterator[list[bytes]]:
    """Listen where an agent would; to each request, on whatever connection, send the next bytes, or hang up for None.

    Gives the bodies of the requests that came.
    """
    came: list[bytes] = []
    left = list(answers)

    def serve(listener: socket.socket) -> None:
        while left:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                talk(connection)

    def talk(connection: socket.socket) -> None:
        while (body := _receive_body(connection)) is not None:
            if json.loads(body) == HELLO:
                connection.sendall(frame({**HELLO, "features": [], "location": "nowhere"}))
                continue
            came.append(body)
            answer = left.pop(0)
            if answer is None:
                return
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield came
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE)
    assert not thread.is_alive()


def frame(content: object) -> bytes:
    """Return something of JSON as a frame."""
    body = json.dumps(content).encode()
    return len(body).to_bytes(4, "big") + body


def _receive_body(connection: socket.socket) -> bytes | None:
    received = b""
    while len(received) < 4 or len(received) < 4 + int.from_bytes(received[:4], "big"):
        chunk = connection.recv(65_536)
        if not chunk:
            return None
        received += chunk
    return received[4:]
