"""The command on databases that are missing, locked, full, read-only, newer, damaged or no databases at all."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke, Run, change_database, run_command, url_of
from tests.helpers import make_invite, make_key
from tests.privileges import without_power_over_files
from tests.processes import StartPython

EVERY_COMMAND = [
    pytest.param(("create", "example.com"), id="create"),
    pytest.param(("list",), id="list"),
    pytest.param(("delete", "example.com", "aaaaaaaa"), id="delete"),
    pytest.param(("find", "aaaaaaaa"), id="find"),
    pytest.param(("serve",), id="serve"),
]
WRITING = EVERY_COMMAND[::2][:2]
HOLD_LOCK = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
connection.close()
"""
GROW_LOG = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.pragma("wal_autocheckpoint", 0)
for number in range(30):
    connection.execute("INSERT INTO deleted_keys VALUES (?, 1)", (f"gone{number}",))
print("grown", flush=True)
sys.stdin.readline()
connection.close()
"""


@pytest.fixture
def filled(database: Path) -> Path:
    """The path of a database with a key and an invite in it, which nobody has open."""
    store = SqliteStore(database)
    store.add_key(make_key(id="aaaaaaaa"))
    store.add_invites([make_invite()])
    store.close()
    return database


def find_journal_mode(database: Path) -> str:
    """Return the journal mode that a database is in."""
    connection = apsw.Connection(str(database))
    try:
        [(mode,)] = connection.execute("PRAGMA journal_mode").fetchall()
        return str(mode)
    finally:
        connection.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers of this process wait for a fifth of a second instead of five."""
    patient = SqliteStore.__init__

    def init(self: SqliteStore, path: Path, *, create: bool = True, timeout: float = 0.2) -> None:
        patient(self, path, create=create, timeout=timeout)

    monkeypatch.setattr(SqliteStore, "__init__", init)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Let every connection that is opened find no page free beyond those that the file has."""

    def limit(connection: apsw.Connection) -> None:
        connection.pragma("max_page_count", 1)

    apsw.connection_hooks.append(limit)
    try:
        yield
    finally:
        apsw.connection_hooks.remove(limit)


def digest_of(folder: Path) -> dict[str, str]:
    """Return a digest of every file in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def assert_one_line(run: Run, message: str) -> None:
    assert run.code == 3
    assert run.out == ""
    assert run.err.count("\n") == 1
    assert run.err.startswith(f"Error: {message}"), run.err


def assert_whole(database: Path) -> None:
    """Check that a database can be opened, is sound, and holds what it held."""
    store = SqliteStore(database, create=False)
    assert store.find_problems() in ([], ())
    assert [key.id for key in store.list_keys()] == ["aaaaaaaa"]
    store.close()


# Missing


@pytest.mark.parametrize("command", EVERY_COMMAND[1:])
def test_a_missing_database_is_told_by_its_path(invoke: Invoke, database: Path, command: tuple[str, ...]) -> None:
    """Every command but create says where it has looked, and makes nothing."""
    assert_one_line(invoke(*command), f"no database at {database}\n")
    assert list(database.parent.iterdir()) == []


@pytest.mark.parametrize("command", EVERY_COMMAND[1:])
def test_a_missing_default_database_is_told_by_its_path(
    invoke: Invoke, clean_environment: Path, command: tuple[str, ...]
) -> None:
    """Without any settings the path that is told is the one in the user's data folder, which is not made."""
    path = clean_environment / ".local" / "share" / "invites-api" / "invites.db"
    assert_one_line(invoke(*command, database=None), f"no database at {path}\n")
    assert list(clean_environment.iterdir()) == []


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_a_missing_folder_is_one_line(invoke: Invoke, tmp_path: Path, command: tuple[str, ...]) -> None:
    """A path in a folder that is not there is told whole."""
    path = tmp_path / "missing" / "folder" / "x.db"
    expected = f"no database at {path}\n"
    if command[0] == "create":
        expected = f"cannot make the database {path}: there is no folder {path.parent}\n"
    assert_one_line(invoke(*command, database=path), expected)
    assert not (tmp_path / "missing").exists()


def test_a_file_in_the_place_of_a_folder_is_one_line(invoke: Invoke, tmp_path: Path) -> None:
    """A path through a file leads nowhere."""
    (tmp_path / "file").touch()
    assert invoke("create", "example.com", database=tmp_path / "file" / "x.db").code == 3
    assert invoke("list", database=tmp_path / "file" / "x.db").code == 3
    assert (tmp_path / "file").read_bytes() == b""


# Not ours


@pytest.mark.parametrize("command", EVERY_COMMAND)
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"my shopping list\n" * 100, id="text"),
        pytest.param(b"\x00" * 8192, id="zeros"),
        pytest.param(b"SQLite format 3\x00" + b"\xff" * 4080, id="header-and-nonsense"),
    ],
)
def test_a_file_that_is_no_database_is_left_alone(
    invoke: Invoke, database: Path, command: tuple[str, ...], content: bytes
) -> None:
    """Another file is not taken for a database, and not a byte of it is changed."""
    database.write_bytes(content)
    run = invoke(*command)
    assert run.code == 3
    assert run.err.count("\n") == 1
    assert str(database) in run.err
    assert database.read_bytes() == content


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_an_empty_file_is_no_database(invoke: Invoke, database: Path, command: tuple[str, ...]) -> None:
    """A file of no bytes, which SQLite would fill, is left alone as well."""
    database.touch()
    assert_one_line(invoke(*command), f"{database} is not a database of invites-api\n")
    assert database.read_bytes() == b""


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_a_folder_is_no_database(invoke: Invoke, tmp_path: Path, command: tuple[str, ...]) -> None:
    """A folder in the place of the database is one line."""
    assert_one_line(invoke(*command, database=tmp_path), f"cannot open the database {tmp_path}")


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_a_database_of_another_program_is_left_alone(invoke: Invoke, database: Path, command: tuple[str, ...]) -> None:
    """A SQLite database that is not ours is refused, and stays as it was."""
    change_database(database, "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    before = digest_of(database.parent)
    assert_one_line(invoke(*command), f"{database} is not a database of invites-api\n")
    assert digest_of(database.parent) == before


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_a_newer_database_is_left_alone(invoke: Invoke, filled: Path, command: tuple[str, ...]) -> None:
    """A database of a later version is refused with both versions, and nothing in it is touched."""
    change_database(filled, "PRAGMA user_version = 99")
    before = digest_of(filled.parent)
    assert_one_line(invoke(*command), f"the database {filled} has schema version 99; this program knows version 1\n")
    after = digest_of(filled.parent)
    assert {name: after[name] for name in before} == before
    change_database(filled, "PRAGMA user_version = 1")
    assert_whole(filled)


@pytest.mark.parametrize("command", [*EVERY_COMMAND[:-1], pytest.param(("check",), id="check")])
def test_a_database_in_another_mode_is_set_right(invoke: Invoke, filled: Path, command: tuple[str, ...]) -> None:
    """A copy that VACUUM INTO has made is in another journal mode; opening it sets it to the one that is needed."""
    copy = filled.with_name("copy.db")
    change_database(filled, f"VACUUM INTO '{copy}'")
    copy.chmod(0o600)
    assert find_journal_mode(copy) == "delete"
    assert invoke(*command, database=copy).code == 0
    assert find_journal_mode(copy) == "wal"


# Locked


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("command", WRITING)
def test_a_locked_database_is_busy(
    invoke: Invoke, filled: Path, start_python: StartPython, command: tuple[str, ...]
) -> None:
    """While another process writes, what writes says that the database is busy, and what reads goes on."""
    holder = start_python(HOLD_LOCK, filled)
    holder.wait_for_line("locked")
    assert_one_line(invoke(*command), "the database")
    assert "busy" in invoke(*command).err
    assert invoke("list").out == "aaaaaaaa\tMy test key\n"
    assert invoke("find", "aaaaaaaa").code == 0
    holder.finish()
    assert_whole(filled)
    assert invoke(*command).code == 0


# Full


def test_a_full_database_takes_no_key(invoke: Invoke, filled: Path) -> None:
    """With no room left `create` says so and prints no key; what there is can still be read."""
    made = 0
    with full_disk():
        while (run := invoke("create", "example.com", "x" * 255)).code == 0:
            made += 1
            assert made < 200
        assert_one_line(run, f"no space left for the database {filled}")
        assert invoke("list").out.count("\n") == made + 1
    store = SqliteStore(filled)
    assert store.find_problems() in ([], ())
    assert len(store.list_keys()) == made + 1
    store.close()


def test_a_full_disk_makes_no_database(invoke: Invoke, database: Path) -> None:
    """Where there is no room for a new database nothing is left of it."""
    with full_disk():
        run = invoke("create", "example.com")
    assert run.code == 3
    assert run.out == ""
    assert run.err.count("\n") == 1
    assert list(database.parent.iterdir()) == []


@pytest.mark.parametrize("command", WRITING)
def test_a_disk_that_takes_no_more_is_one_line(
    filled: Path, start_python: StartPython, command: tuple[str, ...]
) -> None:
    """When writing fails in the middle the command fails with one line, and the database stays whole."""
    holder = start_python(GROW_LOG, filled)
    holder.wait_for_line("grown")

    # The log is longer already than any file may become here, and writing behind that place is an error.
    run = run_command(
        "--database",
        url_of(filled),
        *command,
        shell='unset COVERAGE_PROCESS_CONFIG COVERAGE_PROCESS_START; ulimit -f 80; exec "$@"',
    )
    assert (run.returncode, run.stdout) == (3, b"")
    assert run.stderr.startswith(b"Error: ")
    assert str(filled).encode() in run.stderr
    assert run.stderr.count(b"\n") == 1
    holder.finish()
    assert_whole(filled)


# Read-only


@pytest.mark.parametrize("command", WRITING)
def test_a_read_only_database_takes_no_changes(invoke: Invoke, filled: Path, command: tuple[str, ...]) -> None:
    """A file that may only be read is listed from and not written to."""
    filled.chmod(0o400)
    with without_power_over_files():
        assert_one_line(invoke(*command), f"the database {filled} is read-only")
        assert invoke("list").out == "aaaaaaaa\tMy test key\n"
    filled.chmod(0o600)
    assert_whole(filled)


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_a_closed_database_is_one_line(invoke: Invoke, filled: Path, command: tuple[str, ...]) -> None:
    """A file that may not even be read is one line that names it."""
    filled.chmod(0o000)
    with without_power_over_files():
        assert_one_line(invoke(*command), f"cannot open the database {filled}")
    filled.chmod(0o600)
    assert_whole(filled)


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_a_closed_folder_is_one_line(invoke: Invoke, filled: Path, command: tuple[str, ...]) -> None:
    """A folder that may not be entered is one line that names the database."""
    filled.parent.chmod(0o000)
    with without_power_over_files():
        run = invoke(*command)
    filled.parent.chmod(0o700)
    assert_one_line(run, "cannot ")
    assert str(filled) in run.err
    assert_whole(filled)


# Damaged


@pytest.mark.parametrize("command", EVERY_COMMAND[:4])
def test_a_damaged_database_is_one_line(invoke: Invoke, filled: Path, command: tuple[str, ...]) -> None:
    """Pages of nonsense are called damage, not an empty list."""
    with filled.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * (filled.stat().st_size - 4096))
    assert_one_line(invoke(*command), f"the database {filled} is damaged")


def test_a_corrupt_record_is_one_line(invoke: Invoke, filled: Path) -> None:
    """A row that this program cannot have written is told, and not shown as something that it is not."""
    change_database(filled, "UPDATE keys SET policy = '[]'")
    assert_one_line(invoke("list"), "a stored policy cannot be read")
    assert_one_line(invoke("find", "aaaaaaaa"), "a stored policy cannot be read")
    assert invoke("delete", "example.com", "aaaaaaaa").code == 0


def test_a_dangling_link_is_one_line(invoke: Invoke, database: Path) -> None:
    """A link to nowhere is not followed to make a database somewhere else."""
    database.symlink_to(database.parent / "elsewhere.db")
    assert_one_line(invoke("list"), f"no database at {database}\n")
    run = invoke("create", "example.com")
    assert (run.code, run.out) == (3, "")
    assert [path.name for path in database.parent.iterdir()] == [database.name]
