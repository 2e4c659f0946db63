"""A call to an agent has one deadline, and so has each answer of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from invites_core.errors import OutcomeUnknown, StorageError
from invites_core.stores import agent, agent_server
from invites_core.stores.agent import AgentStore
from invites_core.stores.agent_server import AgentServer
from invites_core.stores.agent_wire import HELLO, FrameSocket
from invites_core.stores.memory import MemoryStore
from tests.helpers import make_invite
from tests.stores.agents import frame

TIMEOUT = 4.0
REDEMPTION = {"token": "t", "redemption_id": "r", "redeemer": None, "redeemed_at": 0, "released_at": None}


class Clock:
    """The time that sockets spend."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SlowSocket:
    """An agent at the other end: whatever is done with it takes a part of the time that it may take."""

    def __init__(self, clock: Clock, part: float, answers: list[bytes]) -> None:
        self._clock = clock
        self._part = part
        self._answers = answers
        self._left = b""
        self._timeout = 0.0

    def settimeout(self, seconds: float) -> None:
        self._timeout = seconds

    def _spend(self) -> None:
        self._clock.now += self._timeout * self._part

    def connect(self, path: str) -> None:
        self._spend()

    def sendall(self, data: bytes) -> None:
        self._spend()
        is_hello = json.loads(data[4:]) == HELLO
        self._left += frame({**HELLO, "features": [], "location": "x"}) if is_hello else b"".join(self._answers)

    def recv(self, size: int) -> bytes:
        self._spend()
        if not self._left:
            raise TimeoutError
        piece, self._left = self._left[: min(size, 100)], self._left[min(size, 100) :]
        return piece

    def shutdown(self, how: int) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that deadlines are of."""
    clock = Clock()
    monkeypatch.setattr("invites_core.stores.agent.time.monotonic", clock)
    return clock


HISTORY = [frame({"part": [REDEMPTION] * 3})] * 3 + [frame({"result": []})]
CALLS: dict[str, tuple[list[bytes], Callable[[AgentStore], object]]] = {
    "ping": ([frame({"result": None})], AgentStore.ping),
    "history": (HISTORY, lambda store: store.list_redemptions("t")),
    "change": ([frame({"result": None})], lambda store: store.add_invites([make_invite()])),
}


@pytest.mark.parametrize("part", [0.01, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("name", CALLS)
def test_all_that_a_call_does_is_within_its_time(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, name: str, part: float
) -> None:
    """To connect, to greet, to ask and to receive take no longer together than one call may take."""
    answers, call = CALLS[name]
    made = SlowSocket(clock, 0.0, answers), SlowSocket(clock, part, answers)
    sockets = iter(made)
    monkeypatch.setattr("invites_core.stores.agent.socket.socket", lambda *_: next(sockets))
    store = AgentStore(tmp_path / "agent.sock", timeout=TIMEOUT)
    began = clock.now
    with pytest.MonkeyPatch.context() as context:
        context.setattr(agent, "CONNECT_SECONDS", 100.0)
        try:
            call(store)
        except (StorageError, OutcomeUnknown):
            assert part > 0.5
    # Where the time is over, each of the few steps that are left has a moment more.
    assert clock.now - began <= TIMEOUT + 0.05


def test_an_agent_that_does_not_greet_is_given_up_early(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that may take an hour does not wait so long for an agent that hangs."""
    sockets = iter([SlowSocket(clock, 0.0, []), SlowSocket(clock, 1.0, [])])
    monkeypatch.setattr("invites_core.stores.agent.socket.socket", lambda *_: next(sockets))
    store = AgentStore(tmp_path / "agent.sock")
    began = clock.now
    with pytest.raises(StorageError):
        store.find_problems()
    assert clock.now - began < 2 * agent.CONNECT_SECONDS


def test_an_answer_in_parts_has_one_deadline(clock: Clock) -> None:
    """A peer that takes each part of an answer just in time is given up when the time of one frame is over."""
    sent: list[float] = []

    class Taking(FrameSocket):
        def send(self, frame: bytes, *, by: float) -> None:
            sent.append(by - clock.now)
            clock.now += 0.75

    peer: Any = agent_server._Peer(Taking(SlowSocket(clock, 0.0, [])))  # type: ignore[arg-type]  # it has what is used
    server = AgentServer(MemoryStore(), frame_seconds=2.0)
    with server._wake_reader, server._wake_writer:
        server._send_all(peer, iter([b"one", b"two", b"three"]))
    assert sent == [2.0, 1.25, 0.5]
