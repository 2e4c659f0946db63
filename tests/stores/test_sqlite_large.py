"""Many invites in SQLite: what a list or a sweep reads depends on what it asks for, not on how many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import apsw
import pytest

from invites_core.stores import sqlite_invites
from invites_core.stores.records import to_seconds
from invites_core.stores.sqlite import SqliteStore
from tests.helpers import NOON

HOST: Final = "example.com"
ROWS: Final = 50_000
LATER: Final = NOON + timedelta(days=30)
CLOSED: Final = NOON - timedelta(days=1)

# Of every 1,000 invites: the host's own, but for ten; a tenth of each key; the first ten stay pending for ever, the
# rest is expired, used up and revoked in turn.
FILL: Final = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :rows)
INSERT INTO invites (position, token, host, kind, registration, created_at, expires_at, max_uses, uses, source, groups,
    roles, closed_at, revoked_by)
SELECT (:noon << 24) + n, printf('token-%018d', n), iif(n % 1000 < 990, 'example.com', 'example.org'), 'register', 1,
    :noon, iif(n % 1000 < 10, NULL, :noon + 60), 1, n % 1000 >= 10 AND n % 3 = 1, 'api/token/' || (n % 10), '[]', '[]',
    iif(n % 1000 >= 10 AND n % 3 > 0, :closed, NULL), iif(n % 1000 >= 10 AND n % 3 = 2, 'admin', NULL)
FROM numbers
"""


class Steps:
    """What a connection's statements have cost, by SQLite's own count."""

    def __init__(self) -> None:
        self.steps = 0
        self.full_scans = 0
        self.sorts = 0

    def add(self, event: dict[str, Any]) -> None:
        status = event["stmt_status"]
        self.steps += status["SQLITE_STMTSTATUS_VM_STEP"]
        self.full_scans += status["SQLITE_STMTSTATUS_FULLSCAN_STEP"]
        self.sorts += status["SQLITE_STMTSTATUS_SORT"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteStore]:
    """A store with many invites; the tests leave it as it is, or take only what they say."""
    path: Path = tmp_path_factory.mktemp("large") / "invites.db"
    store = SqliteStore(path)
    bindings = {"rows": ROWS, "noon": to_seconds(NOON), "closed": to_seconds(CLOSED)}
    store._database.write(lambda connection: connection.execute(FILL, bindings).fetchall())
    yield store
    store.close()


def measure(store: SqliteStore, call: Callable[[], object]) -> Steps:
    """Return what a call costs this thread's connection."""
    steps, connection = Steps(), store._database._connection()
    connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, steps.add)
    try:
        call()
    finally:
        connection.trace_v2(0, None)
    assert steps.steps > 0
    return steps


def test_there_are_two_secondary_indexes(filled: SqliteStore) -> None:
    """Beside the primary key and the token, invites have two indexes: every other one would cost each insert."""
    indexes = filled._database.read("SELECT name, origin FROM pragma_index_list('invites') ORDER BY name")
    assert [name for name, origin in indexes if origin == "c"] == ["invites_by_host", "invites_by_source"]
    assert [origin for _, origin in indexes].count("u") == 1
    assert len(indexes) == 3


@pytest.mark.parametrize("source", [None, "api/token/7"])
@pytest.mark.parametrize("state", [None, "used", "revoked"])
@pytest.mark.parametrize("depth", ["newest", "middle", "oldest"])
def test_page_reads_its_own_rows(filled: SqliteStore, state: Any, source: str | None, depth: str) -> None:
    """A page of 50, wherever it is in the list, costs about as much as 50 rows of each state do."""
    position = {"newest": None, "middle": ROWS // 2, "oldest": 2_000}[depth]
    cursor = None if position is None else str((to_seconds(NOON) << 24) + position)
    pages = []
    steps = measure(
        filled,
        lambda: pages.append(filled.list_invites(HOST, now=LATER, state=state, source=source, limit=50, cursor=cursor)),
    )
    assert len(pages[0].invites) == 50
    assert steps.full_scans == 0
    assert steps.steps < 20_000


@pytest.mark.parametrize("state", ["pending", "expired"])
@pytest.mark.parametrize("source", [None, "api/token/7"])
def test_page_of_open_invites_looks_at_so_many(filled: SqliteStore, state: Any, source: str | None) -> None:
    """Where few of the open invites are in the state that is asked for, a page ends after a bounded number of rows."""
    steps = measure(filled, lambda: filled.list_invites(HOST, now=LATER, state=state, source=source, limit=1000))
    assert steps.full_scans == 0
    assert steps.steps < 30 * sqlite_invites.SCANNED_ROWS + 200 * 1000


@pytest.mark.parametrize("state", [None, "pending", "used", "revoked", "expired"])
def test_whole_list_is_complete(filled: SqliteStore, state: Any) -> None:
    """Read to its end, page by page, a list has every invite of its state once, newest first."""
    tokens: list[str] = []
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        page = filled.list_invites(HOST, now=LATER, state=state, limit=1000, cursor=cursor)
        tokens.extend(invite.token for invite in page.invites)
        cursor, pages = page.next, pages + 1
    numbers = [n for n in range(ROWS, 0, -1) if n % 1000 < 990 and state in (None, tell_state(n))]
    assert tokens == [f"token-{n:018}" for n in numbers]


def tell_state(n: int) -> str:
    return "pending" if n % 1000 < 10 else ("expired", "used", "revoked")[n % 3]


def test_step_of_a_purge_looks_at_so_many(filled: SqliteStore) -> None:
    """A step of a purge that finds nothing looks at as many rows as it may, and writes nothing."""
    steps = measure(filled, lambda: filled.purge_invites(before=CLOSED, limit=500))
    assert steps.full_scans <= 500
    assert steps.steps < 20_000


def test_step_of_a_sweep_reads_what_it_changes(filled: SqliteStore) -> None:
    """A step over the pending invites of a source reads those that are open, whatever else there is."""
    swept = []
    steps = measure(
        filled,
        lambda: swept.append(
            filled.revoke_invites_from("api/token/9", by="x", host="example.org", now=NOON, limit=100)
        ),
    )
    assert swept[0].changed == ROWS // 1000 // 3 + 1
    assert steps.full_scans <= 20
    assert steps.steps < 10_000


def test_statements_use_the_indexes(filled: SqliteStore) -> None:
    """Lists and the search of a sweep walk along an index, without sorting more than the parts of a page."""
    statements = {
        "host": sqlite_invites._list_statement("invites_by_host", "host = :host", None),
        "source": sqlite_invites._list_statement("invites_by_source", "source = :source AND host = :host", "used"),
        "sweep": sqlite_invites._REVOCABLE_OF_SOURCE,
        "redeem": sqlite_invites._REDEEM,
        "find": sqlite_invites._FIND,
        "any over": sqlite_invites._ANY_OVER,
    }
    plans = {}
    for name, statement in statements.items():
        plans[name] = " | ".join(explain(filled, statement))
        assert "SCAN invites" not in plans[name]
    assert plans["host"].count("USING INDEX invites_by_host (host=? AND closed=? AND position<?)") == 3
    assert "USING INDEX invites_by_source (source=? AND host=? AND closed=? AND position<?)" in plans["source"]
    assert "INDEX invites_by_source (source=? AND host=? AND closed=? AND position>?)" in plans["sweep"]
    assert "sqlite_autoindex_invites_1 (token=?)" in plans["redeem"]
    assert "sqlite_autoindex_invites_1 (token=?)" in plans["find"]
    assert "INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in plans["any over"]


def explain(store: SqliteStore, statement: str) -> list[str]:
    """Return the lines of a statement's plan."""
    names = ("host", "source", "before", "after", "limit", "floor", "now", "token", "id", "username", "end")
    bindings: Any = ("x",) if "?" in statement else dict.fromkeys(names, 1)
    return [row[3] for row in store._database.read(f"EXPLAIN QUERY PLAN {statement}", bindings)]
