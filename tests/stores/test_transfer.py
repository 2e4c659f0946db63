"""Copies of SQLite stores: into another file, through kills, of many rows."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from invites_core.stores.sqlite import SqliteStore
from invites_core.stores.transfer import BATCH_ROWS, INVITES, MARK, copy_store
from tests.processes import StartPython
from tests.stores.sqlite_files import run_sql
from tests.stores.transfers import CopiedStore, TransferTests, dump, fill

# Copies, and is killed at a random moment, wherever it is then.
KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from invites_core.stores import transfer
from invites_core.stores.sqlite import SqliteStore

transfer.BATCH_ROWS = 5
source, target = (SqliteStore(Path(name)) for name in sys.argv[1:3])
threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), signal.SIGKILL)).start()
transfer.copy_store(source, target)
os._exit(0)
"""

# Copies, and prints by how much the process has grown, how many invites there are, and the largest batch.
ROOT = Path(__file__).resolve().parents[2]

MEASURED = """
import resource, sys
from pathlib import Path
from invites_core.stores.sqlite import SqliteStore
from invites_core.stores.transfer import copy_store
sys.path.append(sys.argv[3])
from tests.stores.transfers import Failing

source, target = (SqliteStore(Path(name)) for name in sys.argv[1:3])
into = Failing(target, batches=10_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
invites = copy_store(source, into)["invites"]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, invites, into.largest)
source.close()
target.close()
"""

FILL = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows})
INSERT INTO invites (position, token, host, kind, registration, created_at, max_uses, uses, source, groups, roles, note)
SELECT n, printf('token-%018d', n), 'example.com', 'register', 1, 1700000000, 1, n % 2, 'command', '[]', '[]',
    printf('%0100d', n) FROM numbers
"""


@pytest.fixture
def new_store(tmp_path: Path) -> Iterator[Callable[[], CopiedStore]]:
    """Makes empty SQLite stores."""
    made: list[SqliteStore] = []

    def make() -> CopiedStore:
        made.append(SqliteStore(tmp_path / f"store-{len(made)}.db"))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def source(new_store: Callable[[], CopiedStore]) -> CopiedStore:
    """The store that is copied, empty."""
    return new_store()


class TestSqliteToSqlite(TransferTests):
    """From one file into another."""


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_file_is_not_copied_into_itself_by_another_path(tmp_path: Path, link: str) -> None:
    """A link to the source's file is the source."""
    path, other = tmp_path / "a.db", tmp_path / "b.db"
    SqliteStore(path).close()
    getattr(other, link)(path)
    one, two = SqliteStore(path), SqliteStore(other)
    try:
        assert one.get_identity() == two.get_identity()
    finally:
        one.close()
        two.close()


def test_a_copy_that_is_killed_goes_on(tmp_path: Path, source: CopiedStore) -> None:
    """Killed at random moments, again and again, a copy holds in the end all of its source, row for row."""
    fill(source, invites=300)
    path = tmp_path / "target.db"
    kills = 0
    for _ in range(40):
        # In an order in which it comes further and further, so that the test ends.
        delay = random.uniform(0.001, 0.02 + 0.03 * kills)
        ended = subprocess.run([sys.executable, "-c", KILLED, source.location, str(path), str(delay)])
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
        kills += 1
    target = SqliteStore(path)
    try:
        copy_store(source, target)
        assert dump(target) == dump(source)
        assert target.find_problems() == []
    finally:
        target.close()
    assert kills > 0


def test_the_mark_is_the_id_of_no_key() -> None:
    """What marks an unfinished copy among the deleted keys can be no key's id."""
    assert " " in MARK


def test_many_rows_are_copied_in_bounded_memory(tmp_path: Path, start_python: StartPython) -> None:
    """A copy of 100,000 invites holds a batch of them at a time, and no transaction has more than a batch."""
    source, target = tmp_path / "a.db", tmp_path / "b.db"
    SqliteStore(source).close()
    run_sql(source, FILL.format(rows=100_000))
    grown, invites, largest = map(int, start_python(MEASURED, source, target, ROOT).finish().split())
    assert (invites, largest) == (100_000, BATCH_ROWS)
    # In KiB. All of the rows at once are more than 100 MiB.
    assert grown < 32 * 1024


def test_readers_and_writers_of_the_source_are_not_kept_waiting(source: CopiedStore) -> None:
    """While a snapshot is open, others write, and the snapshot does not see it."""
    fill(source)
    before = dump(source)
    with source.open_snapshot() as snapshot:
        source.remove_row(INVITES, (before["invites"][0][0],))
        assert snapshot.count(INVITES) == len(before["invites"])
        assert list(snapshot.rows(INVITES)) == before["invites"]
    assert len(dump(source)["invites"]) == len(before["invites"]) - 1
