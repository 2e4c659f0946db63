"""`invites-api copy`: what it takes, prints and refuses, and that it can be stopped at any moment."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke, run_command, url_of
from tests.helpers import PATIENCE, make_invite, make_key, wait_until
from tests.privileges import without_power_over_files
from tests.stores.sqlite_files import get_mode, list_names, run_sql
from tests.wsgi.support import COMMAND

# The password of a URL that is no database's.
SECRET = "hunter2"

COUNTS = "deleted_keys\t0\nquotas\t0\ncreations\t0\nredemptions\t0\ninvites\t{invites}\nkeys\t{keys}\n"

FILL = """
WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 30000)
INSERT INTO invites (position, token, host, kind, registration, created_at, max_uses, uses, source, groups, roles)
SELECT n, printf('token-%018d', n), 'example.com', 'register', 1, 1700000000, 1, 0, 'command', '[]', '[]' FROM numbers
"""


@pytest.fixture
def filled(database: Path) -> Path:
    """The path of a database with a key and two invites in it, which nobody has open."""
    store = SqliteStore(database)
    store.add_key(make_key(id="aaaaaaaa"))
    store.add_invites([make_invite(), make_invite()])
    store.close()
    return database


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where the copy is to be."""
    return tmp_path / "work" / "copy.db"


def list_ids(database: Path) -> list[str]:
    store = SqliteStore(database, create=False)
    try:
        return [key.id for key in store.list_keys()]
    finally:
        store.close()


def test_a_copy_is_made_and_told(invoke: Invoke, filled: Path, target: Path) -> None:
    """The database is made, for its owner alone, its path is told, and the rows of each table are printed."""
    run = invoke("copy", "--from", url_of(filled), "--to", url_of(target), database=None)
    assert (run.code, run.out) == (0, COUNTS.format(invites=2, keys=1))
    assert run.err == f"Made the database {target}\n{target} holds all of {filled}, row for row.\n"
    assert get_mode(target) == 0o600
    assert list_ids(target) == ["aaaaaaaa"]


@pytest.mark.parametrize("left_out", ["--from", "--to"])
def test_what_is_left_out_is_the_database_of_the_settings(
    invoke: Invoke, filled: Path, target: Path, left_out: str
) -> None:
    """One of both databases can be named in the settings alone, as one whose URL has a password must be."""
    if left_out == "--from":
        run = invoke("copy", "--to", url_of(target), database=filled)
    else:
        run = invoke("copy", "--from", url_of(filled), database=target)
    assert run.code == 0
    assert list_ids(target) == ["aaaaaaaa"]


def test_the_database_of_the_settings_has_no_second_one_for_the_invites(
    invoke: Invoke, filled: Path, target: Path, tmp_path: Path
) -> None:
    """Where keys and invites are in two databases, one copy is one of them, and leaves the other alone."""
    config = tmp_path / "settings.toml"
    other = tmp_path / "other.db"
    config.write_text(f'database = "{url_of(filled)}"\ninvites = "{url_of(other)}"\n')
    assert invoke("--config", str(config), "copy", "--to", url_of(target), database=None).code == 0
    assert list_ids(target) == ["aaaaaaaa"]
    assert not other.exists()


def test_a_copy_can_be_run_again(invoke: Invoke, filled: Path, target: Path) -> None:
    """A finished copy that is run again is verified again, and makes no database."""
    arguments = ("copy", "--from", url_of(filled), "--to", url_of(target))
    first = invoke(*arguments, database=None)
    again = invoke(*arguments, database=None)
    assert (again.code, again.out) == (0, first.out)
    assert again.err == f"{target} holds all of {filled}, row for row.\n"


def test_another_installation_is_not_mixed_into(invoke: Invoke, filled: Path, target: Path) -> None:
    """A database with other keys is refused with a line that says what is in the way, and stays as it is."""
    store = SqliteStore(target)
    store.add_key(make_key(id="zzzzzzzz"))
    store.close()
    run = invoke("copy", "--from", url_of(filled), "--to", url_of(target), database=None)
    run.assert_failed(
        1,
        f"{target} is not empty and not a copy of {filled} as that is now: its rows of keys (key zzzzzzzz) are others",
    )
    assert list_ids(target) == ["zzzzzzzz"]


@pytest.mark.parametrize("option", ["--from", "--to"])
@pytest.mark.parametrize("url", [f"postgresql://me:{SECRET}@db/x", f"postgresql://db/x?password={SECRET}"])
def test_a_password_is_no_argument(invoke: Invoke, filled: Path, option: str, url: str) -> None:
    """A URL with a password is refused, and not repeated; the line says how else to give it."""
    run = invoke("copy", option, url, database=filled)
    run.assert_failed(
        2,
        f"{option}: a URL with a password is taken from the settings file or INVITES_DATABASE only; leave {option} out"
        " to mean that database",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((), "copy needs --from or --to; the one that is left out is the", id="neither"),
        pytest.param(("--from", "memory:"), "--from: memory: is gone with its process", id="from-memory"),
        pytest.param(("--to", "memory:"), "--to: memory: is gone with its process", id="to-memory"),
        pytest.param(("--to", "mysql://db/x"), "--to: there is no store 'mysql:'", id="unknown"),
        pytest.param(("--from", "sqlite:"), "--from: must be sqlite:///relative.db or", id="no-path"),
        pytest.param(("--to", "sqlite:///a.db", "x"), "too many arguments", id="too-many"),
    ],
)
def test_what_cannot_be_copied_is_told(invoke: Invoke, filled: Path, arguments: tuple[str, ...], message: str) -> None:
    """What is not said right is one line, and nothing is made."""
    run = invoke("copy", *arguments, database=filled)
    assert run.code == 2
    assert run.out == ""
    assert run.err.startswith(f"Error: {message}")
    assert run.err.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []


def test_no_target_is_made_without_a_source(invoke: Invoke, database: Path, target: Path) -> None:
    """Where there is nothing to copy, nothing is made."""
    run = invoke("copy", "--from", url_of(database), "--to", url_of(target), database=None)
    run.assert_failed(3, f"no database at {database}")
    assert not target.exists()
    assert not database.exists()


def test_a_database_is_not_copied_into_itself(invoke: Invoke, filled: Path) -> None:
    """The same file by another path is refused."""
    link = filled.with_name("link.db")
    link.symlink_to(filled)
    run = invoke("copy", "--from", url_of(filled), "--to", url_of(link), database=None)
    run.assert_failed(2, f"target: is the same database as the source, {filled}")


def test_a_folder_that_cannot_be_written_is_one_line(invoke: Invoke, filled: Path, tmp_path: Path) -> None:
    """A place where no database can be made is told by its path."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with without_power_over_files():
        run = invoke("copy", "--from", url_of(filled), "--to", url_of(closed / "x.db"), database=None)
    run.assert_failed(3, f"cannot make the database {closed / 'x.db'}: permission denied")


def test_a_copy_is_stopped_with_ctrl_c_and_goes_on(database: Path, target: Path) -> None:
    """Ctrl-C ends a copy with one line; run again, it comes to its end. On a terminal it shows how far it is."""
    SqliteStore(database).close()
    run_sql(database, FILL)
    arguments = ("copy", "--from", url_of(database), "--to", url_of(target))
    terminal, its_end = pty.openpty()
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=its_end)
    os.close(its_end)
    shown = b""

    def has_begun() -> bool:
        nonlocal shown
        shown += os.read(terminal, 1024)
        return b"\rcopied " in shown

    try:
        wait_until(has_begun)
        process.send_signal(signal.SIGINT)
        while chunk := read_terminal(terminal):
            shown += chunk
        assert process.wait(PATIENCE) == 130
    finally:
        with process:
            process.kill()
        os.close(terminal)
    assert b"copied 1000 of 30000 rows" in shown
    assert shown.endswith(b"Error: stopped\r\n")
    assert b"Traceback" not in shown
    ended = run_command(*arguments)
    assert (ended.returncode, ended.stdout.decode()) == (0, COUNTS.format(invites=30_000, keys=0))
    assert b"\r" not in ended.stderr
    assert list_names(target.parent) == {"copy.db", "copy.db-lock"}


def read_terminal(terminal: int) -> bytes:
    """Return what comes next, nothing after the last process has closed the other end."""
    try:
        return os.read(terminal, 1024)
    except OSError:
        return b""
