"""`invites-api check`: it finds what it claims to find, and says what to do."""

from __future__ import annotations

import importlib.metadata
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import invites_core
from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke, Run, change_database
from tests.helpers import make_invite, make_key
from tests.privileges import without_power_over_files


@pytest.fixture
def filled(database: Path) -> Path:
    """The path of a database with a key in it, which nobody has open."""
    store = SqliteStore(database)
    store.add_key(make_key(id="aaaaaaaa"))
    store.close()
    return database


def findings(run: Run, level: str) -> list[str]:
    """Return the texts of the findings of a level."""
    lines = [line.split(None, 1) for line in run.out.splitlines()]
    assert {name for name, _ in lines} <= {"ok", "note", "bad"}
    return [text for name, text in lines if name == level]


def assert_bad(run: Run, *expected: str) -> None:
    """Check that exactly these things are bad, and the exit code."""
    assert (findings(run, "bad"), run.code, run.err) == (list(expected), 1, "")


def test_all_is_well(invoke: Invoke, filled: Path) -> None:
    """A sound database without settings has nothing bad about it, and exit 0."""
    run = invoke("check")
    assert (run.code, run.err, findings(run, "bad")) == (0, "", [])
    assert findings(run, "note") == [
        "no settings file is in use (--config or INVITES_CONFIG names one)",
        "no hosts are listed in the settings, so keys can be made for any host name",
    ]
    well = findings(run, "ok")
    assert f"database {filled} answers" in well
    assert f"only its owner can read and write {filled}" in well
    assert any(text.startswith(f"invites-api {invites_core.__version__} on Python 3.") for text in well)
    for program in ("SQLite ", "argon2-cffi ", "werkzeug ", "gunicorn "):
        assert any(text.startswith(program) and text[len(program)].isdigit() for text in well)


def test_looking_changes_nothing(invoke: Invoke, filled: Path) -> None:
    """A check leaves the folder as it found it."""
    before = {path.name: path.read_bytes() for path in filled.parent.iterdir()}
    assert invoke("check").code == 0
    after = {path.name: path.read_bytes() for path in filled.parent.iterdir()}
    assert {name: after[name] for name in before} == before


def test_json_says_the_same(invoke: Invoke, filled: Path) -> None:
    """With --json the findings are a list of levels and texts, with the same exit code."""
    run = invoke("check", "--json")
    content = json.loads(run.out)
    assert run.code == 0
    assert [f"{finding['level']:<5}{finding['text']}" for finding in content] == invoke("check").out.splitlines()
    filled.chmod(0o644)
    run = invoke("check", "--json")
    assert run.code == 1
    assert [finding["text"] for finding in json.loads(run.out) if finding["level"] == "bad"] == [
        f"{filled} is open to others: chmod 600 {filled}"
    ]


# Permissions


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o777])
def test_a_database_that_is_open_to_others_is_found(invoke: Invoke, filled: Path, mode: int) -> None:
    """A file that others can read or write is bad, with the command that mends it."""
    filled.chmod(mode)
    assert_bad(invoke("check"), f"{filled} is open to others: chmod 600 {filled}")
    filled.chmod(0o600)
    assert invoke("check").code == 0


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-lock"])
def test_a_file_beside_it_that_is_open_to_others_is_found(invoke: Invoke, filled: Path, suffix: str) -> None:
    """The files beside the database hold the same data, or the turn of those who write, and are looked at too."""
    store = SqliteStore(filled)
    store.add_invites([make_invite()])
    beside = Path(f"{filled}{suffix}")
    beside.chmod(0o644)
    assert_bad(invoke("check"), f"{beside} is open to others: chmod 600 {beside}")
    store.close()


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_that_others_can_change_is_found(invoke: Invoke, filled: Path, mode: int) -> None:
    """Who can change the folder can put another database in its place."""
    filled.parent.chmod(mode)
    folder = filled.parent
    assert_bad(invoke("check"), f"the folder {folder} can be changed by others: chmod go-w {folder}")
    folder.chmod(0o1777)
    assert invoke("check").code == 0


def test_a_database_that_cannot_be_written_is_found(invoke: Invoke, filled: Path) -> None:
    """A service that may not write is told so before its first request."""
    filled.chmod(0o400)
    with without_power_over_files():
        run = invoke("check")
    # The permissions of files are asked for by the real user, whom root's lack of power does not concern.
    expected = f"you may not write to {filled} and its folder; the service must"
    assert findings(run, "bad") == ([] if os.geteuid() == 0 else [expected])


def test_a_database_that_may_not_be_read_is_found(invoke: Invoke, filled: Path) -> None:
    """A closed file and a closed folder are findings, not the end of the check."""
    filled.chmod(0o000)
    with without_power_over_files():
        run = invoke("check")
    assert run.code == 1
    assert findings(run, "bad")[0].startswith(f"cannot open the database {filled}")
    assert len(findings(run, "ok")) >= 4
    filled.parent.chmod(0o000)
    with without_power_over_files():
        run = invoke("check")
    filled.parent.chmod(0o700)
    assert run.code == 1
    assert str(filled) in findings(run, "bad")[0]
    assert len(findings(run, "ok")) >= 4


def test_a_database_of_another_user_is_noted(invoke: Invoke, filled: Path) -> None:
    """Who checks as another user than the service's learns that permissions were looked at with the wrong eyes."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away: run the tests as root")
    os.chown(filled, 12345, 12345)
    run = invoke("check")
    os.chown(filled, 0, 0)
    assert f"{filled} belongs to user 12345 and you are user 0: run this as the service's user" in findings(run, "note")


def test_a_disk_with_little_space_is_found(invoke: Invoke, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than 64 MiB are too little to be calm."""
    real = os.statvfs(filled)
    values = list(real)
    values[4] = 64 * 1024 * 1024 // real.f_frsize - 1  # f_bavail
    monkeypatch.setattr("os.statvfs", lambda _: os.statvfs_result(values))
    assert_bad(invoke("check"), f"less than 64 MiB are left on the disk of {filled.parent}")


# The database


def test_a_missing_database_is_found(invoke: Invoke, database: Path) -> None:
    """A path where nothing is."""
    assert_bad(invoke("check"), f"no database at {database}")
    assert list(database.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        pytest.param(
            lambda path: change_database(path, "PRAGMA user_version = 2"),
            "the database {path} has schema version 2; this program knows version 1",
            id="newer",
        ),
        pytest.param(
            lambda path: change_database(path, "PRAGMA application_id = 1"),
            "{path} is not a database of invites-api",
            id="another-program",
        ),
        pytest.param(
            lambda path: path.write_text("hello\n" * 1000), "{path} is not a SQLite database", id="no-database"
        ),
    ],
)
def test_a_database_that_cannot_be_used_is_found(
    invoke: Invoke, filled: Path, spoil: Callable[[Path], Any], expected: str
) -> None:
    """What stops the service from starting is found here in the same words."""
    spoil(filled)
    assert_bad(invoke("check"), expected.format(path=filled))


def test_a_damaged_database_is_found(invoke: Invoke, database: Path) -> None:
    """Damage that nothing has stumbled over yet is found by looking at every page."""
    store = SqliteStore(database)
    for _ in range(200):
        store.add_invites([make_invite()])
    store.close()
    with database.open("r+b") as opened:
        opened.seek(database.stat().st_size - 3 * 4096)
        opened.write(b"\xff" * 4096)
    run = invoke("check")
    assert run.code == 1
    assert findings(run, "ok")[0] == f"database {database} answers"
    bad = findings(run, "bad")
    assert bad
    assert all(text.startswith(f"the database {database} is damaged") for text in bad)


def test_a_store_in_memory_is_found(invoke: Invoke, tmp_path: Path) -> None:
    """What is lost at a restart and differs from worker to worker is no place for keys."""
    run = invoke("check", database="memory:")
    assert_bad(run, "database is memory: every worker has its own, and all is lost at a restart")
    config = tmp_path / "settings.toml"
    config.write_text('database = "memory:"\ninvites = "memory:"\n')
    config.chmod(0o600)
    run = invoke("--config", str(config), "check", database=None)
    assert len(findings(run, "bad")) == 2
    assert findings(run, "bad")[1].startswith("invites is memory:")


def test_both_databases_are_looked_at(invoke: Invoke, filled: Path, tmp_path: Path) -> None:
    """Where the invites lie elsewhere both places are checked."""
    config = tmp_path / "settings.toml"
    config.write_text(f'database = "sqlite:///{filled}"\ninvites = "sqlite:///invites.db"\n')
    config.chmod(0o600)
    run = invoke("--config", str(config), "check", database=None)
    assert_bad(run, f"no database at {tmp_path / 'invites.db'}")
    assert f"database {filled} answers" in findings(run, "ok")


# Settings


@pytest.mark.parametrize(
    ("mode", "is_bad"),
    [(0o600, False), (0o640, False), (0o644, False), (0o660, True), (0o602, True), (0o666, True)],
)
def test_a_settings_file_that_others_can_change_is_found(
    invoke: Invoke, filled: Path, tmp_path: Path, mode: int, *, is_bad: bool
) -> None:
    """Who can change the settings can point the service anywhere."""
    assert filled.exists()
    config = tmp_path / "settings.toml"
    config.write_text("")
    config.chmod(mode)
    run = invoke("--config", str(config), "check")
    assert findings(run, "bad") == ([f"{config} can be changed by others: chmod go-w {config}"] if is_bad else [])
    assert f"settings {config} can be read" in findings(run, "ok")
    assert stat.S_IMODE(config.stat().st_mode) == mode


def test_links_are_told_for_every_host(invoke: Invoke, filled: Path, tmp_path: Path) -> None:
    """Each host of the settings is told with where its invites point and what must answer there."""
    assert filled.exists()
    config = tmp_path / "settings.toml"
    config.write_text(
        '[http]\nlanding_path = "/join"\n[hosts."bücher.example"]\n'
        '[hosts."b.example"]\nlanding_page = ""\n[hosts."c.example"]\nlanding_page = "https://x.example/{token}"\n',
        "utf-8",
    )
    config.chmod(0o600)
    run = invoke("--config", str(config), "check")
    assert run.code == 0
    rest = "; this address must show the page for the invite, as /join of this service does."
    assert findings(run, "ok")[-3:] == [
        f"Invites of bücher.example will point to https://xn--bcher-kva.example/invite?TOKEN{rest}",
        "Invites of b.example are xmpp: links, which open in a chat app; no page is needed.",
        f"Invites of c.example will point to https://x.example/TOKEN{rest}",
    ]


# Versions


def hide_gunicorn(name: str) -> str:
    """Answer for a version as if gunicorn were not installed."""
    if name == "gunicorn":
        raise importlib.metadata.PackageNotFoundError(name)
    return importlib.metadata.version(name)


def test_a_missing_gunicorn_is_noted(invoke: Invoke, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gunicorn all works but `serve`, so it is a note with the command that installs it."""
    assert filled.exists()
    monkeypatch.setattr("invites_wsgi.cli.check.version", hide_gunicorn)
    run = invoke("check")
    assert run.code == 0
    expected = "gunicorn is not installed, and `serve` needs it: pip install 'invites-api[server]'"
    assert expected in findings(run, "note")


@pytest.mark.parametrize(
    ("installed", "is_enough"),
    [
        ("26.1", True),
        ("26.1.0", True),
        ("27.0.1", True),
        ("27.0b1", True),
        ("100.0", True),
        ("26.0.9", False),
        ("9.9", False),
    ],
)
def test_an_old_gunicorn_is_found(
    invoke: Invoke, filled: Path, monkeypatch: pytest.MonkeyPatch, installed: str, *, is_enough: bool
) -> None:
    """A gunicorn whose control socket cannot be turned off is too old; versions are compared as numbers."""
    assert filled.exists()
    monkeypatch.setattr("invites_wsgi.cli.check.version", lambda name: installed if name == "gunicorn" else "1.0")
    run = invoke("check")
    assert findings(run, "bad") == ([] if is_enough else [f"gunicorn {installed}; 26.1 is needed"])
    assert (f"gunicorn {installed}" in findings(run, "ok")) == is_enough


@pytest.mark.parametrize(
    ("sqlite", "is_enough"), [("3.51.3", True), ("3.100.0", True), ("3.51.2", False), ("3.9.9", False)]
)
def test_an_old_sqlite_is_found(
    invoke: Invoke, filled: Path, monkeypatch: pytest.MonkeyPatch, sqlite: str, *, is_enough: bool
) -> None:
    """A SQLite that can corrupt the database under several processes is bad."""
    assert filled.exists()
    monkeypatch.setattr("apsw.sqlite_lib_version", lambda: sqlite)
    expected = f"SQLite {sqlite} can corrupt a database that several processes use; 3.51.3 is needed"
    assert findings(invoke("check"), "bad") == ([] if is_enough else [expected])


def test_odd_characters_stay_on_their_line(invoke: Invoke, tmp_path: Path) -> None:
    """A path with a newline in it is shown escaped, a finding a line."""
    folder = tmp_path / "a\nb\x1b[31m"
    folder.mkdir()
    config = folder / "settings.toml"
    config.write_text("")
    config.chmod(0o600)
    run = invoke("--config", str(config), "check", database="memory:")
    assert rf"settings {tmp_path}/a\nb\x1b[31m/settings.toml can be read" in findings(run, "ok")
