"""`invites-api backup`: whole, private, never over something else, on disks and in places that do not bear it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import apsw
import pytest

from invites_core.errors import StorageError
from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke, run_command, url_of
from tests.helpers import PATIENCE, make_invite, make_key
from tests.privileges import without_power_over_files
from tests.processes import Fork
from tests.proofs.faulty_vfs import FaultyDisk
from tests.stores.sqlite_files import list_names, run_sql
from tests.wsgi.support import COMMAND

# Some 60 MB, so that a copy takes a while.
FILL_LARGE = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 60000)
INSERT INTO invites (position, token, host, kind, registration, created_at, max_uses, uses, source, groups, roles, note)
SELECT n, printf('token-%018d', n), 'example.com', 'register', 1, 1700000000, 1, 0, 'command', '[]', '[]',
    printf('%0900d', n) FROM numbers
"""


@pytest.fixture
def filled(database: Path) -> Path:
    """The path of a database with a key and an invite in it, which nobody has open."""
    store = SqliteStore(database)
    store.add_key(make_key(id="aaaaaaaa"))
    store.add_invites([make_invite()])
    store.close()
    return database


@pytest.fixture
def folder() -> Path:
    """The folder that the command runs in, empty."""
    return Path.cwd()


def assert_whole(database: Path) -> None:
    """Check that a database can be opened, is sound, and holds what it held."""
    store = SqliteStore(database, create=False)
    try:
        assert store.find_problems() == []
        assert [key.id for key in store.list_keys()] == ["aaaaaaaa"]
    finally:
        store.close()


def test_a_backup_is_a_database(invoke: Invoke, filled: Path, folder: Path) -> None:
    """The backup is one private file, whatever the umask is, and can be used as it is; nothing is printed."""
    before = os.umask(0)
    try:
        run = invoke("backup", "backup.db")
    finally:
        os.umask(before)
    assert (run.code, run.out, run.err) == (0, "", f"Made the backup {folder / 'backup.db'}\n")
    assert list_names(folder) == {"backup.db"}
    assert stat.S_IMODE((folder / "backup.db").stat().st_mode) == 0o600
    assert (folder / "backup.db").stat().st_nlink == 1
    assert_whole(folder / "backup.db")
    assert_whole(filled)


def test_what_is_still_in_the_log_is_in_the_backup(invoke: Invoke, store: SqliteStore, folder: Path) -> None:
    """What was answered a moment ago, and is in the log alone, is in the backup; others have the database open."""
    store.add_key(make_key(id="aaaaaaaa"))
    assert invoke("backup", "backup.db").code == 0
    store.add_key(make_key(id="later"))
    assert_whole(folder / "backup.db")


def test_a_long_write_keeps_no_backup_waiting(invoke: Invoke, filled: Path, folder: Path) -> None:
    """While another process holds the write lock, a backup is made all the same, of what was committed before."""
    connection = apsw.Connection(str(filled))
    try:
        connection.execute("BEGIN IMMEDIATE; DELETE FROM keys").fetchall()
        assert invoke("backup", "backup.db").code == 0
        connection.execute("ROLLBACK")
    finally:
        connection.close()
    assert_whole(folder / "backup.db")


@pytest.mark.parametrize("kind", ["file", "empty", "folder", "link", "dangling", "itself"])
def test_nothing_is_overwritten(invoke: Invoke, filled: Path, folder: Path, kind: str) -> None:
    """What has the name already stays as it is, and what a link points to as well."""
    file, other = folder / "backup.db", folder / "other"
    match kind:
        case "file":
            file.write_text("precious")
        case "empty":
            file.touch()
        case "folder":
            file.mkdir()
        case "link":
            other.write_text("precious")
            file.symlink_to(other)
        case "dangling":
            file.symlink_to(other)
        case "itself":
            file = filled
    before = {path.name: (path.lstat().st_ino, path.lstat().st_size) for path in folder.iterdir()}
    run = invoke("backup", str(file))
    run.assert_failed(3, f"cannot make the backup {file}: there is something of this name already")
    assert {path.name: (path.lstat().st_ino, path.lstat().st_size) for path in folder.iterdir()} == before
    assert_whole(filled)


def test_a_file_that_comes_meanwhile_is_not_overwritten(
    invoke: Invoke, filled: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two backups to one name that run at once the first one stays, and the other leaves nothing."""
    sync = os.fsync

    def sync_late(descriptor: int) -> None:
        (folder / "backup.db").write_text("the other's")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_late)
    assert invoke("backup", "backup.db").code == 3
    assert (folder / "backup.db").read_text() == "the other's"
    assert list_names(folder) == {"backup.db"}


def test_a_file_system_without_links_will_do(
    invoke: Invoke, filled: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file cannot have two names, the backup is made all the same, and nothing is overwritten."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert invoke("backup", "backup.db").code == 0
    assert list_names(folder) == {"backup.db"}
    assert_whole(folder / "backup.db")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        pytest.param("missing/x.db", "there is no folder {folder}/missing", id="no-folder"),
        pytest.param("file/x.db", "not a directory", id="below-a-file"),
        pytest.param("x" * 256, "file name too long", id="long-name"),
        pytest.param("y.db", "there is a {folder}/y.db-wal of another database beside", id="foreign-log"),
    ],
)
def test_an_impossible_place_is_one_line(invoke: Invoke, filled: Path, folder: Path, file: str, message: str) -> None:
    """A place where no backup can be is told by its path, with the reason, and nothing is left there."""
    (folder / "file").touch()
    (folder / "y.db-wal").write_text("another's")
    run = invoke("backup", file)
    run.assert_failed(3, f"cannot make the backup {folder / file}: {message.format(folder=folder)}")
    assert list_names(folder) == {"file", "y.db-wal"}


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal", "-lock"])
def test_a_part_of_the_database_is_no_place(invoke: Invoke, filled: Path, suffix: str) -> None:
    """A name that SQLite would take for a part of the database is refused, whether or not it is there."""
    before = list_names(filled.parent)
    run = invoke("backup", f"{filled}{suffix}")
    assert run.code == 3
    assert run.err.startswith(f"Error: cannot make the backup {filled}{suffix}: ")
    assert list_names(filled.parent) <= before | {"invites.db-lock"}
    assert_whole(filled)


@pytest.mark.parametrize("file", ["", "new/"])
def test_a_name_is_needed(invoke: Invoke, filled: Path, folder: Path, file: str) -> None:
    """What names no file is not said right."""
    invoke("backup", file).assert_failed(2, "FILE must be the name of a file")
    assert list_names(folder) == set()


def test_a_name_that_is_no_text_is_one_line(filled: Path, folder: Path) -> None:
    """Bytes that are no UTF-8 are refused: SQLite could not name such a file."""
    ended = run_command("--database", url_of(filled), "backup", b"caf\xe9.db", cwd=folder)
    assert ended.returncode == 3
    assert ended.stderr == b"Error: cannot make the backup: its name is not valid UTF-8\n"
    assert list_names(folder) == set()


def test_a_folder_that_cannot_be_written_is_one_line(invoke: Invoke, filled: Path, folder: Path) -> None:
    """Where its user may not write, there is no backup."""
    closed = folder / "closed"
    closed.mkdir(mode=0o500)
    with without_power_over_files():
        run = invoke("backup", str(closed / "x.db"))
    run.assert_failed(3, f"cannot make the backup {closed / 'x.db'}: permission denied")
    assert list_names(closed) == set()


def test_a_full_disk_leaves_nothing(filled: Path, folder: Path, fork: Fork) -> None:
    """Where the disk is full halfway, one line says so, and neither the backup nor a part of it is there."""
    run_sql(filled, FILL_LARGE.replace("60000", "3000"))

    def back_up() -> str:
        disk = FaultyDisk()
        disk.install()
        store = SqliteStore(filled, create=False)
        disk.arm("xWrite", apsw.SQLITE_FULL, first=100)
        with pytest.raises(StorageError) as caught:
            store.back_up(Path("backup.db"))
        return str(caught.value)

    assert fork(back_up).result() == f"no space left for the backup {folder / 'backup.db'}"
    assert list_names(folder) == set()
    assert_whole(filled)


def test_a_limit_on_the_size_of_files_leaves_nothing(filled: Path, folder: Path) -> None:
    """Where the system takes only a part of the backup, that part does not stay."""
    run_sql(filled, FILL_LARGE.replace("60000", "3000"))
    ended = run_command("--database", url_of(filled), "backup", "backup.db", shell='ulimit -f 1024; exec "$@"')
    assert ended.returncode == 3
    assert ended.stderr.startswith(b"Error: cannot make the backup ")
    assert ended.stderr.count(b"\n") == 1
    assert list_names(folder) == set()


def test_a_sync_that_fails_leaves_nothing(
    invoke: Invoke, filled: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that is not on the disk for certain does not get its name."""

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    run = invoke("backup", "backup.db")
    run.assert_failed(3, f"cannot make the backup {folder / 'backup.db'}: input/output error")
    assert list_names(folder) == set()


def test_a_damaged_database_gives_no_backup(invoke: Invoke, filled: Path, folder: Path) -> None:
    """What cannot be read whole does not pass for a backup."""
    run_sql(filled, FILL_LARGE.replace("60000", "500"))
    with filled.open("r+b") as opened:
        opened.seek(20 * 4096)
        opened.write(os.urandom(40 * 4096))
    run = invoke("backup", "backup.db")
    assert run.code == 3
    assert run.err.count("\n") == 1
    assert list_names(folder) == set()


def test_a_backup_is_stopped_with_ctrl_c(filled: Path, folder: Path) -> None:
    """Ctrl-C ends a backup halfway with one line, and leaves nothing behind."""
    run_sql(filled, FILL_LARGE)
    arguments = [*COMMAND, "--database", url_of(filled), "backup", str(folder / "backup.db")]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE
    try:
        while not any(path.stat().st_size > 100_000 for path in folder.glob(".invites-api-backup-*")):
            assert process.poll() is None, "it was over before it could be stopped"
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        with process:
            process.kill()
    assert process.returncode == 130
    assert errors.split() == [b"Error:", b"stopped"]
    assert list_names(folder) == set()


def test_a_second_database_for_the_invites_is_told(invoke: Invoke, filled: Path, folder: Path, tmp_path: Path) -> None:
    """Where the invites are in a database of their own, the backup is of the keys', and says so."""
    config = tmp_path / "settings.toml"
    config.write_text(f'database = "{url_of(filled)}"\ninvites = "{url_of(tmp_path / "other.db")}"\n')
    run = invoke("--config", str(config), "backup", "backup.db", database=None)
    assert run.code == 0
    assert "The invites are in a database of their own" in run.err
    assert_whole(folder / "backup.db")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param("memory:", "memory: is gone with its process; there is nothing to back up", id="memory"),
        pytest.param(
            "postgresql://db/x",
            "a PostgreSQL database is backed up with: pg_dump --format=custom --file='a b' DATABASE",
            id="postgresql",
        ),
    ],
)
def test_what_is_no_file_is_backed_up_otherwise(invoke: Invoke, folder: Path, url: str, message: str) -> None:
    """For a database that is no file one line says what to do; nothing is connected to."""
    invoke("backup", "a b", database=url).assert_failed(1, message)
    assert list_names(folder) == set()


def test_no_database_is_no_backup(invoke: Invoke, database: Path, folder: Path) -> None:
    """A database that is not there is not made."""
    invoke("backup", "backup.db").assert_failed(3, f"no database at {database}")
    assert list_names(folder) == set()


def test_the_backup_is_not_open_to_the_log_of_another(invoke: Invoke, filled: Path, folder: Path) -> None:
    """A backup is in no need of a log, so a plain copy of it is whole."""
    assert invoke("backup", "backup.db").code == 0
    connection = apsw.Connection(str(folder / "backup.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        assert connection.execute("PRAGMA journal_mode").fetchall() == [("delete",)]
    finally:
        connection.close()
