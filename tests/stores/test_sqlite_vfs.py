"""The SQLite store on a disk that fails and on a machine that stops, and that the proof of it could fail itself.

A small share of what bin/sqlite-faults runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import apsw
import pytest

from invites_core.errors import OutcomeUnknown, StorageError
from invites_core.stores import sqlite, sqlite_invites
from invites_core.stores.sqlite_database import SqliteDatabase
from invites_core.stores.sqlite_schema import SCHEMA
from invites_core.stores.sqlite_writers import WriteQueue
from tests.proofs import sqlite_faults
from tests.proofs.sqlite_fault_runs import KINDS, MODES, prove_faults
from tests.proofs.sqlite_operations import Operation, make_operations
from tests.proofs.sqlite_power_runs import CUTS, FAILED_SYNC, prove_power
from tests.proofs.sqlite_worlds import Count

ROOT: Final = Path(__file__).resolve().parent.parent.parent

# Some of the calls by which a database is made: those that write the log, and those that empty it at the end.
MAKING: Final = {"write": range(1, 40, 4), "sync": range(1, 10), "read": range(2, 24, 4)}

# Fills a file system, and goes on when there is space again; prints how many invites were acknowledged and found.
FILLER: Final = """
import sys
from pathlib import Path

from invites_core.errors import StorageError
from invites_core.stores.sqlite import SqliteStore
from invites_core.testing import make_invite

folder = Path(sys.argv[1])
ballast = folder / "ballast"
ballast.write_bytes(bytes(300_000))
store = SqliteStore(folder / "invites.db")
kept, refused = [], None
while refused is None:
    invite = make_invite(note="x" * 500)
    try:
        store.add_invites([invite])
    except StorageError as error:
        refused = error
    else:
        kept.append(invite)
assert str(refused).startswith(f"no space left for the database {folder}"), refused
ballast.unlink()
store.add_invites([invite], if_absent=True)
assert store.find_problems() == []
found = [store.find_invite(each.token) for each in [*kept, invite]]
store.close()
print(len(kept), found == [*kept, invite])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in memory if possible: the proof says itself what was synced."""
    if not os.access(sqlite_faults.MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=sqlite_faults.MEMORY) as name:
        yield Path(name)


def get_operation(name: str) -> Operation:
    [operation] = [each for each in make_operations() if each.name == name]
    return operation


def list_failures(counts: list[Count]) -> list[str]:
    return [example for count in counts for example in count.examples]


def add_up(counts: list[Count], column: str) -> int:
    return sum(int(getattr(count, column)) for count in counts)


class TestFaults:
    """Every kind of fault, at some of the calls."""

    @pytest.mark.parametrize(
        ("name", "numbers"),
        [
            pytest.param("open after a kill", range(2, 30, 9), id="open"),
            pytest.param("add_granted", range(1, 12, 3), id="add_granted"),
            pytest.param("add_invites, checkpoint", range(1, 60, 19), id="add_invites"),
            pytest.param("redeem", range(1, 12, 3), id="redeem"),
            pytest.param("list_invites, opening", range(2, 30, 9), id="list_invites"),
        ],
    )
    @pytest.mark.parametrize("mode", [MODES[1], MODES[2]], ids=["once", "lasting"])
    def test_nothing_is_lost_or_doubled(self, folder: Path, name: str, numbers: range, mode: Any) -> None:
        """What was told is what is there after a kill, unknown outcomes are resolved by a repeat, and all goes on."""
        counts = prove_faults(folder, get_operation(name), modes=[mode], numbers=numbers)
        assert list_failures(counts) == []
        assert add_up(counts, "injected") >= 10
        assert add_up(counts, "error") > 0

    def test_commit_that_cannot_be_synced_is_unknown(self, folder: Path) -> None:
        """At some call of a redemption the outcome is unknown, and not at most of them."""
        kinds = [kind for kind in KINDS if kind.name == "sync"]
        counts = prove_faults(folder, get_operation("redeem"), kinds=kinds, modes=MODES)
        assert list_failures(counts) == []
        assert 0 < add_up(counts, "unknown") <= add_up(counts, "injected")

    @pytest.mark.parametrize("name", ["write", "sync", "read"])
    def test_database_is_made_whole_or_not_at_all(self, folder: Path, name: str) -> None:
        """Wherever the disk fails while a database is made, what is there afterwards can be opened, or nothing is."""
        kinds = [kind for kind in KINDS if kind.name == name]
        counts = prove_faults(folder, get_operation("make"), kinds=kinds, modes=[MODES[0]], numbers=MAKING[name])
        assert list_failures(counts) == []
        assert add_up(counts, "error") > 0


class TestPowerCuts:
    """The machine stops."""

    @pytest.mark.parametrize("cut", CUTS, ids=[cut.name for cut in CUTS])
    def test_acknowledged_is_durable(self, folder: Path, cut: Any) -> None:
        """Whatever of what was not synced is lost, every acknowledged write is there, and no more than one beside."""
        counts = prove_power(folder, get_operation("redeem"), cuts=[cut], numbers=[*range(1, 40, 9), 1_000])
        assert list_failures(counts) == []
        assert add_up(counts, "success") > add_up(counts, "injected")

    def test_new_database_is_durable(self, folder: Path) -> None:
        """A database that was made is there whole, also where a sync has failed meanwhile and its data is gone."""
        counts = prove_power(folder, get_operation("make"), cuts=[FAILED_SYNC], numbers=range(3, 10))
        assert list_failures(counts) == []


def switch_syncing_off() -> None:
    """Let nothing be synced any more."""
    set_up = SqliteDatabase._set_up

    def set_up_carelessly(self: SqliteDatabase, connection: apsw.Connection) -> None:
        set_up(self, connection)
        connection.execute("PRAGMA synchronous = OFF").fetchall()

    SqliteDatabase._set_up = set_up_carelessly  # type: ignore[method-assign]  # what must never be done


def sync_checkpoints_only() -> None:
    """Let commits go unsynced, as with synchronous=NORMAL."""
    set_up = SqliteDatabase._set_up

    def set_up_carelessly(self: SqliteDatabase, connection: apsw.Connection) -> None:
        set_up(self, connection)
        connection.execute("PRAGMA synchronous = NORMAL").fetchall()

    SqliteDatabase._set_up = set_up_carelessly  # type: ignore[method-assign]  # what must never be done


def drop_guard() -> None:
    """Let an invite be redeemed that has no use left."""
    guard = "(max_uses IS NULL OR uses < max_uses) AND "
    assert sqlite_invites._REDEEM.count(guard) == 1
    unguarded = sqlite_invites._REDEEM.replace(guard, "")
    sqlite_invites._REDEEM = unguarded  # type: ignore[misc]  # what must never be done


def tell_unknown_as_error() -> None:
    """Let an unknown outcome look like one that is known."""
    explain = WriteQueue._explain

    def mislead(self: WriteQueue, error: BaseException, *, committing: bool) -> Any:
        return explain(self, error, committing=False)

    WriteQueue._explain = mislead  # type: ignore[method-assign]  # what must never be done


def tell_unknown_as_success() -> None:
    """Let an unknown outcome look like a success."""
    write = WriteQueue.write

    def mislead(self: WriteQueue, change: Any, *, timeout: float) -> Any:
        try:
            return write(self, change, timeout=timeout)
        except OutcomeUnknown:
            return None

    WriteQueue.write = mislead  # type: ignore[method-assign]  # what must never be done


def drop_repeats() -> None:
    """Let every repeat be an error, as where an operation does not know itself again."""
    write = WriteQueue.write
    unknown: list[bool] = []

    def mislead(self: WriteQueue, change: Any, *, timeout: float) -> Any:
        if unknown:
            raise StorageError("stuck")
        try:
            return write(self, change, timeout=timeout)
        except OutcomeUnknown:
            unknown.append(True)
            raise

    WriteQueue.write = mislead  # type: ignore[method-assign]  # what must never be done


def die() -> None:
    os._exit(1)


class TestProof:
    """The proof fails where the store does."""

    @pytest.mark.parametrize("tamper", [switch_syncing_off, sync_checkpoints_only])
    def test_store_that_does_not_sync_is_found(self, folder: Path, tamper: Callable[[], None]) -> None:
        """Where a commit returns before it is synced, acknowledged writes are lost at a power cut."""
        counts = prove_power(folder, get_operation("add_key"), cuts=[CUTS[0]], numbers=range(1, 16), tamper=tamper)
        assert add_up(counts, "lost") > 0

    def test_missing_guard_is_found(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where an invite without a use left is redeemed, that is damage."""
        check = " AND (max_uses IS NULL OR uses <= max_uses)"
        assert SCHEMA.count(check) == 1
        monkeypatch.setattr(sqlite, "SCHEMA", SCHEMA.replace(check, ""))
        kinds = [kind for kind in KINDS if kind.name == "sync"]
        operation = get_operation("redeem, used")
        counts = prove_faults(folder, operation, kinds=kinds, modes=[MODES[0]], tamper=drop_guard)
        assert add_up(counts, "damaged") > 0

    @pytest.mark.parametrize(
        ("tamper", "column"),
        [
            pytest.param(tell_unknown_as_error, "kept", id="as-an-error"),
            pytest.param(tell_unknown_as_success, "damaged", id="as-a-success"),
            pytest.param(drop_repeats, "stuck", id="not-resolved"),
            pytest.param(die, "stuck", id="dead"),
        ],
    )
    def test_wrong_words_are_found(self, folder: Path, tamper: Callable[[], None], column: str) -> None:
        """Where an unknown outcome is told as another one, cannot be resolved, or ends the process, that is counted."""
        kinds = [kind for kind in KINDS if kind.name in ("write", "sync")]
        counts = prove_faults(
            folder, get_operation("redeem"), kinds=kinds, modes=MODES[:2], numbers=range(1, 6), tamper=tamper
        )
        assert add_up(counts, column) > 0

    def test_success_that_is_lost_is_found(self, folder: Path) -> None:
        """Where a write that returns nothing is acknowledged without being there, it is counted as lost."""
        kinds = [kind for kind in KINDS if kind.name == "write"]
        counts = prove_faults(
            folder, get_operation("add_key"), kinds=kinds, modes=[MODES[0]], tamper=tell_unknown_as_success
        )
        assert add_up(counts, "lost") > 0

    @pytest.mark.parametrize("column", ["lost", "kept", "doubled", "damaged", "stuck"])
    def test_command_tells_the_outcome(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], column: str
    ) -> None:
        """The command prints a table, and exits with 0 where the store holds, and with 1 where anything failed."""
        count = Count("redeem", "sync", "once", injected=3, unknown=3)
        monkeypatch.setattr(sqlite_faults, "run", lambda *_, **__: [count])
        assert sqlite_faults.main(["--operation", "redeem"]) == 0
        output = capsys.readouterr().out
        assert "redeem                  sync         once" in output
        assert output.endswith("\nthe store holds under faults\n")
        count.add(column, "at call 7")
        assert sqlite_faults.main(["--operation", "redeem"]) == 1
        output = capsys.readouterr().out
        assert f"    redeem, sync, once: {column}: at call 7\n" in output
        assert output.endswith("\nthe store does NOT hold under faults\n")

    def test_command_runs(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The command lets one operation meet all its faults."""
        assert sqlite_faults.main(["--operation", "find_invite"]) == 0
        assert "find_invite             read" in capsys.readouterr().out


def test_small_file_system_that_is_full_is_told(tmp_path: Path) -> None:
    """On a file system without space a write is refused in one line, nothing acknowledged is lost, and all goes on."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("a file system of its own can be mounted only as root, with unshare (package util-linux)")
    mount = [
        unshare,
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o size=800k tmpfs "$0" || exit 99; exec "$@"',
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*mount, sys.executable, "-c", FILLER, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if ended.returncode == 99:
        pytest.skip(f"no file system can be mounted here: {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stderr
    kept, is_right = ended.stdout.split()
    assert int(kept) > 0
    assert is_right == "True"
