"""`invites-api check`: it finds what it claims to find, and says what to do."""

from __future__ import annotations

import grp
import importlib.metadata
import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import invites_core
from invites_core.stores.memory import MemoryStore
from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke, Run, change_database
from tests.helpers import make_invite, make_key
from tests.privileges import without_power_over_files
from tests.stores.agents import serving


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


# Invites behind a socket


@pytest.fixture
def behind_agent(filled: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A settings file whose invites are behind an agent that runs, and the agent's socket, in a folder of its own."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o750)
    config = tmp_path / "settings.toml"
    config.write_text(
        f'database = "sqlite:///{filled}"\ninvites = "agent:run/agent.sock"\n[hosts."example.com"]\n', "utf-8"
    )
    config.chmod(0o600)
    with serving(MemoryStore(), folder / "agent.sock", hosts=frozenset({"example.com"})):
        yield config, folder / "agent.sock"


def check_with(invoke: Invoke, config: Path) -> Run:
    """Check with a settings file."""
    return invoke("--config", str(config), "check", database=None)


def test_an_agent_as_it_should_be(invoke: Invoke, behind_agent: tuple[Path, Path]) -> None:
    """A socket that is its owner's and its group's alone, and an agent that serves the hosts, are all right."""
    config, path = behind_agent
    run = check_with(invoke, config)
    assert (run.code, findings(run, "bad")) == (0, [])
    group = grp.getgrgid(path.stat().st_gid).gr_name
    assert f"{path} is open to its owner and to group {group} alone" in findings(run, "ok")


def test_a_missing_agent_is_found(invoke: Invoke, behind_agent: tuple[Path, Path]) -> None:
    """A socket that is not there, one that nobody listens on, and a file in its place: each says to start the agent."""
    config, path = behind_agent
    hint = "start invites-api agent, and see its log if it has ended"
    path.rename(path.with_name("elsewhere"))
    assert_bad(check_with(invoke, config), f"cannot reach the agent at {path}: no such file or directory; {hint}")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    path.chmod(0o660)
    assert_bad(check_with(invoke, config), f"cannot reach the agent at {path}: connection refused; {hint}")
    path.unlink()
    path.write_text("")
    assert_bad(check_with(invoke, config), f"cannot reach the agent at {path}: connection refused; {hint}")
    path.unlink()
    path.with_name("elsewhere").rename(path)


def test_something_else_than_an_agent_is_found(invoke: Invoke, behind_agent: tuple[Path, Path], tmp_path: Path) -> None:
    """A socket on which another program answers is no agent."""
    config, _ = behind_agent
    config.write_text(config.read_text().replace("run/agent.sock", "run/other.sock"))
    path = tmp_path / "run" / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen()

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        run = check_with(invoke, config)
        thread.join()
    [bad] = findings(run, "bad")
    assert bad.startswith(f"no agent of this version answers at {path}: ")
    assert bad.endswith("; start invites-api agent, and see its log if it has ended")


def test_a_socket_that_is_open_to_all_is_found(invoke: Invoke, behind_agent: tuple[Path, Path]) -> None:
    """Who may connect may revoke every invite, and who may change the folder can put a socket of their own there."""
    config, path = behind_agent
    path.chmod(0o662)
    assert_bad(check_with(invoke, config), f"every user of this machine may connect to {path}: chmod o-rwx {path}")
    path.chmod(0o660)
    path.parent.chmod(0o757)
    folder = path.parent
    assert_bad(check_with(invoke, config), f"the folder {folder} can be changed by others: chmod o-w {folder}")
    folder.chmod(0o1777)
    assert check_with(invoke, config).code == 0


def test_a_socket_of_the_wrong_group_is_found(
    invoke: Invoke, behind_agent: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that is not in the socket's group, or whose group may not write, is told how the agent is started."""
    config, path = behind_agent
    group = path.stat().st_gid
    name = grp.getgrgid(group).gr_name
    # Root may connect to everything; the service does not run as root.
    monkeypatch.setattr("os.geteuid", lambda: 54_321)
    monkeypatch.setattr("os.getegid", lambda: 54_321)
    monkeypatch.setattr("os.getgroups", lambda: [54_322])
    expected = (
        f"{path} is for group {name}, which user 54321 is not in: start the agent with --group and the group of the"
        " service, and run this as the service's user"
    )
    assert_bad(check_with(invoke, config), expected)
    monkeypatch.setattr("os.getgroups", lambda: [54_322, group])
    assert check_with(invoke, config).code == 0
    path.chmod(0o640)
    assert_bad(check_with(invoke, config), f"group {name} may not connect to {path}: chmod g+rw {path}")


def test_a_socket_that_may_not_be_passed_to_is_found(invoke: Invoke, behind_agent: tuple[Path, Path]) -> None:
    """A closed folder is told with what has to be open."""
    config, path = behind_agent
    path.parent.chmod(0o000)
    with without_power_over_files():
        run = check_with(invoke, config)
    path.parent.chmod(0o750)
    hint = "its socket and the folder of it must let the group of the service in: see --group of the agent"
    assert_bad(run, f"cannot reach the agent at {path}: permission denied; {hint}")


def test_a_host_that_the_agent_does_not_serve_is_found(invoke: Invoke, behind_agent: tuple[Path, Path]) -> None:
    """A host of the settings that the agent's own settings do not list is told before the first invite fails."""
    config, _ = behind_agent
    config.write_text(config.read_text() + '[hosts."example.org"]\n')
    expected = (
        "example.org: the agent does not serve this host; it must be among the hosts of the agent's settings, and one"
        " that Prosody serves"
    )
    assert_bad(check_with(invoke, config), expected)


def test_prosodys_own_socket_is_no_place_for_the_service(invoke: Invoke, filled: Path, tmp_path: Path) -> None:
    """A service with Prosody's admin socket could do anything to it, so the check tells of the agent."""
    config = tmp_path / "settings.toml"
    path = tmp_path / "prosody.sock"
    config.write_text(f'database = "sqlite:///{filled}"\ninvites = "prosody://{path}"\n')
    config.chmod(0o600)
    run = check_with(invoke, config)
    assert run.code == 1
    assert findings(run, "bad")[0] == (
        "invites is Prosody's own socket: whoever breaks into the service has full power over Prosody; let"
        f" Prosody's user run `invites-api agent --store prosody://{path} --listen /run/invites-api/agent.sock`, and"
        ' set invites = "agent:///run/invites-api/agent.sock"'
    )


def test_what_is_worth_knowing_is_a_note(invoke: Invoke, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a store finds and marks as a note is no fault."""
    assert filled.exists()
    monkeypatch.setattr(SqliteStore, "find_problems", lambda _: ["note: look here", "mend this"])
    run = invoke("check")
    assert_bad(run, "mend this")
    assert "look here" in findings(run, "note")


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


def test_a_page_that_cannot_be_shown_is_found(invoke: Invoke, filled: Path, tmp_path: Path) -> None:
    """A mistake in what the invite page is made of is found, and named as the start of the service names it."""
    config = tmp_path / "settings.toml"
    config.write_text('[hosts."example.com"]\nlogo = "logo.svg"\n')
    config.chmod(0o600)
    mistake = f"cannot read the logo {tmp_path / 'logo.svg'}: no such file or directory"
    assert_bad(invoke("--config", str(config), "check"), mistake)
    (tmp_path / "logo.svg").write_text("<svg/>")
    run = invoke("--config", str(config), "check")
    assert "the invite page can be shown, in the languages en, de" in findings(run, "ok")
    (tmp_path / "logo.svg").unlink()
    run = invoke("--config", str(config), "serve")
    assert (run.code, run.out, run.err) == (2, "", f"Error: {mistake}\n")
