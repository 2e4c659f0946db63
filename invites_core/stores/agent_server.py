"""The agent: serves the verbs of an invite store to whoever may connect to its socket.

Nothing that a peer does harms others: every wait has an end, every frame and every list a bound, and where there are
more connections than it keeps, those that are waited for longest make room.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from invites_core.errors import InvalidRequest, InvitesError, OutcomeUnknown, StorageBusy, StorageError
from invites_core.store import InviteStore
from invites_core.stores.agent_records import Malformed
from invites_core.stores.agent_wire import (
    MAX_PART,
    VERBS,
    FrameSocket,
    Welcome,
    decode_frame,
    decode_hello,
    decode_request,
    encode_error,
    encode_frame,
    encode_welcome,
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
    ) -> None:
        """Take the store.

        Args:
            store: Where the invites are; whoever can connect can call each of its verbs.
            log: Where it tells what went wrong; None: this module's logger.
            connections: How many connections are kept at most.
            frame_seconds: How long a frame may take, once it has begun, in either direction.
            idle_seconds: How long a connection is kept on which nothing is asked.
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
        self._complaints = _Complaints(self._log)
        self._stopping = False
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_writer.setblocking(False)

    def serve(self, listener: socket.socket) -> None:
        """Serve until `stop` is called, and then until what was begun is done; closes the listening socket."""
        listener.setblocking(False)
        with selectors.DefaultSelector() as selector, self._wake_reader, self._wake_writer:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while not self._stopping:
                for key, _ in selector.select():
                    if key.fileobj is listener:
                        self._accept(listener)
            listener.close()
            self._drain()

    def stop(self) -> None:
        """Let `serve` come to its end. May be called from any thread and from a signal handler, and twice."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake_writer.send(b".")

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
            wait, answer = self._frame_seconds, self._greet
            while (body := peer.frames.receive(wait=wait, within=self._frame_seconds)) is not None:
                peer.turn("working")
                for frame in answer(body):
                    peer.turn("sending")
                    peer.frames.send(frame, within=self._frame_seconds)
                peer.turn("waiting")
                wait, answer = self._idle_seconds, self._answer
        except Malformed as error:
            self._complaints.tell("ended a connection: %s", error)
            self._refuse(peer, InvalidRequest("agent", str(error)))
        except OSError as error:
            if peer.state == "sending":
                self._complaints.tell("a peer did not take its answer: %s", type(error).__name__)
        except Exception:  # noqa: BLE001 (it is logged, and all others are served on)
            self._log.exception("an error that should not be")
        finally:
            self._forget(peer)

    def _greet(self, body: bytes) -> Iterator[bytes]:
        """Give the answer to what a peer says first."""
        decode_hello(self._read(body))
        yield encode_frame(encode_welcome(Welcome(features=self._store.features, location=self._store.location)))

    @staticmethod
    def _refuse(peer: _Peer, error: InvitesError) -> None:
        """Say why, as far as the peer listens, and end the connection."""
        with contextlib.suppress(OSError):
            peer.frames.send(encode_frame({"error": encode_error(error)}), within=0.0)
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
            result = getattr(self._store, name)(**arguments)
            if verb.in_parts:
                while len(result) > MAX_PART:
                    yield encode_frame({"part": verb.result.encode(result[:MAX_PART])})
                    result = result[MAX_PART:]
            yield self._encode_result(name, arguments, result)
        except StorageError as error:
            self._log.error("%s: %s: %s", name, type(error).__name__, error)
            raise
        except InvitesError:
            raise
        except Exception as error:
            self._log.exception("%s: an error that should not be", name)
            if verb.changes:
                raise OutcomeUnknown("the agent failed") from error
            raise StorageError("the agent failed") from error

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


class _Complaints:
    """Says in the log what peers do wrong, and not oftener than is good for the log."""

    SECONDS: Final = 10.0

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._told_at = float("-inf")
        self._untold = 0

    def tell(self, message: str, *arguments: object) -> None:
        """Write a warning, or count it where there was one a moment ago."""
        with self._lock:
            now = time.monotonic()
            if now - self._told_at < self.SECONDS:
                self._untold += 1
                return
            untold, self._untold, self._told_at = self._untold, 0, now
        self._log.warning(message, *arguments, extra={"untold": untold or None})
