"""The SQLite store: what goes wrong on a machine, told in one clear line that names the file, and nothing damaged."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw
import pytest

from invites_core.errors import CorruptRecord, KeyExists, OutcomeUnknown, StorageBusy, StorageError
from invites_core.stores.sqlite import SqliteStore
from invites_core.stores.sqlite_database import SqliteDatabase
from tests.helpers import PATIENCE, make_invite, make_key
from tests.privileges import without_power_over_files
from tests.processes import Fork, StartPython
from tests.proofs.faulty_vfs import FaultyDisk
from tests.stores.sqlite_files import (
    FILES,
    change_database,
    list_names,
    list_soundly,
    make_database,
    run_sql,
    use_and_close,
)

# Holds the write lock of a database until it is told to let it go.
HOLDER: Final = """
import sys
import apsw

connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
connection.close()
"""

# Tells whether it could begin to write.
TRIER: Final = """
import sys
import apsw

connection = apsw.Connection(sys.argv[1])
try:
    connection.execute("BEGIN IMMEDIATE")
    print("began")
except apsw.Error as error:
    print(type(error).__name__)
connection.close(True)
"""


class TestFaults:
    """What goes wrong on a machine: one clear line that names the file, and nothing damaged."""

    @pytest.mark.parametrize(
        ("file_mode", "folder_mode", "message"),
        [
            pytest.param(0o400, 0o500, "the database {} is read-only", id="file-and-folder-read-only"),
            pytest.param(0o400, 0o700, "the database {} is read-only", id="file-read-only"),
            pytest.param(0o600, 0o500, "the database {} is read-only", id="folder-read-only"),
            pytest.param(0o000, 0o700, "cannot open the database {}: permission denied", id="file-closed"),
            pytest.param(0o600, 0o000, "cannot open the database {}: permission denied", id="folder-closed"),
        ],
    )
    @pytest.mark.parametrize("create", [True, False], ids=["create", "open"])
    def test_missing_permission_is_told(
        self, tmp_path: Path, file_mode: int, folder_mode: int, message: str, create: bool
    ) -> None:
        """Where the database cannot be written, or not read, one line says so, and it is unharmed."""
        folder = tmp_path / "data"
        folder.mkdir()
        path = folder / "invites.db"
        make_database(path)
        before = list_soundly(path)
        path.chmod(file_mode)
        folder.chmod(folder_mode)
        try:
            with without_power_over_files(), pytest.raises(StorageError) as caught:
                use_and_close(path, make_key(), create=create)
        finally:
            folder.chmod(0o700)
        path.chmod(0o600)
        assert str(caught.value) == message.format(path)
        assert list_soundly(path) == before
        use_and_close(path, make_key())

    def test_folder_that_cannot_be_written_is_told(self, tmp_path: Path) -> None:
        """Where the database cannot be made one line says so, and nothing is left behind."""
        folder = tmp_path / "data"
        folder.mkdir(mode=0o500)
        path = folder / "invites.db"
        message = f"^cannot make the database {path}: permission denied$"
        with without_power_over_files(), pytest.raises(StorageError, match=message):
            SqliteStore(path)
        assert list_names(folder) == set()

    @pytest.mark.parametrize(
        ("prepare", "message"),
        [
            pytest.param(lambda path: path.write_bytes(b"\x07" * 5_000), "{} is not a SQLite database", id="garbage"),
            pytest.param(lambda path: path.write_text("[http]\n"), "{} is not a SQLite database", id="text"),
            pytest.param(lambda path: path.touch(), "{} is not a database of invites-api", id="empty"),
            pytest.param(
                lambda path: run_sql(path, "CREATE TABLE t (c); INSERT INTO t VALUES (1)"),
                "{} is not a database of invites-api",
                id="another-program",
            ),
            pytest.param(
                lambda path: run_sql(path, "PRAGMA journal_mode = WAL; CREATE TABLE keys (id)"),
                "{} is not a database of invites-api",
                id="another-program-in-wal-mode",
            ),
            pytest.param(
                lambda path: change_database(path, "PRAGMA user_version = 2"),
                "the database {} has schema version 2; this program knows version 1",
                id="newer",
            ),
            pytest.param(
                lambda path: change_database(path, "PRAGMA user_version = 0"),
                "the database {} has schema version 0; this program knows version 1",
                id="older",
            ),
            pytest.param(
                lambda path: change_database(path, "PRAGMA user_version = 1", cut_to=4_096 * 3),
                "the database {} is damaged",
                id="cut-off",
            ),
        ],
    )
    @pytest.mark.parametrize("create", [True, False], ids=["create", "open"])
    def test_another_file_is_told_and_left_alone(
        self, path: Path, prepare: Callable[[Path], object], message: str, create: bool
    ) -> None:
        """What is not a database of this version is named in one line, and not one byte of it is changed."""
        prepare(path)
        before = path.read_bytes()
        with pytest.raises(StorageError) as caught:
            SqliteStore(path, create=create)
        assert str(caught.value) == message.format(path)
        assert path.read_bytes() == before
        assert list_names(path.parent) <= FILES

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            pytest.param("folder", "cannot open the database {}: it is a folder", id="folder"),
            pytest.param("file/invites.db", "cannot open the database {}: not a directory", id="under-a-file"),
            pytest.param("x" * 300, "cannot open the database {}: file name too long", id="long-name"),
        ],
    )
    @pytest.mark.parametrize("create", [True, False], ids=["create", "open"])
    def test_impossible_path_is_told(self, tmp_path: Path, name: str, message: str, create: bool) -> None:
        """A path that can hold no database is named in one line with the reason."""
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        with pytest.raises(StorageError) as caught:
            SqliteStore(tmp_path / name, create=create)
        assert str(caught.value) == message.format(tmp_path / name)
        assert list_names(tmp_path) == {"folder", "file"}
        assert list_names(tmp_path / "folder") == set()

    def test_missing_folder_is_told(self, tmp_path: Path) -> None:
        """Where there is no folder for the database one line names both; the folder is not made."""
        path = tmp_path / "missing" / "invites.db"
        with pytest.raises(StorageError, match=f"^cannot make the database {path}: there is no folder {path.parent}$"):
            SqliteStore(path)
        with pytest.raises(StorageError, match=f"^no database at {path}$"):
            SqliteStore(path, create=False)
        assert list_names(tmp_path) == set()

    def test_lock_held_by_another_process_is_told(self, path: Path, start_python: StartPython) -> None:
        """While another process writes, reads go on, and a write is StorageBusy after the time limit."""
        store = SqliteStore(path, timeout=0.2)
        key, another = make_key(), make_key()
        store.add_key(key)
        holder = start_python(HOLDER, path)
        holder.wait_for_line("locked")
        began = time.monotonic()
        with pytest.raises(StorageBusy, match=f"^the database {path} is busy$"):
            store.add_key(another)
        assert 0.1 < time.monotonic() - began < 5
        assert store.find_key(key.id) == key
        assert store.find_key(another.id) is None
        store.ping()
        holder.go()
        holder.finish()
        store.add_key(another)
        assert store.find_key(another.id) == another
        store.close()

    def test_nobody_else_writes_while_a_change_is_under_way(
        self, database: SqliteDatabase, path: Path, start_python: StartPython
    ) -> None:
        """A change holds the lock of SQLite itself from its beginning, also against programs that know no other."""

        def change(connection: apsw.Connection) -> str:
            assert connection.execute("SELECT count(*) FROM keys").get == 0
            answer = start_python(TRIER, path).finish()
            connection.execute("INSERT INTO deleted_keys VALUES ('a', 1)").fetchall()
            return answer.strip()

        assert database.write(change) == "BusyError"
        assert start_python(TRIER, path).finish().strip() == "began"

    def test_lock_that_is_let_go_in_time_is_waited_for(self, store: SqliteStore, start_python: StartPython) -> None:
        """A write waits for another process within the time limit, and then succeeds."""
        holder = start_python(HOLDER, store.location)
        holder.wait_for_line("locked")
        key = make_key()
        writer = threading.Thread(target=store.add_key, args=(key,), daemon=True)
        writer.start()
        holder.go()
        holder.finish()
        writer.join(PATIENCE)
        assert store.find_key(key.id) == key

    @pytest.mark.parametrize(
        "take_away",
        [
            pytest.param(lambda path: path.unlink(), id="deleted"),
            pytest.param(lambda path: path.rename(path.with_name("moved.db")), id="moved"),
            pytest.param(lambda path: path.with_name("other.db").replace(path), id="replaced"),
        ],
    )
    def test_file_that_was_taken_away_is_not_written(self, path: Path, take_away: Callable[[Path], object]) -> None:
        """Once the file at the path is another, or none, writes and pings are StorageError."""
        make_database(path.with_name("other.db"))
        other = path.with_name("other.db").read_bytes()
        store = SqliteStore(path)
        store.add_key(make_key())
        take_away(path)
        message = f"^the database {path} was moved or deleted while it was open; restart the service$"
        for _ in range(2):
            with pytest.raises(StorageError, match=message):
                store.add_key(make_key())
            with pytest.raises(StorageError, match=message):
                store.ping()
        store.close()
        assert not path.exists() or path.read_bytes() == other

    def test_page_limit_is_told(self, store: SqliteStore, database: SqliteDatabase, path: Path) -> None:
        """Where a change needs more pages than may be one line says so, and nothing of it is kept."""
        key = make_key()
        store.add_key(key)
        [(pages,)] = database.read("PRAGMA page_count")
        database.write(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchall())
        invites = [make_invite(note="x" * 1_000) for _ in range(100)]
        with pytest.raises(StorageError, match=f"^no space left for the database {path}$") as caught:
            store.add_invites(invites)
        assert not isinstance(caught.value, OutcomeUnknown)
        assert store.find_key(key.id) == key
        assert [store.find_invite(invite.token) for invite in invites] == [None] * 100
        database.write(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchall())
        store.add_invites(invites)
        assert database.read("PRAGMA integrity_check") == [("ok",)]

    def test_full_disk_is_told(self, path: Path, fork: Fork) -> None:
        """On a full disk a write is no success, one line names the file and the reason, and later writes succeed."""
        made = make_database(path)

        def use() -> tuple[str, bool, list[str]]:
            disk = FaultyDisk()
            disk.install()
            store = SqliteStore(path)
            disk.arm("xWrite", apsw.SQLITE_FULL)
            with pytest.raises(StorageError) as caught:
                store.add_key(make_key(id="refused"))
            assert len(store.list_keys()) == len(made)
            disk.mend()
            store.add_key(make_key(id="later"))
            store.close()
            return str(caught.value), "\n" in str(caught.value), sorted(key.id for key in list_soundly(path))

        message, has_two_lines, ids = fork(use).result()
        assert f"no space left for the database {path}" in message
        assert not has_two_lines
        assert ids == sorted([*(key.id for key in made), "later"])

    def test_database_that_does_not_fit_is_not_left_half_made(self, path: Path, fork: Fork) -> None:
        """Where the disk is full at the first start one line says so, and nothing is left behind."""

        def make() -> str:
            disk = FaultyDisk()
            disk.install()
            disk.arm("xWrite", apsw.SQLITE_FULL)
            with pytest.raises(StorageError) as caught:
                SqliteStore(path)
            return str(caught.value)

        assert f"no space left for the database {path}" in fork(make).result()
        assert list_names(path.parent) == set()

    def test_failed_sync_is_an_unknown_outcome(self, path: Path, fork: Fork) -> None:
        """A commit whose sync fails is OutcomeUnknown, never a success, and the same write resolves it."""
        made = make_database(path)

        def use() -> tuple[str, str]:
            disk = FaultyDisk()
            disk.install()
            store = SqliteStore(path)
            key = make_key(id="repeated")
            disk.arm("xSync", apsw.SQLITE_IOERR_FSYNC)
            with pytest.raises(OutcomeUnknown) as caught:
                store.add_key(key)
            disk.mend()
            try:
                store.add_key(key)
            except KeyExists:
                pass
            assert store.find_key(key.id) == key
            store.close()
            return str(caught.value), type(caught.value.__cause__).__name__

        message, cause = fork(use).result()
        assert str(path) in message
        assert cause == "IOError"
        assert {key.id for key in list_soundly(path)} == {key.id for key in made} | {"repeated"}

    def test_damage_is_found(self, path: Path) -> None:
        """A database whose pages were written over is a problem in words, each one line that names the file."""
        make_database(path, keys=200)
        store = SqliteStore(path)
        assert store.find_problems() == []
        store.close()
        with path.open("r+b") as file:
            file.seek(-8_000, os.SEEK_END)
            file.write(b"\x07" * 4_000)
        store = SqliteStore(path)
        problems = store.find_problems()
        store.close()
        assert problems
        assert all(problem.startswith(f"the database {path} is damaged") for problem in problems)
        assert not any("\n" in problem for problem in problems)

    def test_damaged_row_is_told(self, store: SqliteStore, database: SqliteDatabase) -> None:
        """A row that this program cannot have written is CorruptRecord, and says nothing of what is in it."""
        key = make_key()
        store.add_key(key)
        database.write(lambda connection: connection.execute("UPDATE keys SET policy = 'canary'").fetchall())
        with pytest.raises(CorruptRecord) as caught:
            store.find_key(key.id)
        assert "canary" not in str(caught.value)
