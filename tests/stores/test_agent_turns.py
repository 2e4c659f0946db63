"""What takes long does not keep an agent from what is short, whoever asks for it and how often."""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from invites_core.errors import StorageBusy
from invites_core.store import InvitePage, Sweep
from invites_core.stores.agent import LONG_CONNECTIONS, AgentStore
from invites_core.stores.agent_turns import FEW_INVITES, Turns
from invites_core.stores.memory import MemoryStore
from tests.helpers import NOON, PATIENCE, make_invite, wait_until
from tests.service.worlds import HOST
from tests.stores.agents import Stranger, serving

LONG: dict[str, Callable[[Any], object]] = {
    "list": lambda store: store.list_invites(HOST, now=NOON, limit=1),
    "history": lambda store: store.list_redemptions("x" * 24),
    "purge": lambda store: store.purge_invites(before=NOON, limit=1),
    "sweep": lambda store: store.revoke_invites_from("command", by="x", host=HOST, now=NOON, limit=1),
    "batch": lambda store: store.add_invites([make_invite() for _ in range(FEW_INVITES + 1)]),
}
LIST = {"host": HOST, "now": 0, "state": None, "source": None, "limit": 1, "cursor": None}


class SlowStore(MemoryStore):
    """Holds up what takes long until it is opened, and counts how much of it is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = threading.Event()
        self.under_way = 0
        self.most_under_way = 0
        self._counting = threading.Lock()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        with self._counting:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            assert self.opened.wait(PATIENCE)
            yield
        finally:
            with self._counting:
                self.under_way -= 1

    def find_problems(self) -> list[str]:
        with self._held():
            return []

    def list_invites(self, *arguments: Any, **options: Any) -> InvitePage:
        with self._held():
            return super().list_invites(*arguments, **options)

    def list_redemptions(self, token: str) -> Any:
        with self._held():
            return super().list_redemptions(token)

    def purge_invites(self, **options: Any) -> Sweep:
        with self._held():
            return super().purge_invites(**options)

    def revoke_invites_from(self, *arguments: Any, **options: Any) -> Sweep:
        with self._held():
            return super().revoke_invites_from(*arguments, **options)

    def add_invites(self, invites: Any, **options: Any) -> None:
        with self._held() if len(invites) > FEW_INVITES else contextlib.nullcontext():
            super().add_invites(invites, **options)


def use_one(store: AgentStore) -> None:
    """Make an invite and use it."""
    invite = make_invite()
    store.add_invites([invite])
    result = store.redeem_invite(invite.token, redemption_id="r", redeemer=None, username=None, host=None, now=NOON)
    assert result.outcome == "redeemed"


def answered(strangers: list[Stranger]) -> list[Stranger]:
    """Return those who have something to receive."""
    readable = select.select([stranger.socket for stranger in strangers], [], [], 0)[0]
    return [stranger for stranger in strangers if stranger.socket in readable]


def test_long_lists_leave_connections_to_who_makes_and_uses_invites(socket_path: Path) -> None:
    """As many peers as there are connections ask for lists that come to no end; invites are made and used meanwhile."""
    slow = SlowStore()
    with serving(slow, socket_path, connections=8, turn_seconds=PATIENCE), contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(Stranger(socket_path)) for _ in range(8)]
        for stranger in strangers:
            stranger.send({"verb": "list_invites", "arguments": LIST})
        # One list is under way and two wait; the others are told.
        wait_until(lambda: len(answered(strangers)) == 5)
        refused = answered(strangers)
        assert {stranger.receive()["error"]["class"] for stranger in refused} == {"StorageBusy"}
        store = AgentStore(socket_path, timeout=PATIENCE)
        for _ in range(20):
            use_one(store)
        slow.opened.set()
        waiting = [stranger for stranger in strangers if stranger not in refused]
        assert [stranger.receive().keys() for stranger in waiting] == [{"result"}] * 3
        store.close()
    assert slow.most_under_way == 1


@pytest.mark.parametrize("first", LONG)
def test_what_takes_long_is_done_one_at_a_time(socket_path: Path, first: str) -> None:
    """Lists, histories, sweeps and large batches wait for each other, each for a bounded time."""
    slow = SlowStore()
    with serving(slow, socket_path, turn_seconds=0.05):
        store = AgentStore(socket_path, timeout=PATIENCE)
        began = threading.Thread(target=LONG[first], args=(store,))
        began.start()
        wait_until(lambda: slow.under_way == 1)
        for ask in LONG.values():
            with pytest.raises(StorageBusy, match="take too long"):
                ask(store)
        use_one(store)
        slow.opened.set()
        began.join(PATIENCE)
        for ask in LONG.values():
            ask(store)
        store.close()
    assert slow.most_under_way == 1


def test_lists_do_not_wait_for_a_look_at_all_the_data(socket_path: Path) -> None:
    """A search for problems, which may take an hour, is waited for by another search alone."""
    slow = SlowStore()
    with serving(slow, socket_path, turn_seconds=0.05):
        store = AgentStore(socket_path, timeout=PATIENCE)
        looking = threading.Thread(target=store.find_problems)
        looking.start()
        wait_until(lambda: slow.under_way == 1)
        with pytest.raises(StorageBusy):
            store.find_problems()
        listing = threading.Thread(target=partial(LONG["list"], store))
        listing.start()
        wait_until(lambda: slow.under_way == 2)
        slow.opened.set()
        for thread in (looking, listing):
            thread.join(PATIENCE)
        store.close()


def test_a_process_that_lists_a_lot_has_connections_left(socket_path: Path) -> None:
    """Threads of one process that wait for lists do not use up the connections that it may have."""
    slow = SlowStore()
    with serving(slow, socket_path, turn_seconds=PATIENCE):
        store = AgentStore(socket_path, timeout=PATIENCE)
        threads = [threading.Thread(target=LONG["list"], args=(store,)) for _ in range(30)]
        for thread in threads:
            thread.start()
        wait_until(lambda: store._process.get().long_room._value == 0 and slow.under_way == 1)
        assert store._process.get().room._value >= 16 - LONG_CONNECTIONS
        use_one(store)
        slow.opened.set()
        for thread in threads:
            thread.join(PATIENCE)
        store.close()


# Turns


def in_thread(function: Callable[[], None]) -> threading.Thread:
    """Run a function in a thread, and return that."""
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_turns_come_in_the_order_of_asking() -> None:
    """Who came first is next, so that nobody who asks in a loop keeps others from their turn."""
    turns = Turns(most_waiting=5, wait_seconds=PATIENCE)
    order: list[int] = []

    def take(number: int) -> None:
        with turns.take():
            order.append(number)

    threads = []
    with turns.take():
        for number in range(5):
            threads.append(in_thread(partial(take, number)))
            wait_until(lambda: len(turns._queue) == len(threads) + 1)
        with pytest.raises(StorageBusy, match="too many"), turns.take():
            pass
    for thread in threads:
        thread.join(PATIENCE)
    assert order == [0, 1, 2, 3, 4]


def test_a_turn_that_breaks_is_over() -> None:
    """An error within a turn ends it, and one who gave up waiting is in nobody's way."""
    turns = Turns(most_waiting=5, wait_seconds=0.01)

    def break_off() -> None:
        with turns.take():
            with pytest.raises(StorageBusy), turns.take():
                pass
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            break_off()
    assert not turns._queue


def test_after_a_turn_there_is_a_rest_as_long_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long has half of the time at most, and no rest is longer than a quarter of a second."""
    now, waits = [100.0], []
    monkeypatch.setattr("invites_core.stores.agent_turns.time.monotonic", lambda: now[0])
    turns = Turns(most_waiting=5)

    def wait(seconds: float) -> None:
        waits.append(round(seconds, 3))
        now[0] += seconds

    monkeypatch.setattr(turns._changed, "wait", wait)
    for took in (0.125, 60, 0):
        with turns.take():
            now[0] += took
    assert waits == [0.125, 0.25]
