"""The agent: serves the verbs of an invite store to whoever may connect to its socket.

Nothing that a peer does harms others: every wait has an end, every frame and every list a bound, and where there are
more connections than it keeps, those that are waited for longest make room.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from invites_core.errors import InvalidRequest, InvitesError, OutcomeUnknown, StorageBusy, StorageError
from invites_core.store import InviteStore
from invites_core.stores.agent_records import Malformed
from invites_core.stores.agent_turns import WAIT_SECONDS, Turns, is_long
from invites_core.stores.agent_wire import (
    MAX_PART,
    MOST_PROBLEMS,
    VERBS,
    FrameSocket,
    Welcome,
    decode_frame,
    decode_hello,
    decode_request,
    encode_error,
    encode_frame,
    encode_welcome,
    shorten,
)

__all__ = ["AgentServer"]

MAX_CONNECTIONS: Final = 64
FRAME_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 600.0
GRACE_SECONDS: Final = 30.0
LATE_SECONDS: Final = 1.0
"""How long a peer that does not read its answer keeps its place where others want it."""
LARGE_FRAME: Final = 65_536


class _Peer:
    """A connection, and what its thread is about."""

    __slots__ = ("frames", "since", "state")

    def __init__(self, frames: FrameSocket) -> None:
        self.frames = frames
        self.turn("waiting")

    def turn(self, state: str) -> None:
        """Note that the thread now waits for the peer (``waiting``), works, or sends (``sending``)."""
        self.state = state
        self.since = time.monotonic()


class AgentServer:
    """Serves a store on a socket that listens, with a thread for each connection."""

    def __init__(
        self,
        store: InviteStore,
        *,
        log: logging.Logger | None = None,
        connections: int = MAX_CONNECTIONS,
        frame_seconds: float = FRAME_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        turn_seconds: float = WAIT_SECONDS,
    ) -> None:
        """Take the store.

        Args:
            store: Where the invites are; whoever can connect can call each of its verbs.
            log: Where it tells what went wrong; None: this module's logger.
            connections: How many connections are kept at most.
            frame_seconds: How long a request may take to come, once it has begun, and its whole answer to go.
            idle_seconds: How long a connection is kept on which nothing is asked.
            turn_seconds: How long what takes long waits for others of its kind.
        """
        self._store = store
        self._log = log or logging.getLogger(__name__)
        self._connections = connections
        self._frame_seconds = frame_seconds
        self._idle_seconds = idle_seconds
        self._peers: set[_Peer] = set()
        # Held for `_peers`; notified when one has gone.
        self._changed = threading.Condition()
        # A frame of JSON can grow twentyfold when it is read, before it turns out to be nonsense: one at a time.
        self._reading_large = threading.Lock()
        # Most of the connections are left to what is short, whatever else is asked for.
        self._long_turns = Turns(most_waiting=connections // 4, wait_seconds=turn_seconds)
        # It may read a whole database, and lists do not wait for that.
        self._looking_turns = Turns(most_waiting=1, wait_seconds=turn_seconds)
        self._complaints = _Complaints(self._log)
        self._stopping = False
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)

    def serve(self, listener: socket.socket) -> None:
        """Serve until `stop` is called, and then until what was begun is done; closes the listening socket."""
        listener.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while not self._stopping:
                for key, _ in selector.select():
                    if key.fileobj is listener:
                        self._accept(listener)
                    else:
                        self._wake_reader.recv(4096)
            listener.close()
            self._drain()

    def stop(self) -> None:
        """Let `serve` come to its end. May be called from any thread and from a signal handler, and twice."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake_writer.send(b".")

    @contextlib.contextmanager
    def stopping_at(self, *signals: signal.Signals) -> Iterator[None]:
        """Let these signals stop the server; for the main thread."""
        previous = {number: signal.signal(number, lambda *_: self.stop()) for number in signals}
        # Python runs the handler in this thread, between two steps of it. The wait for connections is one step, and
        # nothing would end it if the signal came right before it, or if the system gave it to another thread: so the
        # signal itself, in whatever thread it comes, writes to what the wait looks at.
        outer = signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            # Before the descriptor is closed, and its number somebody else's.
            signal.set_wakeup_fd(outer)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Give back what the server holds open, after `serve`."""
        self._wake_reader.close()
        self._wake_writer.close()

    def _drain(self) -> None:
        """Wait for those who are at work; the others are told that there is no more."""
        with self._changed:
            for peer in self._peers:
                # Whatever has come already is still read, done and answered; what comes later cannot be sent.
                peer.frames.shut_down(socket.SHUT_RD)
            if not self._changed.wait_for(lambda: not self._peers, GRACE_SECONDS):
                self._log.error("stopped while %d requests were under way", len(self._peers))

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            # It has gone already, or there are no descriptors left: those who wait make room.
            if not isinstance(error, BlockingIOError | ConnectionAbortedError):
                self._complaints.tell("cannot let anybody in: %s", os.strerror(error.errno or 0).lower())
                self._make_room()
                with self._changed:
                    self._changed.wait(0.1)
            return
        peer = _Peer(FrameSocket(connection))
        with self._changed:
            staying = sum(one.state != "leaving" for one in self._peers)
            is_full = len(self._peers) >= 2 * self._connections or (
                staying >= self._connections and not self._make_room()
            )
            if not is_full:
                self._peers.add(peer)
        if is_full:
            self._complaints.tell("all %d connections are at work", self._connections)
            self._refuse(peer, StorageBusy("the agent is busy"))
            return
        try:
            threading.Thread(target=self._serve_peer, args=(peer,), name="agent peer", daemon=True).start()
        except RuntimeError:
            self._complaints.tell("the system gives no more threads")
            self._forget(peer)

    def _make_room(self) -> bool:
        """End the connection that was waited for longest; False where all are at work."""
        now = time.monotonic()
        with self._changed:
            late = [peer for peer in self._peers if peer.state == "sending" and now - peer.since > LATE_SECONDS]
            idle = [peer for peer in self._peers if peer.state == "waiting"]
            victim = min(idle or late, key=lambda peer: peer.since, default=None)
            if victim is None:
                return False
            victim.turn("leaving")
            # A request that is there already is still done and answered.
            victim.frames.shut_down(socket.SHUT_RD if idle else socket.SHUT_RDWR)
            return True

    def _forget(self, peer: _Peer) -> None:
        peer.frames.close()
        with self._changed:
            self._peers.discard(peer)
            self._changed.notify_all()

    def _serve_peer(self, peer: _Peer) -> None:
        """Answer one peer until it goes, or does what is not agreed."""
        try:
            body = peer.frames.receive(by=time.monotonic() + self._frame_seconds)
            answer = self._greet
            while body is not None:
                peer.turn("working")
                self._send_all(peer, answer(body))
                peer.turn("waiting")
                answer = self._answer
                body = peer.frames.receive(by=time.monotonic() + self._idle_seconds, within=self._frame_seconds)
        except Malformed as error:
            self._complaints.tell("ended a connection: %s", error)
            self._refuse(peer, InvalidRequest("agent", str(error)))
        except OSError as error:
            if peer.state == "sending":
                self._complaints.tell("a peer did not take its answer: %s", type(error).__name__)
        except Exception:  # noqa: BLE001 (it is logged, and all others are served on)
            self._complaints.tell("an error that should not be", level=logging.ERROR, exc_info=True)
        finally:
            self._forget(peer)

    def _send_all(self, peer: _Peer, frames: Iterator[bytes]) -> None:
        """Send the frames of one answer, which have the time of one frame in all."""
        deadline = None
        for frame in frames:
            deadline = deadline or time.monotonic() + self._frame_seconds
            peer.turn("sending")
            peer.frames.send(frame, by=deadline)

    def _greet(self, body: bytes) -> Iterator[bytes]:
        """Give the answer to what a peer says first."""
        decode_hello(self._read(body))
        yield encode_frame(encode_welcome(Welcome(features=self._store.features, location=self._store.location)))

    @staticmethod
    def _refuse(peer: _Peer, error: InvitesError) -> None:
        """Say why, as far as the peer listens, and end the connection."""
        with contextlib.suppress(OSError):
            peer.frames.send(encode_frame({"error": encode_error(error)}), by=0.0)
        peer.frames.close()

    def _read(self, body: bytes) -> dict[str, Any]:
        with self._reading_large if len(body) > LARGE_FRAME else contextlib.nullcontext():
            return decode_frame(body)

    def _answer(self, body: bytes) -> Iterator[bytes]:
        """Do what a frame asks for, and give the frames of the answer.

        Raises:
            Malformed: It is no request; nothing was done.
        """
        try:
            name, arguments = decode_request(self._read(body))
            yield from self._do(name, arguments)
        except InvitesError as error:
            yield encode_frame({"error": encode_error(error)})

    def _do(self, name: str, arguments: Mapping[str, Any]) -> Iterator[bytes]:
        verb = VERBS[name]
        try:
            with self._turn(name, arguments):
                result = getattr(self._store, name)(**arguments)
                if name == "find_problems":
                    result = _cut_problems(result)
                parts = []
                if verb.in_parts:
                    *parts, result = _split(result)
                last = self._encode_result(name, arguments, result)
            # Outside of the turn, since the peer may take its time to receive them.
            for part in parts:
                yield encode_frame({"part": verb.result.encode(part)})
            yield last
        except StorageError as error:
            kind = type(error).__name__
            self._complaints.tell("%s: %s: %s", name, kind, error, about=(name, kind), level=logging.ERROR)
            raise
        except InvitesError:
            raise
        except Exception as error:
            self._complaints.tell(
                "%s: an error that should not be", name, about=(name,), level=logging.ERROR, exc_info=True
            )
            if verb.changes:
                raise OutcomeUnknown("the agent failed") from error
            raise StorageError("the agent failed") from error

    def _turn(self, name: str, arguments: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
        """Return the turn that a request is done in."""
        if not is_long(name, arguments):
            return contextlib.nullcontext()
        return (self._looking_turns if name == "find_problems" else self._long_turns).take()

    def _encode_result(self, name: str, arguments: Mapping[str, Any], result: Any) -> bytes:
        """Return the frame of a result; a part of a list that is longer than a frame is asked for anew, and shorter."""
        while True:
            try:
                return encode_frame({"result": VERBS[name].result.encode(result)})
            except Malformed:
                if name != "list_invites" or arguments["limit"] == 1:
                    raise
            arguments = {**arguments, "limit": arguments["limit"] // 2}
            result = self._store.list_invites(**arguments)


def _split(records: Sequence[Any]) -> list[Sequence[Any]]:
    """Cut a list into parts that each go into a frame; there is one at least."""
    return [records[start : start + MAX_PART] for start in range(0, max(1, len(records)), MAX_PART)]


class _Complaints:
    """Says in the log what goes wrong, and of each kind not oftener than is good for the log."""

    SECONDS: Final = 10.0

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        # By the message as it stands in the code, and what it is about: a verb, a class of errors. So they are few.
        self._told: dict[tuple[str, ...], tuple[float, int]] = {}

    def tell(
        self,
        message: str,
        *arguments: object,
        about: tuple[str, ...] = (),
        level: int = logging.WARNING,
        exc_info: bool = False,
    ) -> None:
        """Write it, or count it where there was one of its kind a moment ago.

        The next that is written has the field ``untold``: how many of its kind were not.
        """
        kind = (message, *about)
        with self._lock:
            now = time.monotonic()
            told_at, untold = self._told.get(kind, (float("-inf"), 0))
            if now - told_at < self.SECONDS:
                self._told[kind] = (told_at, untold + 1)
                return
            self._told[kind] = (now, 0)
        self._log.log(level, message, *arguments, exc_info=exc_info, extra={"untold": untold or None})


def _cut_problems(problems: Sequence[str]) -> Sequence[str]:
    """Return as many problems as an answer tells, the last of which says how many more there are."""
    if len(problems) <= MOST_PROBLEMS:
        return list(map(shorten, problems))
    shown = problems[: MOST_PROBLEMS - 1]
    return [*map(shorten, shown), f"and {len(problems) - len(shown)} more problems"]
