"""What an answer acknowledges was synced before its first byte: a real server, watched under SQLite and at the socket.

That what was synced is there after a power cut is shown by tests/stores/test_sqlite_vfs.py.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from invites_core import ApiKeys, Invites
from invites_core.stores.sqlite import SqliteStore
from tests.helpers import run_at_once
from tests.proofs.sqlite_operations import Operation, make_operations
from tests.proofs.sqlite_worlds import run_and_kill
from tests.proofs.sync_order import JOURNAL_VARIABLE, TAMPERINGS, WatchedLog, count_journal
from tests.servers import ROOT, Server
from tests.wsgi.callers import EVERYTHING
from tests.wsgi.support import Answer, ask_server, make_serve

THREADS = 8
EACH = 25
WRITES = [operation for operation in make_operations() if operation.writes and operation.start == "open"]


@pytest.fixture
def key(database: Path) -> str:
    """A key that may make and redeem invites."""
    store = SqliteStore(database)
    issued = ApiKeys(store).create("example.com", policy=EVERYTHING)
    store.close()
    return issued.combined


def make_watched(tmp_path: Path, database: Path, tampering: str, *, workers: int) -> Server:
    """Return a server that keeps a journal."""
    return make_serve(
        tmp_path / "serve",
        database,
        workers=workers,
        command=(sys.executable, "-W", "error", "-m", "tests.proofs.sync_order", tampering),
        env={"PYTHONPATH": str(ROOT), JOURNAL_VARIABLE: str(tmp_path / "journal")},
    )


def ask_again(port: int, target: str, **request: Any) -> Answer:
    """Ask until it is not 503, which a worker that has yet to check a key for the first time says."""
    while (answer := ask_server(port, target, **request)).status == 503:
        pass
    return answer


def create_at_once(server: Server, key: str) -> list[str]:
    """Make invites from many connections, and return the tokens that were acknowledged."""
    header = {"Authorization": f"Bearer {key}"}

    def create() -> list[str]:
        answers = [ask_again(server.port, "/invites_api", headers=header) for _ in range(EACH)]
        assert {answer.status for answer in answers} == {201}
        return [answer.token for answer in answers]

    outcomes = run_at_once([create] * THREADS)
    return [token for tokens in outcomes if isinstance(tokens, list) for token in tokens]


@pytest.mark.real_server
@pytest.mark.parametrize("workers", [1, 2])
def test_every_creation_is_synced_before_its_answer(tmp_path: Path, database: Path, key: str, workers: int) -> None:
    """Of creations that come at once and share commits, each is synced before the first byte of its 201 goes out."""
    with make_watched(tmp_path, database, "none", workers=workers) as server:
        tokens = create_at_once(server, key)
    acknowledged, words = count_journal(tmp_path / "journal")
    assert acknowledged == set(tokens)
    assert words == Counter(synced=THREADS * EACH)


@pytest.mark.real_server
def test_every_redemption_and_release_is_synced_before_its_answer(tmp_path: Path, database: Path, key: str) -> None:
    """So is each redemption, and each release of one that has not come yet, which is kept so that it loses."""
    store = SqliteStore(database)
    [token] = [Invites(store).create_for("example.com", source="test", max_uses=None).token]
    store.close()
    header = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def change(action: str, number: int) -> None:
        for time in range(EACH):
            body = {"redemption_id": f"{action}-{number}-{time}"}
            if action == "redeem":
                body["redeemer"] = "alice"
            answer = ask_again(
                server.port,
                f"/invites_api/invites/{token}/{action}",
                method="POST",
                headers=header,
                body=json.dumps(body).encode(),
            )
            assert answer.status == 200, answer

    with make_watched(tmp_path, database, "none", workers=2) as server:
        outcomes = run_at_once(
            [
                lambda action=action, number=number: change(action, number)  # type: ignore[misc]
                for action in ("redeem", "release")
                for number in range(THREADS // 2)
            ]
        )
    assert outcomes == [None] * THREADS
    acknowledged, words = count_journal(tmp_path / "journal")
    assert len(acknowledged) == THREADS * EACH
    assert words == Counter(synced=THREADS * EACH)


@pytest.mark.real_server
@pytest.mark.parametrize("tampering", [name for name in TAMPERINGS if name != "none"])
def test_an_answer_that_comes_early_is_found(tmp_path: Path, database: Path, key: str, tampering: str) -> None:
    """Where commits are not synced, or answers go out before them, the proof says so of the creations."""
    with make_watched(tmp_path, database, tampering, workers=1) as server:
        tokens = create_at_once(server, key)
    acknowledged, words = count_journal(tmp_path / "journal")
    assert acknowledged == set(tokens)
    assert words["early"] > THREADS * EACH / 2


def watch_call(path: Path, operation: Operation, tampering: str) -> tuple[int, bool]:
    """Let a store do one thing, and return how many commits it made, and whether all was synced when it returned."""

    def use(send: object) -> None:
        assert callable(send)
        TAMPERINGS[tampering]()
        log = WatchedLog()
        log.install()
        store = SqliteStore(path)
        store.ping()
        operation.call(store)
        send((log.commits, log.is_synced))

    [told] = run_and_kill(use)
    assert isinstance(told, tuple), told
    return told


@pytest.mark.parametrize("operation", WRITES, ids=[operation.name for operation in WRITES])
def test_a_call_of_the_library_returns_after_the_sync(database: Path, operation: Operation) -> None:
    """Every change of keys and invites is synced when the call returns; where nothing changes nothing is written."""
    store = SqliteStore(database)
    operation.prepare(store)
    store.close()
    commits, is_synced = watch_call(database, operation, "none")
    assert commits == (0 if operation.name.endswith(("spent", "used")) else 1)
    assert is_synced


@pytest.mark.parametrize("mode", ["OFF", "NORMAL"])
def test_a_call_that_returns_before_the_sync_is_found(database: Path, mode: str) -> None:
    """Where commits are not synced, this says so."""
    [operation] = [operation for operation in WRITES if operation.name == "add_key"]
    SqliteStore(database).close()
    assert watch_call(database, operation, f"synchronous={mode}") == (1, False)
