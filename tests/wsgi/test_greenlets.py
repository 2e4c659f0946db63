"""Greenlets: what a call waits for lets others go on, in the tools alone and in a real server."""

from __future__ import annotations

import contextvars
import itertools
import json
import os
import select
import selectors
import signal
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from invites_core import ApiKeys, Invites, KeyPolicy, StorageError
from invites_core.hashing import SecretHasher
from invites_core.stores.permits import Permits
from invites_core.stores.sqlite import SqliteStore
from invites_core.waiting import get_waiting, set_waiting
from invites_wsgi.config import Settings
from invites_wsgi.greenlets import LOOK_SECONDS, MOST_IDLE, MOST_SECONDS, Greenlets
from invites_wsgi.gunicorn_connections import SEND_SECONDS, WaitingWorker
from invites_wsgi.gunicorn_greenlets import MOST_ACCEPTED
from invites_wsgi.gunicorn_processes import GreenletWorker, ThreadWorker
from invites_wsgi.server import Server
from tests.helpers import PATIENCE, run_at_once, wait_until
from tests.wsgi.support import ask_server, make_serve
from tests.wsgi.test_gunicorn import make_key

LONG_ANSWERS = 20


class Loop:
    """What calls something soon, when it is told to."""

    def __init__(self) -> None:
        self.soon: deque[Callable[[], None]] = deque()
        self.poller = selectors.DefaultSelector()
        self.greenlets = Greenlets(self.poller, self.soon.append, threads=2)

    def turn(self) -> None:
        """Do what a turn of a worker's loop does, until there is nothing more to do."""
        self.greenlets.begin_works()
        while self.soon:
            self.soon.popleft()()
            self.greenlets.begin_works()
        for key, _ in self.poller.select(0):
            key.data(key.fileobj)
        self.greenlets.begin_works()

    def turn_until(self, is_so: Callable[[], bool]) -> None:
        """Turn until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            assert time.monotonic() < deadline, "waited in vain"
            self.turn()


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop in this thread, whose calls wait in greenlets."""
    before = get_waiting()
    made = Loop()
    set_waiting(made.greenlets)
    yield made
    set_waiting(before)


class TestGreenlets:
    """The tools, without a worker."""

    def test_who_waits_lets_others_go_on(self, loop: Loop) -> None:
        """Two calls wait, a third does not; each goes on when its signal is given, in another thread too."""
        done: list[str] = []
        signals: dict[str, Any] = {}

        def call(name: str, *, waits: bool) -> None:
            if waits:
                signals[name] = get_waiting().make_signal()
                assert signals[name].acquire()
            done.append(name)

        for name in ("a", "b"):
            loop.greenlets.start(partial(call, name, waits=True))
        loop.greenlets.start(partial(call, "c", waits=False))
        assert done == ["c"]
        giver = threading.Thread(target=signals["b"].release)
        giver.start()
        giver.join()
        assert done == ["c"], "it went on in the other thread"
        loop.turn()
        assert done == ["c", "b"]
        signals["a"].release()
        loop.turn()
        assert done == ["c", "b", "a"]

    def test_a_signal_that_was_given_before_is_not_waited_for(self, loop: Loop) -> None:
        """And what was given is not given to a later wait of the same call."""
        seen: list[object] = []

        def call() -> None:
            first, second = get_waiting().make_signal(), get_waiting().make_signal()
            first.release()
            seen.append(first.acquire())
            seen.append(second.acquire(timeout=0.01))

        loop.greenlets.start(call)
        loop.turn()
        assert seen == [True]
        time.sleep(0.02)
        loop.greenlets.give_up()
        assert seen == [True, False]

    def test_who_has_waited_long_enough_goes_on(self, loop: Loop) -> None:
        """It is told that nothing was given; what is given later disturbs nobody, and is there for the next to ask."""
        seen: list[object] = []
        signals: list[Any] = []

        def call() -> None:
            signals.append(given := get_waiting().make_signal())
            seen.append(given.acquire(timeout=0.01))
            seen.append(given.acquire())

        loop.greenlets.start(call)
        loop.greenlets.give_up()
        assert seen == []
        time.sleep(0.02)
        loop.greenlets.give_up()
        assert seen == [False]
        signals[0].release()
        signals[0].release()
        loop.turn()
        assert seen == [False, True]

    def test_each_gives_up_at_its_own_time(self, loop: Loop) -> None:
        """Whoever began to wait later, and waits less, is not held up by those before."""
        seen: list[float] = []

        def call(seconds: float) -> None:
            assert not get_waiting().make_signal().acquire(timeout=seconds)
            seen.append(seconds)

        for seconds in (60.0, 0.02, 0.01):
            loop.greenlets.start(call, seconds)
        time.sleep(0.03)
        loop.greenlets.give_up()
        assert sorted(seen) == [0.01, 0.02]

    def test_the_loop_knows_how_long_it_may_wait(self, loop: Loop) -> None:
        """Until the first gives up; for ever where nobody does."""
        assert loop.greenlets.find_pause() is None
        for seconds in (60.0, 5.0):
            loop.greenlets.start(get_waiting().make_signal)
            loop.greenlets.start(lambda seconds=seconds: get_waiting().make_signal().acquire(timeout=seconds))
        assert 4.0 < (loop.greenlets.find_pause() or 0.0) <= 5.0
        loop.greenlets.start(lambda: get_waiting().make_signal().acquire(timeout=0.0))
        assert loop.greenlets.find_pause() == LOOK_SECONDS

    def test_the_loop_has_its_turn_among_many(self, loop: Loop) -> None:
        """Calls that take long and go on at the same time leave the loop its turns, and all come to their end."""
        signals: list[Any] = []
        ended: list[float] = []

        def call() -> None:
            signals.append(given := get_waiting().make_signal())
            given.acquire()
            time.sleep(MOST_SECONDS / 2)
            ended.append(time.monotonic())

        for _ in range(6):
            loop.greenlets.start(call)
        for given in signals:
            given.release()
        loop.soon.popleft()()
        assert 1 <= len(ended) < 6
        assert len(loop.soon) == 1
        loop.turn()
        assert len(ended) == 6

    def test_nothing_of_a_call_is_kept(self, loop: Loop) -> None:
        """A greenlet that waits for its next call has let go of the last one; not more are kept than are worth it."""
        signals: list[Any] = []
        kept: list[weakref.ref[Any]] = []

        class Payload:
            pass

        def call(payload: Payload) -> None:
            kept.append(weakref.ref(payload))
            signals.append(given := get_waiting().make_signal())
            given.acquire()

        for _ in range(MOST_IDLE + 10):
            loop.greenlets.start(call, Payload())
        while signals:
            signals.pop().release()
        loop.turn()
        assert [one() for one in kept] == [None] * (MOST_IDLE + 10)
        assert len(loop.greenlets._idle) == MOST_IDLE

    def test_works_that_follow_one_another_have_the_same_thread(self, loop: Loop) -> None:
        """What it has of a database in memory is of use to the next."""
        threads: set[int] = set()
        for number in range(1, 6):
            loop.greenlets.start(lambda: threads.add(get_waiting().run(threading.get_ident)))
            loop.turn_until(lambda: len(loop.greenlets._idle) == 1 and loop.greenlets._loads == [0, 0])
            assert len(threads) == 1, number

    def test_works_of_two_databases_do_not_wait_for_each_other(self, loop: Loop) -> None:
        """As many go on at once as there are threads."""
        both = threading.Barrier(2)
        for _ in range(2):
            loop.greenlets.start(loop.greenlets.run, partial(both.wait, PATIENCE))
        loop.turn_until(lambda: len(loop.greenlets._idle) == 2)
        assert not both.broken

    def test_a_descriptor_is_waited_for_like_that(self, loop: Loop) -> None:
        """Until it can be read, or for some time; afterwards nobody watches it."""
        seen: list[object] = []
        here, there = socket.socketpair()

        def call(*, writes: bool = False, timeout: float = PATIENCE) -> None:
            waiting = get_waiting()
            seen.append(waiting.wait_for(here.fileno(), reads=not writes, writes=writes, timeout=timeout))

        with here, there:
            loop.greenlets.start(call)
            loop.turn()
            assert seen == []
            there.send(b"x")
            loop.turn()
            assert seen == [True]
            loop.greenlets.start(partial(call, writes=True))
            loop.turn()
            assert seen == [True, True]
            here.recv(1)
            loop.greenlets.start(partial(call, timeout=0.01))
            time.sleep(0.02)
            loop.greenlets.give_up()
            assert seen == [True, True, False]
            assert not loop.poller.get_map()
            # The loop itself, and other threads, are held up.
            call(timeout=0.01)
            assert run_at_once([partial(call, writes=True)]) == [None]
            assert seen[3:] == [False, True]

    def test_permits_go_to_who_has_waited_longest(self, loop: Loop) -> None:
        """In greenlets and threads alike; who gives up does not keep one."""
        permits = Permits(1)
        got: list[object] = []

        def take(name: str, timeout: float = PATIENCE) -> None:
            got.append((name, permits.take(timeout=timeout)))

        take("first")
        assert not permits.take_at_once()
        loop.greenlets.start(take, "impatient", 0.01)
        loop.greenlets.start(take, "second")
        thread = threading.Thread(target=take, args=("third",))
        thread.start()
        wait_until(lambda: len(permits._waiting) == 3)
        time.sleep(0.02)
        loop.greenlets.give_up()
        for _ in range(3):
            permits.give_back()
            loop.turn()
        thread.join(PATIENCE)
        assert got == [("first", True), ("impatient", False), ("second", True), ("third", True)]
        assert permits.take_at_once()
        assert not permits.take_at_once()

    def test_a_permit_is_not_lost_with_who_is_interrupted(self) -> None:
        """A handler of a signal that raises while one is waited for, before it is given and after."""
        permits = Permits(1)
        before = get_waiting()

        class Interrupted:
            def make_signal(self) -> Any:
                return self

            def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
                if self.is_given:
                    permits.give_back()
                raise KeyboardInterrupt

            def release(self) -> None:
                pass

            is_given = False

        interrupted: Any = Interrupted()
        assert permits.take_at_once()
        set_waiting(interrupted)
        try:
            with pytest.raises(KeyboardInterrupt):
                permits.take(timeout=1)
            interrupted.is_given = True
            with pytest.raises(KeyboardInterrupt):
                permits.take(timeout=1)
        finally:
            set_waiting(before)
        assert permits.take_at_once()
        assert not permits.take_at_once()

    def test_work_runs_in_another_thread(self, loop: Loop) -> None:
        """What it returns and what it raises comes to the call, and other calls go on meanwhile."""
        seen: list[object] = []
        may_end = threading.Event()

        def work() -> int:
            assert may_end.wait(PATIENCE)
            return threading.get_ident()

        def call() -> None:
            seen.append(get_waiting().run(work))
            with pytest.raises(ZeroDivisionError):
                get_waiting().run(lambda: 1 // 0)
            with pytest.raises(SystemExit):
                get_waiting().run(partial(exec, "raise SystemExit"))
            seen.append("end")

        loop.greenlets.start(call)
        loop.turn()
        loop.greenlets.start(seen.append, "other")
        assert seen == ["other"]
        may_end.set()
        loop.turn_until(lambda: "end" in seen)
        assert seen[1] != threading.get_ident()

    def test_what_is_given_during_work_is_heard_at_its_end(self, loop: Loop) -> None:
        """Work that wakes many calls disturbs the loop once."""
        done: list[int] = []
        signals: list[Any] = []
        calls = 0

        def wait(number: int) -> None:
            signals.append(given := get_waiting().make_signal())
            given.acquire()
            done.append(number)

        def wake() -> None:
            nonlocal calls
            for given in signals:
                given.release()
            calls = len(loop.soon)

        for number in range(5):
            loop.greenlets.start(wait, number)
        loop.greenlets.start(get_waiting().run, wake)
        loop.turn_until(lambda: len(done) == 5)
        assert (done, calls) == ([0, 1, 2, 3, 4], 0)

    def test_outside_of_a_call_the_thread_is_held_up(self, loop: Loop) -> None:
        """The loop itself cannot let itself go on."""
        given = get_waiting().make_signal()
        assert not given.acquire(timeout=0.001)
        threading.Timer(0.01, given.release).start()
        assert given.acquire(timeout=PATIENCE)
        assert get_waiting().run(threading.get_ident) == threading.get_ident()

    def test_other_threads_are_as_they_were(self, loop: Loop) -> None:
        """What is set for a thread is for that thread alone."""
        [waiting] = run_at_once([get_waiting])
        assert waiting is not loop.greenlets

    def test_what_a_call_raises_is_raised_in_the_loop(self, loop: Loop) -> None:
        """At its start and after a wait alike; the others are not harmed."""
        signals: list[Any] = []

        def call(*, waits: bool) -> None:
            if waits:
                signals.append(given := get_waiting().make_signal())
                given.acquire()
            raise SystemExit(7)

        with pytest.raises(SystemExit):
            loop.greenlets.start(partial(call, waits=False))
        loop.greenlets.start(partial(call, waits=True))
        signals[0].release()
        with pytest.raises(SystemExit):
            loop.turn()
        done: list[int] = []
        loop.greenlets.start(done.append, 1)
        assert done == [1]

    def test_calls_do_not_see_each_others_context(self, loop: Loop) -> None:
        """What a call sets for itself, such as which request it answers, no other sees while it waits, nor later."""
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
        seen: list[tuple[str, str]] = []
        signals: list[Any] = []

        def call(name: str) -> None:
            before = variable.get()
            token = variable.set(name)
            signals.append(given := get_waiting().make_signal())
            given.acquire()
            seen.append((before, variable.get()))
            variable.reset(token)

        for names in ("ab", "cd"):
            for name in names:
                loop.greenlets.start(call, name)
            assert variable.get() == "nothing"
            while signals:
                signals.pop().release()
            loop.turn()
        assert seen == [("nothing", name) for name in "badc"]

    def test_calls_share_a_commit(self, loop: Loop, tmp_path: Path) -> None:
        """Writes that calls have come to by the time the thread begins are one transaction."""
        store = SqliteStore(tmp_path / "invites.db", create=True)
        key = ApiKeys(store).create("example.com").key
        commits: list[str] = []
        made: list[str] = []
        invites = Invites(store)

        def trace(connection: apsw.Connection) -> None:
            connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: commits.append(event["sql"]))

        opened = store._database._open

        def open_traced() -> apsw.Connection:
            trace(connection := opened())
            return connection

        store._database._open = open_traced  # type: ignore[method-assign]  # to count what it runs
        for _ in range(5):
            loop.greenlets.start(lambda: made.append(invites.create(key).token))
        assert made == []
        loop.turn_until(lambda: len(made) == 5)
        # The first leads alone, or with all of them; the others come together.
        assert 1 <= commits.count("COMMIT") <= 2
        assert all(store.find_invite(token) for token in made)
        store.close()

    def test_a_write_that_finds_no_turn_says_so(self, loop: Loop, tmp_path: Path) -> None:
        """Behind a writer who does not end, calls are told after the time limit that the database is busy."""
        store = SqliteStore(tmp_path / "invites.db", create=True)
        key = ApiKeys(store).create("example.com").key
        store._database._timeout = 0.1
        outcomes: list[str] = []

        def create() -> None:
            try:
                Invites(store).create(key)
            except Exception as error:
                outcomes.append(type(error).__name__)

        other = apsw.Connection(str(tmp_path / "invites.db"))
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            loop.greenlets.start(create)
        deadline = time.monotonic() + PATIENCE
        while len(outcomes) < 3 and time.monotonic() < deadline:
            loop.turn()
            loop.greenlets.give_up()
        other.close()
        assert outcomes == ["StorageBusy"] * 3
        done: list[str] = []
        loop.greenlets.start(lambda: done.append(Invites(store).create(key).token))
        loop.turn_until(lambda: bool(done))
        store.close()

    def test_a_write_for_which_no_thread_is_to_be_had_changes_nothing(self, tmp_path: Path) -> None:
        """It says so, and whoever writes next is not in the way of it."""
        store = SqliteStore(tmp_path / "invites.db", create=True)
        key = ApiKeys(store).create("example.com").key
        before = get_waiting()

        class NoThread:
            make_signal = staticmethod(before.make_signal)

            def run(self, work: Callable[[], object]) -> object:
                raise RuntimeError("can't start new thread")

        set_waiting(NoThread())  # type: ignore[arg-type]  # it never returns
        try:
            with pytest.raises(StorageError, match="no thread to write with"):
                Invites(store).create(key)
        finally:
            set_waiting(before)
        assert store._database.read("SELECT count(*) FROM invites") == [(0,)]
        Invites(store).create(key)
        store.close()

    def test_a_hash_is_waited_for_like_that(self, loop: Loop) -> None:
        """Calls that check the same new secret wait for one computation, and others go on."""
        hasher = SecretHasher(threads=64)
        secret_hash = hasher.hash("secret")
        done: list[str] = []

        def verify() -> None:
            hasher.verify("secret", secret_hash)
            done.append("verified")

        for _ in range(20):
            loop.greenlets.start(verify)
        loop.greenlets.start(done.append, "other")
        assert done == ["other"]
        loop.turn_until(lambda: len(done) == 21)
        assert hasher.get_stats().checks == 1


@pytest.mark.parametrize(
    ("urls", "kind"),
    [
        ({"database": "sqlite:////x.db"}, GreenletWorker),
        ({"database": "sqlite:////x.db", "invites": "sqlite:////y.db"}, GreenletWorker),
        ({"database": "sqlite:////x.db", "invites": "agent:////run/x"}, ThreadWorker),
        ({"database": "postgresql://db/x"}, GreenletWorker),
        ({"database": "sqlite:////x.db", "invites": "prosody:///var/lib/prosody"}, ThreadWorker),
        ({"database": "agent:////run/x"}, ThreadWorker),
    ],
)
def test_stores_that_hold_up_a_thread_are_served_with_threads(urls: dict[str, str], kind: type) -> None:
    """A store that waits for a server would hold up all requests of a process."""
    settings = Settings(**urls, hosts={})  # type: ignore[arg-type]  # the others have their defaults
    assert Server(settings, lambda: settings).cfg.worker_class is kind


def test_a_turn_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many requests that take long some are left for the next turn, and writes that came before begin."""
    worker: Any = GreenletWorker.__new__(GreenletWorker)
    worker._greenlets = Loop().greenlets
    worker._ready = deque(range(9))
    begun: list[int] = []
    monkeypatch.setattr(worker, "_answer", lambda _: time.sleep(MOST_SECONDS / 2), raising=False)
    monkeypatch.setattr(worker._greenlets, "begin_works", lambda: begun.append(len(worker._ready)), raising=False)
    monkeypatch.setattr(WaitingWorker, "wait_for_and_dispatch_events", lambda *_: None)
    while worker._ready:
        worker.wait_for_and_dispatch_events(1.0)
    assert len(begun) >= 3
    assert all(later < earlier for earlier, later in itertools.pairwise(begun))


def test_newcomers_are_taken_several_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a turn, but not more than there is room for: beyond it others would be closed for them."""
    worker: Any = GreenletWorker.__new__(GreenletWorker)
    worker.nr_conns, worker.worker_connections = 7, 10
    waiting = [5]

    def accept_one(listener: object) -> bool:
        if not waiting[0]:
            return False
        waiting[0] -= 1
        worker.nr_conns += 1
        return True

    monkeypatch.setattr(worker, "accept_one", accept_one, raising=False)
    worker.accept(object())
    assert (worker.nr_conns, waiting) == (10, [2])
    worker.worker_connections = 20
    worker.accept(object())
    assert (worker.nr_conns, waiting) == (12, [0])
    waiting[0], worker.worker_connections = 1000, 2000
    worker.accept(object())
    assert worker.nr_conns == 12 + MOST_ACCEPTED


def test_an_end_at_once_is_not_taken_for_an_error_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that comes while a request is worked on ends the worker in its loop."""
    loop = Loop()
    worker: Any = GreenletWorker.__new__(GreenletWorker)
    worker._main = loop.greenlets._loop
    worker.method_queue = type("Queue", (), {"defer": lambda _, *call: loop.soon.append(partial(*call))})()
    ended: list[int] = []
    monkeypatch.setattr(WaitingWorker, "handle_quit", lambda _, sig, __: ended.append(sig))
    loop.greenlets.start(worker.handle_quit, signal.SIGQUIT, None)
    assert ended == []
    loop.turn()
    assert ended == [signal.SIGQUIT]
    worker.handle_quit(signal.SIGINT, None)
    assert ended == [signal.SIGQUIT, signal.SIGINT]


def test_no_client_has_all_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while requests are answered is for the next turn, which begins without waiting for events."""
    worker: Any = GreenletWorker.__new__(GreenletWorker)
    worker._greenlets = Loop().greenlets
    worker._ready = deque(["first"])
    waits: list[float | None] = []
    answered: list[str] = []

    def answer(conn: str) -> None:
        answered.append(conn)
        worker.enqueue_req(f"{conn}, again")

    monkeypatch.setattr(worker, "_answer", answer, raising=False)
    monkeypatch.setattr(WaitingWorker, "wait_for_and_dispatch_events", lambda _, timeout: waits.append(timeout))
    worker.wait_for_and_dispatch_events(1.0)
    assert (answered, waits) == (["first"], [0])
    worker.wait_for_and_dispatch_events(1.0)
    assert (answered, waits) == (["first", "first, again"], [0, 0])
    worker._ready.clear()
    worker.wait_for_and_dispatch_events(1.0)
    assert waits[-1] == 1.0
    monkeypatch.setattr(worker._greenlets, "find_pause", lambda: 0.25)
    worker.wait_for_and_dispatch_events(1.0)
    worker.wait_for_and_dispatch_events(None)
    worker.wait_for_and_dispatch_events(0.125)
    assert waits[-3:] == [0.25, 0.25, 0.125]


@pytest.mark.real_server
class TestServer:
    """A real server of one process."""

    def test_who_waits_for_the_disk_holds_up_nobody(self, tmp_path: Path, database: Path) -> None:
        """While another program writes, creations wait, and refusals, pages and the health are answered."""
        key = make_key(database)
        with make_serve(tmp_path / "serve", database) as server:
            token = ask_server(server.port, f"/invites_api?key={key}").token
            writer = apsw.Connection(str(database))
            writer.execute("BEGIN IMMEDIATE")
            statuses: list[int] = []
            creating = [
                threading.Thread(
                    target=lambda: statuses.append(ask_server(server.port, f"/invites_api?key={key}").status)
                )
                for _ in range(3)
            ]
            for thread in creating:
                thread.start()
            assert ask_server(server.port, "/invites_api?key=nonsense").status == 403
            assert ask_server(server.port, f"/invite?{token}").status == 200
            assert ask_server(server.port, "/healthz").status == 200
            assert statuses == []
            writer.execute("ROLLBACK")
            writer.close()
            for thread in creating:
                thread.join(PATIENCE)
            assert statuses == [201] * 3

    def test_many_with_a_new_key_are_all_served(self, tmp_path: Path, database: Path) -> None:
        """Thirty who come at once with a key that the process has not seen wait for one check of it."""
        key = make_key(database)
        with make_serve(tmp_path / "serve", database) as server:
            answers = run_at_once([lambda: ask_server(server.port, f"/invites_api?key={key}").status] * 30)
        assert answers == [201] * 30

    def test_who_reads_slowly_holds_up_nobody(self, tmp_path: Path, database: Path) -> None:
        """A long answer goes out as its client takes it, whole, and others are answered meanwhile."""
        store = SqliteStore(database)
        issued = ApiKeys(store).create("example.com", policy=KeyPolicy(scopes=frozenset({"create", "read"})))
        Invites(store).create_many(issued.key, 1000)
        store.close()
        head = f"GET /invites_api/invites?limit=1000 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {issued.combined}\r\n"
        with make_serve(tmp_path / "serve", database) as server, socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.settimeout(PATIENCE)
            slow.connect(("127.0.0.1", server.port))
            # More than the buffers of both ends hold.
            slow.sendall(f"{head}\r\n".encode() * (LONG_ANSWERS - 1) + f"{head}Connection: close\r\n\r\n".encode())
            assert select.select([slow], [], [], PATIENCE)[0]
            began = time.monotonic()
            for _ in range(5):
                assert ask_server(server.port, f"/invites_api?key={issued.combined}").status == 201
            assert time.monotonic() - began < SEND_SECONDS, "they waited until the client was given up"
            received = b"".join(iter(lambda: slow.recv(1 << 16), b""))
        answers = received.split(b"HTTP/1.1 200 OK\r\n")[1:]
        assert [len(json.loads(answer.partition(b"\r\n\r\n")[2])["invites"]) for answer in answers] == [
            1000
        ] * LONG_ANSWERS

    def test_an_end_waits_for_who_waits(self, tmp_path: Path, database: Path) -> None:
        """A server that is told to stop answers those whose write is under way."""
        key = make_key(database)
        with make_serve(tmp_path / "serve", database) as server:
            assert ask_server(server.port, f"/invites_api?key={key}").status == 201
            writer = apsw.Connection(str(database))
            writer.execute("BEGIN IMMEDIATE")
            statuses: list[int] = []
            thread = threading.Thread(
                target=lambda: statuses.append(ask_server(server.port, f"/invites_api?key={key}").status)
            )
            thread.start()
            # A moment for the request to come, and for the worker to be told.
            time.sleep(0.2)
            os.kill(server.pid, signal.SIGTERM)
            time.sleep(0.2)
            assert statuses == []
            writer.execute("ROLLBACK")
            writer.close()
            thread.join(PATIENCE)
            assert statuses == [201]
