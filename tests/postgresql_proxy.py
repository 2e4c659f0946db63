"""A proxy in front of a PostgreSQL server that cuts, swallows or holds up what is said at a chosen message.

It reads the framing of the protocol (PostgreSQL's documentation, 55.7), so that "the third message of the server" and
"before the answer to COMMIT" can be said exactly::

    with PostgresqlProxy(server.url) as proxy:
        store = open_store(proxy.url)
        proxy.fail("cut", after_sent=3)

Nothing here needs pytest.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self

from psycopg.conninfo import conninfo_to_dict

__all__ = ["Fault", "Message", "PostgresqlProxy"]

How = Literal["cut", "reset", "swallow", "error"]
Side = Literal["client", "server"]

_LENGTH: Final = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the protocol.

    Attributes:
        side: Who sent it.
        kind: Its type's letter; empty for the first message of a client, which has none.
        body: What is in it.
    """

    side: Side
    kind: str
    body: bytes

    def encode(self) -> bytes:
        """Return it as it was sent."""
        return self.kind.encode("ascii") + _LENGTH.pack(len(self.body) + 4) + self.body


@dataclass(slots=True)
class Fault:
    """What is to go wrong, and when.

    Attributes:
        how: ``cut``: both connections are closed; ``reset``: the same with a TCP reset; ``swallow``: nothing of this
            connection is passed on from then on, and none of it is closed; ``error``: the server's connection is
            closed, so that it undoes what was not committed, and the client gets an error of ``code`` and the end.
        at: Which message it happens at; that message is not passed on.
        for_good: Whether new connections are refused from then on.
        code: The SQLSTATE of ``error``.
        reached: Whether it has happened.
    """

    how: How
    at: Callable[[Message], bool]
    for_good: bool = False
    code: str = "57P01"
    reached: bool = False


class PostgresqlProxy:
    """Listens on 127.0.0.1 and passes on to a server what comes, until it is told otherwise.

    Attributes:
        url: The server's URL with the proxy's address in it.
    """

    def __init__(self, url: str) -> None:
        """Take the URL of the server, with a host and a port of TCP."""
        parts = conninfo_to_dict(url)
        self._server = (str(parts["host"]), int(str(parts["port"])))
        self._listener = socket.create_server(("127.0.0.1", 0))
        address = f"{self._server[0]}:{self._server[1]}"
        self.url = url.replace(address, f"127.0.0.1:{self._listener.getsockname()[1]}")
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._refuses = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Shutting a listener down wakes whoever waits on it; closing it alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def fail(self, fault: Fault) -> None:
        """Let something go wrong from now on, in place of what was to go wrong before."""
        with self._lock:
            self._fault = fault

    def fail_at(self, how: How, number: int, *, side: Side | None = None, for_good: bool = False) -> Fault:
        """Let something go wrong at the message of this number from now on, from 1, of one side or of both."""
        count = iter(range(1, 1_000_000))
        fault = Fault(how, lambda message: side in (None, message.side) and next(count) == number, for_good)
        self.fail(fault)
        return fault

    def heal(self) -> None:
        """Let nothing go wrong any more, and take connections."""
        with self._lock:
            self._fault = None
            self._refuses = False

    def refuse(self) -> None:
        """Refuse new connections, and cut those that are there."""
        with self._lock:
            self._refuses = True
        self.cut_all()

    def cut_all(self) -> None:
        """Cut the connections that are there."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                client.close()
                continue
            try:
                server = socket.create_connection(self._server, timeout=10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append((client, server))
            self._start(lambda client=client, server=server: self._pass_on("client", client, server))  # type: ignore[misc]
            self._start(lambda client=client, server=server: self._pass_on("server", server, client))  # type: ignore[misc]

    def _pass_on(self, side: Side, source: socket.socket, target: socket.socket) -> None:
        """Pass the messages of one side on until it ends, or something goes wrong."""
        with contextlib.suppress(OSError):
            for message in _read_messages(side, source):
                fault = self._match(message)
                if fault is not None and fault.how == "swallow":
                    # Both directions of this connection are silent from now on, and nobody is told.
                    _drain(source)
                    return
                if fault is not None:
                    self._break(fault, *((source, target) if side == "client" else (target, source)))
                    return
                target.sendall(message.encode())
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _match(self, message: Message) -> Fault | None:
        with self._lock:
            fault = self._fault
            if fault is None or fault.reached or not fault.at(message):
                return None
            fault.reached = True
            self._refuses = self._refuses or fault.for_good
            return fault

    def _break(self, fault: Fault, client: socket.socket, server: socket.socket) -> None:
        if fault.how == "error":
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            fields = (b"SFATAL", b"VFATAL", b"C" + fault.code.encode("ascii"), b"Minjected", b"")
            with contextlib.suppress(OSError):
                client.sendall(Message("server", "E", b"\0".join(fields) + b"\0").encode())
        for one in (client, server):
            with contextlib.suppress(OSError):
                if fault.how != "reset":
                    one.shutdown(socket.SHUT_RDWR)
                    continue
                # Wakes who reads it, and says nothing to the other side before the reset does.
                one.shutdown(socket.SHUT_RD)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()


def _read_messages(side: Side, source: socket.socket) -> Iterator[Message]:
    # A client may ask for encryption before its first message; the answer is a single letter, so such requests are not
    # for this proxy: URLs through it say sslmode=disable.
    is_first = side == "client"
    while True:
        kind = b"" if is_first else _read(source, 1)
        length = _read(source, 4)
        if len(length) < 4:
            return
        body = _read(source, _LENGTH.unpack(length)[0] - 4)
        is_first = False
        yield Message(side, kind.decode("ascii"), body)


def _read(source: socket.socket, count: int) -> bytes:
    """Return so many bytes, fewer at the end; not through a file of the socket, which would keep that from closing."""
    read = b""
    while len(read) < count and (part := source.recv(count - len(read))):
        read += part
    return read


def _drain(source: socket.socket) -> None:
    while source.recv(65_536):
        pass
