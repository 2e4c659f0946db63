"""The agent's store keeps the contract, whatever store the agent serves, and says what it cannot know."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from invites_core.errors import (
    InvalidHost,
    InvalidRequest,
    OutcomeUnknown,
    StorageBusy,
    StorageError,
    Unsupported,
)
from invites_core.hashing import SecretHasher
from invites_core.invites import Invite, Redemption
from invites_core.keys import KeyPolicy, Quota
from invites_core.service import delete_key_with_invites
from invites_core.store import COUNTED_USES, HISTORY, LARGE_LISTS, InviteStore
from invites_core.stores import open_invite_store, open_store
from invites_core.stores.agent import AgentStore
from invites_core.stores.agent_guard import GuardedInvites
from invites_core.stores.agent_wire import HELLO, MAX_PART
from invites_core.stores.memory import MemoryStore
from invites_core.stores.sqlite import SqliteStore
from invites_core.testing import InviteStoreSuite
from tests.helpers import NOON, PATIENCE, SECOND, FakeClock, make_invite, run_at_once, wait_until
from tests.processes import Fork, NewSignal
from tests.service.worlds import HOST, Faulty, World, make_world
from tests.stores.agents import FAR_FUTURE, Stranger, fake_agent, frame, serving
from tests.stores.test_contract import InviteTests, PlainStore


@pytest.fixture
def inner() -> MemoryStore:
    """The store that the agent serves."""
    return MemoryStore()


@pytest.fixture
def agent(inner: MemoryStore, socket_path: Path) -> Iterator[None]:
    """An agent that serves the inner store."""
    with serving(inner, socket_path):
        yield


@pytest.fixture
def client(agent: None, socket_path: Path) -> Iterator[AgentStore]:
    """A client of the agent."""
    store = AgentStore(socket_path, timeout=PATIENCE)
    yield store
    store.close()


class BehindAnAgent:
    """A store that an agent serves."""

    @pytest.fixture
    def served(self, tmp_path: Path) -> Iterator[InviteStore]:
        """Give the store that the agent serves."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, served: InviteStore, socket_path: Path) -> Iterator[InviteStore]:
        """Give the client of an agent that serves it."""
        with serving(served, socket_path):
            store = open_invite_store(f"agent://{socket_path}")
            yield store
            store.close()
        served.close()


class TestMemoryBehindAnAgent(BehindAnAgent, InviteTests):
    """Invites in memory, behind an agent."""

    @pytest.fixture
    def served(self) -> InviteStore:
        return MemoryStore()


class TestSqliteBehindAnAgent(BehindAnAgent, InviteTests):
    """Invites in SQLite, behind an agent."""

    @pytest.fixture
    def served(self, tmp_path: Path) -> InviteStore:
        return SqliteStore(tmp_path / "invites.db")


class TestPlainBehindAnAgent(BehindAnAgent, InviteStoreSuite):
    """A store without features, behind an agent."""

    @pytest.fixture
    def served(self) -> InviteStore:
        return PlainStore()


# What the client knows of the agent


def test_features_and_location_are_those_of_the_store_behind(socket_path: Path) -> None:
    """The agent tells what its store can and where it is; the client adds where the agent is."""
    with serving(MemoryStore(), socket_path):
        store = AgentStore(socket_path)
        assert store.features == {COUNTED_USES, HISTORY, LARGE_LISTS}
        assert store.location == f"memory behind the agent {socket_path}"
        store.close()
    with serving(PlainStore(), socket_path):
        plain = AgentStore(socket_path)
        assert plain.features == frozenset()
        plain.close()


def test_relative_path_is_kept_when_the_folder_changes(
    agent: None, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is of the folder that was current when the store was opened."""
    monkeypatch.chdir(socket_path.parent)
    store = open_invite_store(f"agent:{socket_path.name}")
    monkeypatch.chdir("/")
    store.ping()
    assert store.location.endswith(f" {socket_path}")
    store.close()


@pytest.mark.parametrize("what", ["nothing", "file", "folder", "stale"])
def test_an_agent_that_is_not_there_is_one_line(tmp_path: Path, socket_path: Path, what: str) -> None:
    """Opening says at once that no agent answers there."""
    if what == "file":
        socket_path.write_text("")
    elif what == "folder":
        socket_path.mkdir()
    elif what == "stale":
        leave_a_stale_socket(socket_path)
    with pytest.raises(StorageError, match=f"^cannot reach the agent at {socket_path}: [a-z -]+$"):
        AgentStore(socket_path)


def test_too_long_a_path_is_one_line(tmp_path: Path) -> None:
    """A path that no Unix socket can have is an error of the store, not of Python."""
    with pytest.raises(StorageError, match="path too long$"):
        AgentStore(tmp_path / ("x" * 200))


def leave_a_stale_socket(path: Path) -> None:
    """Leave the file of a socket on which nobody listens, as a killed agent does."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({**HELLO, "version": 2, "features": [], "location": ""}, id="version"),
        pytest.param({"error": {"class": "StorageError"}}, id="half-an-error"),
        pytest.param({"result": None}, id="something"),
        pytest.param([], id="list"),
    ],
)
def test_who_is_no_agent_is_one_line(socket_path: Path, answer: object) -> None:
    """Another program on the socket, or an agent of another version, is a StorageError."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(frame(answer))
                connection.recv(1000)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(StorageError, match=f"^no agent of this version answers at {socket_path}: ") as caught:
            AgentStore(socket_path)
        assert "\n" not in str(caught.value)
        thread.join(PATIENCE)


def test_a_closed_store_asks_nothing(client: AgentStore) -> None:
    """A store that was closed is not used any more."""
    client.ping()
    client.close()
    with pytest.raises(StorageError, match="^the store is closed$"):
        client.ping()


# Answers that do not come

CHANGES: dict[str, Callable[[InviteStore], object]] = {
    "add": lambda store: store.add_invites([make_invite()]),
    "redeem": lambda store: store.redeem_invite(
        "x" * 24, redemption_id="r", redeemer=None, username=None, host=None, now=NOON
    ),
    "release": lambda store: store.release_redemption("x" * 24, redemption_id="r", host=None, now=NOON),
    "revoke": lambda store: store.revoke_invite("x" * 24, by="admin", host=None, now=NOON),
    "sweep": lambda store: store.revoke_invites_from("command", by="admin", host=HOST, now=NOON, limit=1),
    "purge": lambda store: store.purge_invites(before=NOON, limit=1),
}
READS: dict[str, Callable[[InviteStore], object]] = {
    "ping": lambda store: store.ping(),
    "problems": lambda store: store.find_problems(),
    "find": lambda store: store.find_invite("x" * 24),
    "list": lambda store: store.list_invites(HOST, now=NOON, limit=1),
    "redemptions": lambda store: store.list_redemptions("x" * 24),
}
NO_ANSWERS = [
    pytest.param(None, id="hung-up"),
    pytest.param(b"\0\0", id="half-a-length"),
    pytest.param(b"\xff\xff\xff\xff", id="too-long"),
    pytest.param(frame([]), id="list"),
    pytest.param(frame({"result": {"token": "x"}}), id="other-result"),
    pytest.param(frame({"error": {"class": "KeyboardInterrupt"}}), id="other-error"),
    pytest.param(frame({"result": None, "error": None}), id="both"),
]


@pytest.mark.parametrize("answer", NO_ANSWERS)
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_without_an_answer_is_unknown(socket_path: Path, name: str, answer: bytes | None) -> None:
    """Whoever may have made a change and cannot say so leaves the outcome unknown; it is asked for once."""
    with fake_agent(socket_path, answer) as came:
        store = AgentStore(socket_path, timeout=0.2)
        with pytest.raises(OutcomeUnknown, match="^no answer of the agent"):
            CHANGES[name](store)
        assert len(came) == 1
        store.close()


@pytest.mark.parametrize("answer", NO_ANSWERS[1:])
@pytest.mark.parametrize("name", READS)
def test_a_reading_without_an_answer_changed_nothing(socket_path: Path, name: str, answer: bytes) -> None:
    """What only reads is never unknown."""
    with fake_agent(socket_path, answer):
        store = AgentStore(socket_path, timeout=0.2)
        with pytest.raises(StorageError) as caught:
            READS[name](store)
        assert type(caught.value) is StorageError
        store.close()


@pytest.mark.parametrize("name", [*CHANGES, *READS])
def test_an_agent_that_is_gone_changed_nothing(inner: MemoryStore, socket_path: Path, name: str) -> None:
    """Where the agent has gone before it was asked, nothing was sent and the error says so."""
    with serving(inner, socket_path):
        store = AgentStore(socket_path)
        store.ping()
    with pytest.raises(StorageError, match="^cannot reach the agent") as caught:
        {**CHANGES, **READS}[name](store)
    assert type(caught.value) is StorageError
    store.close()


def test_the_client_finds_an_agent_that_was_started_anew(inner: MemoryStore, socket_path: Path) -> None:
    """After a restart the next call of each thread reaches the new agent, changes too, without any error."""
    store = None
    for _ in range(3):
        with serving(inner, socket_path):
            store = store or AgentStore(socket_path, timeout=PATIENCE)
            outcomes = run_at_once([partial(store.add_invites, [make_invite()]) for _ in range(8)])
            assert outcomes == [None] * 8
    assert len(inner.list_invites(HOST, now=NOON, limit=100).invites) == 24
    assert store is not None
    store.close()


class Gate(MemoryStore):
    """Holds up additions, before or after they are made, until it is opened."""

    def __init__(self, *, after: bool = False) -> None:
        super().__init__()
        self.came = threading.Event()
        self.opened = threading.Event()
        self._after = after

    def add_invites(self, invites: Any, *, if_absent: bool = False) -> None:
        if self._after:
            super().add_invites(invites, if_absent=if_absent)
        self.came.set()
        assert self.opened.wait(PATIENCE)
        if not self._after:
            super().add_invites(invites, if_absent=if_absent)


def test_an_answer_in_time_or_unknown(socket_path: Path) -> None:
    """A change that takes longer than the time limit is unknown; the late answer is nobody else's."""
    gate = Gate()
    invite = make_invite()
    with serving(gate, socket_path):
        store = AgentStore(socket_path, timeout=0.05)
        with pytest.raises(OutcomeUnknown, match="timed out"):
            store.add_invites([invite])
        gate.opened.set()
        patient = AgentStore(socket_path, timeout=PATIENCE)
        patient.add_invites([invite], if_absent=True)
        assert patient.find_invite(invite.token) == invite
        assert patient.find_invite("x" * 24) is None
        for one in (store, patient):
            one.close()


def test_what_was_begun_is_finished_when_the_agent_stops(socket_path: Path) -> None:
    """An agent that is told to stop finishes and answers what it has begun; new callers reach nobody."""
    gate = Gate()
    outcomes: list[object] = []
    with serving(gate, socket_path):
        store = AgentStore(socket_path, timeout=PATIENCE)

        def add() -> None:
            store.add_invites([make_invite()])
            outcomes.append("added")

        adding = threading.Thread(target=add)
        adding.start()
        assert gate.came.wait(PATIENCE)

        def open_when_nobody_listens() -> None:
            wait_until(lambda: not answers(socket_path))
            [agent] = [thread for thread in threading.enumerate() if thread.name == "agent"]
            agent.join(0.2)
            outcomes.append(agent.is_alive())
            gate.opened.set()

        opening = threading.Thread(target=open_when_nobody_listens)
        opening.start()
    for thread in (adding, opening):
        thread.join(PATIENCE)
    assert outcomes == [True, "added"]
    assert len(gate.list_invites(HOST, now=NOON, limit=9).invites) == 1
    assert not socket_path.exists()
    store.close()


def answers(path: Path) -> bool:
    """Tell whether somebody listens on a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


@pytest.mark.parametrize("after", [False, True], ids=["before-the-commit", "after-the-commit"])
def test_a_killed_agent_leaves_it_unknown_and_a_repeat_resolves_it(
    fork: Fork, new_signal: NewSignal, tmp_path: Path, socket_path: Path, after: bool
) -> None:
    """Killed in the middle of a change, the agent leaves the outcome unknown; the same call again makes it so, once."""
    path = tmp_path / "invites.db"
    SqliteStore(path).close()
    listens, came = new_signal(), new_signal()

    class Stuck(SqliteStore):
        def redeem_invite(self, *arguments: Any, **options: Any) -> Any:
            if after:
                super().redeem_invite(*arguments, **options)
            came.tell()
            signal.pause()

    def run(store_class: type[SqliteStore]) -> None:
        with serving(store_class(path), socket_path):
            listens.tell()
            signal.pause()

    invite = make_invite(max_uses=2)
    first = fork(partial(run, Stuck))
    listens.wait()
    store = AgentStore(socket_path, timeout=PATIENCE)
    store.add_invites([invite])
    redeem = partial(
        store.redeem_invite,
        invite.token,
        redemption_id="once",
        redeemer="alice",
        username="alice",
        host=HOST,
        now=NOON,
    )

    def kill() -> None:
        came.wait()
        os.kill(first.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(OutcomeUnknown):
        redeem()
    killer.join(PATIENCE)
    fork(partial(run, SqliteStore))
    listens.wait()
    assert redeem().outcome == ("repeated" if after else "redeemed")
    assert redeem().outcome == "repeated"
    found = store.find_invite(invite.token)
    assert found is not None
    assert found.uses == 1
    store.close()


def test_a_child_after_a_fork_has_connections_of_its_own(client: AgentStore, fork: Fork) -> None:
    """Parent and child use the same store object at once, and neither gets the other's answers."""
    mine, its = [make_invite() for _ in range(20)], [make_invite(note="child") for _ in range(20)]
    client.add_invites(mine)

    def work() -> list[Invite | None]:
        client.add_invites(its)
        found = [client.find_invite(invite.token) for invite in its * 5]
        client.close()
        return found

    child = fork(work)
    assert [client.find_invite(invite.token) for invite in mine * 5] == mine * 5
    assert child.result() == its * 5
    assert [client.find_invite(invite.token) for invite in its] == its


def test_more_threads_than_connections_wait_for_each_other(client: AgentStore) -> None:
    """Any number of threads may call at once; they share a bounded number of connections."""
    invites = [make_invite() for _ in range(60)]
    assert run_at_once([partial(client.add_invites, [invite]) for invite in invites]) == [None] * 60
    process = client._process.get()
    assert len(process.idle) <= 16
    assert run_at_once([partial(client.find_invite, invite.token) for invite in invites]) == invites


def test_who_finds_no_free_connection_in_time_is_told_that_it_is_busy(socket_path: Path) -> None:
    """Where all connections are in use for longer than the time limit, nothing was asked."""
    gate = Gate()
    with serving(gate, socket_path):
        store = AgentStore(socket_path, timeout=PATIENCE)
        threads = [threading.Thread(target=store.add_invites, args=([make_invite()],)) for _ in range(16)]
        for thread in threads:
            thread.start()
        wait_until(lambda: store._process.get().room._value == 0)
        store._timeout = 0.05
        with pytest.raises(StorageBusy):
            store.ping()
        gate.opened.set()
        for thread in threads:
            thread.join(PATIENCE)
        store.close()


# Bounds


def test_longer_lists_than_a_frame_holds_come_in_shorter_parts(client: AgentStore, inner: MemoryStore) -> None:
    """A list whose invites fill more than a frame is still read to its end."""
    invites = [make_invite(note=f"{number:016000}") for number in range(300)]
    inner.add_invites(invites)
    found: list[Invite] = []
    cursor = None
    while True:
        page = client.list_invites(HOST, now=NOON, limit=100_000, cursor=cursor)
        assert page.invites
        found.extend(page.invites)
        cursor = page.next
        if cursor is None:
            break
    assert found == invites[::-1]


def test_more_than_an_agent_takes_at_once_is_unsupported(client: AgentStore, inner: MemoryStore) -> None:
    """What does not fit into one request is refused before anything happens."""
    for invites in ([make_invite(note=f"{n:010000}") for n in range(400)], [make_invite() for _ in range(1001)]):
        with pytest.raises(Unsupported):
            client.add_invites(invites)
    assert inner.list_invites(HOST, now=NOON, limit=1).invites == ()


def test_any_number_of_redemptions_is_listed(client: AgentStore, inner: MemoryStore) -> None:
    """The history of an invite that was used very often comes whole, in its order."""
    invite = make_invite(max_uses=None)
    inner.add_invites([invite])
    for number in range(2 * MAX_PART + 3):
        inner.redeem_invite(
            invite.token, redemption_id=f"{number:06}", redeemer=None, username=None, host=None, now=NOON
        )
    found = client.list_redemptions(invite.token)
    assert list(found) == list(inner.list_redemptions(invite.token))
    assert isinstance(found[0], Redemption)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"token": "short"}, "token", id="short-token"),
        pytest.param({"token": "x" * 20 + "/../"}, "token", id="path"),
        pytest.param({"note": "a\0b"}, "invites", id="nul"),
        pytest.param({"groups": ("a", "b\0")}, "invites", id="nul-in-a-group"),
        pytest.param({"kind": "admin"}, "invites.kind", id="kind"),
    ],
)
def test_what_the_rules_never_make_is_not_added(
    client: AgentStore, inner: MemoryStore, changes: dict[str, Any], field: str
) -> None:
    """The agent checks records for itself: its clients may be anybody in the group."""
    with pytest.raises(InvalidRequest) as caught:
        client.add_invites([make_invite(), replace(make_invite(), **changes)])
    assert caught.value.field == field
    assert inner.list_invites(HOST, now=NOON, limit=1).invites == ()


def test_a_store_that_breaks_leaves_a_change_unknown(socket_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An error that no store may raise is logged by the agent; its client learns that the outcome is unknown."""

    class Broken(MemoryStore):
        def add_invites(self, *_: Any, **__: Any) -> None:
            raise ZeroDivisionError("of the store")

        def find_invite(self, token: str) -> Invite | None:
            raise ZeroDivisionError("of the store")

    with serving(Broken(), socket_path):
        store = AgentStore(socket_path, timeout=PATIENCE)
        with pytest.raises(OutcomeUnknown, match="^the agent failed$"):
            store.add_invites([make_invite()])
        with pytest.raises(StorageError, match="^the agent failed$") as caught:
            store.find_invite("x" * 24)
        assert type(caught.value) is StorageError
        store.ping()
        store.close()
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError] * 2


def test_errors_of_storage_are_logged_without_tokens(socket_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The agent's log has the verb and the error, and no token."""

    class Full(MemoryStore):
        def add_invites(self, *_: Any, **__: Any) -> None:
            raise StorageError("no space left")

    invite = make_invite()
    with serving(Full(), socket_path):
        store = AgentStore(socket_path, timeout=PATIENCE)
        with pytest.raises(StorageError, match="^no space left$"):
            store.add_invites([invite])
        store.close()
    assert [record.getMessage() for record in caplog.records] == ["add_invites: StorageError: no space left"]


# Hosts


@pytest.fixture
def narrow(inner: MemoryStore, socket_path: Path) -> Iterator[AgentStore]:
    """A client of an agent that serves one host alone."""
    with serving(inner, socket_path, hosts=frozenset({HOST})):
        store = AgentStore(socket_path, timeout=PATIENCE)
        yield store
        store.close()


@pytest.mark.parametrize("host", ["example.org", "EXAMPLE.com", "", "../example.com", "example.com\0"])
def test_no_other_host_can_be_named(narrow: AgentStore, inner: MemoryStore, host: str) -> None:
    """A host that the agent does not serve is refused in every verb that takes one, before anything is done."""
    foreign = make_invite(host=host)
    inner.add_invites([foreign])
    redeem = partial(narrow.redeem_invite, foreign.token, redemption_id="r", redeemer=None, username=None, now=NOON)
    calls: list[Callable[[], object]] = [
        partial(narrow.add_invites, [make_invite(), make_invite(host=host)]),
        partial(narrow.list_invites, host, now=NOON, limit=1),
        partial(redeem, host=host),
        partial(narrow.release_redemption, foreign.token, redemption_id="r", host=host, now=NOON),
        partial(narrow.revoke_invite, foreign.token, by="x", host=host, now=NOON),
        partial(narrow.revoke_invites_from, "command", by="x", host=host, now=NOON, limit=9),
    ]
    for call in calls:
        with pytest.raises(InvalidHost):
            call()
    assert inner.find_invite(foreign.token) == foreign
    assert inner.list_invites(HOST, now=NOON, limit=9).invites == ()


def test_an_invite_of_another_host_is_not_there(narrow: AgentStore, inner: MemoryStore) -> None:
    """By token, without a host, an invite of another host is neither found nor used nor changed."""
    foreign, mine = make_invite(host="example.org"), make_invite()
    inner.add_invites([foreign, mine])
    inner.redeem_invite(make_used(inner).token, redemption_id="a", redeemer=None, username=None, host=None, now=NOON)
    before = inner.find_invite(foreign.token)
    redeem = partial(narrow.redeem_invite, redemption_id="r", redeemer=None, username=None, host=None, now=NOON)
    for token in (foreign.token, "x" * 24):
        assert narrow.find_invite(token) is None
        assert narrow.list_redemptions(token) == ()
        result = redeem(token)
        assert (result.outcome, result.invite) == ("refused", None)
        assert narrow.release_redemption(token, redemption_id="r", host=None, now=NOON) is None
        assert narrow.revoke_invite(token, by="x", host=None, now=NOON) == (False, None)
    assert inner.find_invite(foreign.token) == before
    assert list(inner.list_redemptions(foreign.token)) == []
    assert redeem(mine.token).outcome == "redeemed"
    assert narrow.find_invite(mine.token) == inner.find_invite(mine.token)


def make_used(store: MemoryStore) -> Invite:
    """Add an invite of another host that has a history."""
    invite = make_invite(host="example.org", max_uses=None)
    store.add_invites([invite])
    return invite


def test_history_of_another_host_is_not_given_out(narrow: AgentStore, inner: MemoryStore) -> None:
    """Who used another host's invite is not told."""
    used = make_used(inner)
    inner.redeem_invite(used.token, redemption_id="a", redeemer="eve", username=None, host=None, now=NOON)
    assert len(inner.list_redemptions(used.token)) == 1
    assert narrow.list_redemptions(used.token) == ()


def test_a_purge_of_what_is_still_to_come_is_refused() -> None:
    """What is pending cannot be purged by naming a time to come, at which it will have expired."""
    inner = MemoryStore()
    guarded = GuardedInvites(inner, serves=lambda _: True, clock=lambda: NOON + timedelta(milliseconds=900))
    pending, over = make_invite(), make_invite(expires_at=NOON - SECOND)
    inner.add_invites([pending, over])
    with pytest.raises(InvalidRequest) as caught:
        guarded.purge_invites(before=NOON + SECOND, limit=9)
    assert caught.value.field == "before"
    assert guarded.purge_invites(before=NOON, limit=9).changed == 1
    assert inner.find_invite(pending.token) == pending
    assert FAR_FUTURE > NOON


# The whole service


@pytest.fixture
def world(client: AgentStore, tmp_path: Path, hasher: SecretHasher, clock: FakeClock) -> Iterator[World]:
    """Keys in SQLite, and invites behind an agent."""
    keys = open_store(f"sqlite:///{tmp_path}/keys.db")
    yield make_world(keys, client, hasher=hasher, clock=clock)
    keys.close()


def test_the_whole_service_with_its_invites_behind_an_agent(world: World, inner: MemoryStore) -> None:
    """Keys here, invites there: made within a quota, listed, redeemed, revoked, purged."""
    key = world.make_key(KeyPolicy(max_uses=3, quota=Quota(3, timedelta(days=1))))
    made = world.invites.create_many(key, 2, max_uses=3, note="für den Chor")
    again = [world.invites.create(key, idempotency_key="once") for _ in range(2)]
    assert again[0] == again[1]
    assert world.count_invites(source=key.source) == 3
    with pytest.raises(RuntimeError), world.invites.redeeming(made[0].token, redeemer="alice"):
        raise RuntimeError("no account")
    world.invites.redeem(made[0].token, redeemer="bob")
    assert {one.redeemer for one in world.invites.list_redemptions(made[0].token)} == {"alice", "bob"}
    revoked = delete_key_with_invites(world.keys, world.invites, HOST, key.id, by="admin", sleep=lambda _: None)
    assert revoked == 3
    world.clock.advance(SECOND)
    assert world.invites.purge(older_than=timedelta(0)) == 3
    assert inner.list_invites(HOST, now=NOON, limit=9).invites == ()


def test_a_creation_whose_answer_was_lost_is_finished_by_its_repeat(world: World) -> None:
    """Where the agent's answer is missing, the same Idempotency-Key adds the same invite, once, and takes one unit."""
    key = world.make_key(KeyPolicy(quota=Quota(1, timedelta(days=1))))
    for when in ("after", "before"):
        faulty = Faulty(world.invite_store)
        faulty.fail("add_invites", when)
        other = world.through(world.key_store, faulty)
        if when == "after":
            with pytest.raises(OutcomeUnknown):
                other.invites.create(key, idempotency_key="once")
        made = world.invites.create(key, idempotency_key="once")
        assert world.invites.get(made.token) == made
    assert world.count_invites() == 1


# Peers that do what they should not

GARBAGE = [
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http"),
    pytest.param(b"\0\0\0\0", id="empty-frame"),
    pytest.param(b"\xff\xff\xff\xff", id="4-gib"),
    pytest.param(frame({"protocol": "other", "version": 1}), id="other-protocol"),
    pytest.param(frame({**HELLO, "version": 99}), id="other-version"),
    pytest.param(frame({"verb": "ping", "arguments": {}}), id="no-greeting"),
]


@pytest.mark.parametrize("sent", GARBAGE)
def test_who_does_not_speak_the_protocol_is_told_and_hung_up_on(
    client: AgentStore, socket_path: Path, sent: bytes
) -> None:
    """Whatever comes instead of a greeting, the agent says why, hangs up, and serves others."""
    with Stranger(socket_path, greets=False) as stranger:
        stranger.socket.sendall(sent)
        answer = stranger.receive()
        assert answer["error"]["class"] == "InvalidRequest"
        assert stranger.receive() is None
    client.ping()


def test_arguments_that_cannot_be_leave_the_connection_alone(agent: None, socket_path: Path) -> None:
    """A refused argument is answered; the next request on the connection is served."""
    with Stranger(socket_path) as stranger:
        assert stranger.ask("find_invite", token=1)["error"]["field"] == "token"
        assert stranger.ask("list_invites", host=HOST)["error"]["class"] == "InvalidRequest"
        assert stranger.ask("find_invite", token="x" * 24) == {"result": None}


@pytest.mark.parametrize("verb", ["close", "_store", "__init__", "add_granted", "find_key", "list_keys", ""])
def test_nothing_but_the_verbs_of_invites_is_served(
    client: AgentStore, inner: MemoryStore, socket_path: Path, verb: str
) -> None:
    """Also where the store behind holds keys, no key is reached through the agent."""
    with Stranger(socket_path) as stranger:
        assert "verb" in stranger.ask(verb)["error"]["message"]
        assert stranger.receive() is None
    client.ping()
    assert isinstance(client, AgentStore)
    assert not hasattr(client, "find_key")


def test_ten_thousand_fuzzed_frames_do_no_harm(
    client: AgentStore, inner: MemoryStore, socket_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Frames that were cut, flipped and made up change nothing; meanwhile another client is served without error."""
    import random

    chance = random.Random(5280)
    invite = make_invite()
    client.add_invites([invite])
    good = [
        frame({"verb": "find_invite", "arguments": {"token": invite.token}}),
        frame({"verb": "list_invites", "arguments": {"host": HOST, "now": 0, "limit": 5}}),
        frame({"verb": "ping", "arguments": {}}),
        frame(HELLO),
    ]

    def spoil() -> bytes:
        body = bytearray(chance.choice(good))
        for _ in range(chance.randrange(1, 8)):
            place = chance.randrange(len(body))
            match chance.randrange(4):
                case 0:
                    body[place] = chance.randrange(256)
                case 1:
                    del body[place:]
                case 2:
                    body[place:place] = chance.randbytes(chance.randrange(20))
                case 3:
                    body[place] ^= 1 << chance.randrange(8)
            if not body:
                return b"\0"
        return bytes(body)

    for number in range(10_000):
        with Stranger(socket_path, greets=False) as stranger, contextlib.suppress(OSError):
            if number % 4:
                stranger.send(HELLO)
            stranger.socket.sendall(spoil())
        if number % 100 == 0:
            assert client.find_invite(invite.token) == invite
    assert client.find_invite(invite.token) == invite
    assert inner.list_invites(HOST, now=NOON, limit=9).invites == (invite,)
    # The log tells of it, and is not filled by it.
    assert 1 <= len(caplog.records) < 100
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


def add_in_time(store: AgentStore) -> None:
    """Add an invite, again where the agent says that it is busy."""
    invite = make_invite()

    def is_added() -> bool:
        with contextlib.suppress(StorageBusy):
            store.add_invites([invite], if_absent=True)
            return True
        return False

    wait_until(is_added)


def test_more_connections_than_are_kept_do_no_harm(inner: MemoryStore, socket_path: Path) -> None:
    """Connections that stand idle, that never greet, or that send half a frame, make room for those that ask."""
    with serving(inner, socket_path, connections=4), contextlib.ExitStack() as stack:
        store = AgentStore(socket_path, timeout=PATIENCE)
        for number in range(60):
            stranger = stack.enter_context(Stranger(socket_path, greets=False))
            if number % 3 == 0:
                # It may be told that the agent is busy, if all that stand before it have only just begun.
                stranger.send(HELLO)
            elif number % 3 == 1:
                stranger.socket.sendall(b"\0\0\1")
            add_in_time(store)
        assert len(inner.list_invites(HOST, now=NOON, limit=100).invites) == 60
        store.close()


def test_where_all_are_at_work_the_next_is_told_that_it_is_busy(socket_path: Path) -> None:
    """Requests under way are never given up for others; who comes then can come again."""
    gate = Gate()
    with serving(gate, socket_path, connections=2):
        store = AgentStore(socket_path, timeout=PATIENCE)
        threads = [threading.Thread(target=store.add_invites, args=([make_invite()],)) for _ in range(2)]
        outcomes: list[object] = []
        for thread in threads:
            gate.came.clear()
            thread.start()
            assert gate.came.wait(PATIENCE)
        for _ in range(3):
            with pytest.raises(StorageError) as caught:
                AgentStore(socket_path)
            outcomes.append(caught.value)
        gate.opened.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(gate.list_invites(HOST, now=NOON, limit=9).invites) == 2
        assert len(outcomes) == 3
        store.close()


@pytest.mark.parametrize("greets", [True, False])
@pytest.mark.parametrize("sent", [b"\0", b"\0\0\1\0", b'\0\0\1\0{"verb"'])
def test_a_frame_that_does_not_end_is_given_up(
    client: AgentStore, socket_path: Path, inner: MemoryStore, tmp_path: Path, sent: bytes, greets: bool
) -> None:
    """Who begins a frame and does not end it is hung up on when its time is over."""
    path = tmp_path / "quick.sock"
    with serving(inner, path, frame_seconds=0.1), Stranger(path, greets=greets) as stranger:
        stranger.socket.sendall(sent)
        assert stranger.receive() is None


def test_who_asks_nothing_is_hung_up_on(inner: MemoryStore, socket_path: Path) -> None:
    """A connection on which nothing is asked ends some time, and the client that it was of does not notice."""
    with serving(inner, socket_path, idle_seconds=0.1):
        store = AgentStore(socket_path, timeout=PATIENCE)
        store.ping()
        with Stranger(socket_path) as stranger:
            assert stranger.receive() is None
        wait_until(lambda: not any(thread.name == "agent peer" for thread in threading.enumerate()))
        store.add_invites([make_invite()])
        store.close()


def test_who_does_not_read_its_answers_is_given_up(inner: MemoryStore, socket_path: Path) -> None:
    """Answers that nobody takes hold nobody up, and are not kept for ever."""
    inner.add_invites([make_invite(note=f"{number:015000}") for number in range(100)])
    arguments = {"host": HOST, "now": 0, "state": None, "source": None, "limit": 100, "cursor": None}
    with serving(inner, socket_path, frame_seconds=0.1, connections=8), contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(Stranger(socket_path)) for _ in range(8)]
        for stranger in strangers:
            stranger.send({"verb": "list_invites", "arguments": arguments})
            # The list is made, and the turn to make one is over.
            assert stranger.socket.recv(4)
        wait_until(lambda: not any(thread.name == "agent peer" for thread in threading.enumerate()))
        store = AgentStore(socket_path, timeout=PATIENCE)
        store.ping()
        store.close()


def guard_memory(**options: Any) -> GuardedInvites:
    """Return a guard before an empty store in memory."""
    return GuardedInvites(MemoryStore(), serves=lambda _: True, clock=lambda: NOON, **options)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"kind": "reset", "username": "alice", "registration": False}, id="reset"),
        pytest.param({"roles": ("prosody:admin",)}, id="role"),
        pytest.param({"roles": ("member", "prosody:admin")}, id="one-role-of-two"),
    ],
)
def test_power_over_accounts_is_not_given(fields: dict[str, Any]) -> None:
    """Kinds and roles that the agent was not told to allow are Unsupported, and none of the batch is added."""
    guarded = guard_memory(kinds=frozenset({"register", "roster"}), roles=frozenset({"member"}))
    plain = make_invite(roles=("member",))
    with pytest.raises(Unsupported):
        guarded.add_invites([plain, make_invite(**fields)])
    assert guarded.find_invite(plain.token) is None
    guarded.add_invites([plain])
    guard_memory().add_invites([make_invite(**fields)])


@pytest.mark.parametrize(
    "fields", [{"groups": ("x",) * 101}, {"roles": ("x" * 256,)}, {"note": "x" * 1001}], ids=["many", "long", "note"]
)
def test_fields_beyond_the_rules_are_refused(fields: dict[str, Any]) -> None:
    """What the rules of a key would never make is refused by the agent too, whoever sends it."""
    with pytest.raises(InvalidRequest):
        guard_memory().add_invites([make_invite(**fields)])
