"""`invites-api import-keys`: from files, and from a running Prosody, whose keys then work here and no more there."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from invites_core import ApiKeys, OutcomeUnknown, StorageError
from invites_core.foreign_keys import ForeignKey
from invites_core.service.importing import import_keys
from invites_core.stores.prosody_keys import ProsodyKeys
from invites_core.stores.sqlite import SqliteStore
from invites_wsgi import App, Settings
from tests.cli.support import Invoke, run_command, url_of
from tests.prosody import STORAGES, ConsoleProsody, running_on, start_prosody
from tests.stores.test_lua_tables import write_file
from tests.wsgi.support import ask, ask_server

SECRET: Final = "PZnBH2Qxkju3OL_UDrZZq-aWFXq4HxFhImmH"
DASHED: Final = "-LihiCNf28-X"
"""An id that Prosody made, and that looks like an option."""


def make_row(key_id: str, secret: str = SECRET, **fields: Any) -> dict[str, Any]:
    """Return a key as mod_invites_api stores it, with some fields set."""
    methods = {"GET": True, "POST": True}
    return {"id": key_id, "token": secret, "created_at": 1795484359, "allowed_methods": methods, **fields}


def report(imported: int = 0, present: int = 0, deleted: int = 0, refused: int = 0, removed: int | None = None) -> str:
    """Return what the command prints for such numbers of keys."""
    lines = f"imported: {imported}\nhere already: {present}\ndeleted here: {deleted}\nrefused: {refused}\n"
    return lines if removed is None else f"{lines}removed from Prosody: {removed}\n"


@pytest.fixture
def dat(tmp_path: Path) -> Path:
    """A file of Prosody's with two keys."""
    path = tmp_path / "invite_api_keys.dat"
    path.write_bytes(write_file({"first": make_row("first", name="A bot"), DASHED: make_row(DASHED)}))
    return path


# From a file


def test_keys_of_a_file_work(invoke: Invoke, store: SqliteStore, dat: Path) -> None:
    """The keys of a file are brought over once, verify with their ids and secrets, and are listed by their names."""
    run = invoke("import-keys", "example.com", "--from", str(dat))
    assert (run.code, run.out, run.err) == (0, report(imported=2), "")
    for key_id in ("first", DASHED):
        assert ApiKeys(store).verify(f"{key_id}/{SECRET}").host == "example.com"
    assert sorted(invoke("list", "example.com").out.splitlines()) == [f"{DASHED}\t<unknown>", "first\tA bot"]
    assert invoke("import-keys", "EXAMPLE.com", "--from", str(dat)).out == report(present=2)
    assert invoke("delete", "example.com", DASHED).code == 0
    run = invoke("import-keys", "--from", str(dat), "example.com")
    assert (run.code, run.out) == (0, report(present=1, deleted=1))
    assert run.err == f"{DASHED}: was deleted here, and stays so\n"
    assert [key.id for key in store.list_keys()] == ["first"]


def test_what_is_refused_is_named_without_its_secret(invoke: Invoke, store: SqliteStore, tmp_path: Path) -> None:
    """Each refused key is a line with its id and the reason, and the exit code is 1; the others are brought over."""
    ApiKeys(store).create("example.com")
    dat = tmp_path / "keys.dat"
    bad_id = f"pasted/{SECRET}"
    rows = {
        "good": make_row("good"),
        "short": make_row("short", "secret-of-21-letters_"),
        "odd": make_row("odd", "not base64url, and long enough"),
        "\x1b[2J": make_row("\x1b[2J"),
        bad_id: make_row(bad_id),
        "none": {"id": "none"},
    }
    dat.write_bytes(write_file(rows))
    run = invoke("import-keys", "example.com", "--from", str(dat))
    assert (run.code, run.out) == (1, report(imported=1, refused=5))
    assert sorted(run.err.splitlines()) == [
        r"\x1b[2J: refused: its id is not base64url, or too long",
        "none: refused: has no secret",
        "odd: refused: its secret is not base64url, or too long",
        "pasted: refused: its id is not base64url, or too long",
        "short: refused: its secret is shorter than 22 characters",
    ]
    assert "secret-of" not in run.out + run.err
    assert SECRET not in run.out + run.err


def test_a_key_of_another_host_is_refused(invoke: Invoke, store: SqliteStore, dat: Path) -> None:
    """Ids are unique over all hosts: what is another host's here stays so."""
    invoke("import-keys", "example.org", "--from", str(dat))
    before = store.list_keys()
    run = invoke("import-keys", "example.com", "--from", str(dat))
    assert (run.code, run.out) == (1, report(refused=2))
    assert "first: refused: a key of example.org has this id here\n" in run.err
    assert store.list_keys() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "Missing option '--from'.", id="no-source"),
        pytest.param(
            ["--from", "keys.dat", "--remove"],
            "--remove takes keys out of a running Prosody: it needs --from prosody:///…/prosody.sock",
            id="remove-from-a-file",
        ),
        pytest.param(
            ["--from", "agent:///run/agent.sock"],
            "--from must be prosody:///…/prosody.sock, or a file of Prosody's default storage",
            id="agent",
        ),
        pytest.param(
            ["--from", "postgresql://me:hunter2@db/prosody"],
            "--from must be prosody:///…/prosody.sock, or a file of Prosody's default storage",
            id="database",
        ),
        pytest.param(
            ["--from", ""],
            "--from must be prosody:///…/prosody.sock, or a file of Prosody's default storage",
            id="empty",
        ),
        pytest.param(
            ["--from", "prosody://host"],
            "--from must be prosody:///absolute.sock, prosody:relative.sock or a file",
            id="no-path",
        ),
    ],
)
def test_a_source_that_is_none_is_a_usage_error(
    invoke: Invoke, store: SqliteStore, arguments: list[str], message: str
) -> None:
    """What is neither a socket of Prosody's nor a file is refused before anything is opened, and not repeated."""
    invoke("import-keys", "example.com", *arguments).assert_failed(2, message)
    assert store.list_keys() == []


def test_a_damaged_file_is_one_line(invoke: Invoke, store: SqliteStore, dat: Path) -> None:
    """File and line are named, and nothing was brought over."""
    dat.write_bytes(dat.read_bytes()[:-60])
    run = invoke("import-keys", "example.com", "--from", str(dat))
    assert (run.code, run.out) == (3, "")
    assert run.err.startswith(f"Error: {dat}, line 1")
    assert run.err.count("\n") == 1
    assert SECRET not in run.err
    assert store.list_keys() == []


def test_what_is_not_there_is_said(invoke: Invoke, database: Path, tmp_path: Path, dat: Path) -> None:
    """A missing database is not made; a missing file, a missing socket and a bad host are one line each."""
    invoke("import-keys", "example.com", "--from", str(dat)).assert_failed(3, f"no database at {database}")
    assert not database.exists()
    SqliteStore(database).close()
    missing = tmp_path / "none"
    run = invoke("import-keys", "example.com", "--from", str(missing))
    run.assert_failed(3, f"cannot read {missing}: no such file or directory")
    run = invoke("import-keys", "example.com", "--from", f"prosody://{missing}")
    run.assert_failed(3, f"Prosody cannot be reached at {missing}: No such file or directory")
    invoke("import-keys", "no host", "--from", str(dat)).assert_failed(1, "please supply a valid host")


def test_progress_is_shown_on_a_terminal(store: SqliteStore, database: Path, dat: Path) -> None:
    """On a terminal one line tells how far the work is; elsewhere nothing does."""
    assert store.list_keys() == []
    leader, follower = pty.openpty()
    try:
        arguments = ("--database", url_of(database), "import-keys", "example.com", "--from", str(dat))
        run = run_command(*arguments, stderr=follower)
        shown = os.read(leader, 4096).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert run.stdout.decode() == report(imported=2)
    assert "\r1 of 2 keys looked at" in shown
    assert "\r2 of 2 keys looked at" in shown
    assert SECRET not in shown


# From a running Prosody


@pytest.fixture(scope="module", params=STORAGES)
def running(request: pytest.FixtureRequest) -> Iterator[ConsoleProsody]:
    """A running Prosody, on each storage in turn."""
    with running_on(request.param, request, hosts=("example.com", "bücher.example")) as prosody:
        yield prosody


@pytest.fixture
def prosody(running: ConsoleProsody) -> ConsoleProsody:
    """The running Prosody, without keys."""
    set_rows(running, "example.com", {})
    set_rows(running, "bücher.example", {})
    return running


def set_rows(prosody: ConsoleProsody, host: str, rows: dict[str, Any]) -> None:
    """Let rows be all the keys of a host, as Prosody stores them."""
    code = """(function() local args = json.decode(base64.decode(ARGS));
      return require "core.storagemanager".open(args.host, "invite_api_keys"):set(nil, args.rows) end)()"""
    assert prosody.evaluate(code, ARGS={"host": host, "rows": rows}) is not None


def ask_prosody(prosody: ConsoleProsody, key: str) -> int:
    """Return what Prosody's own API answers to a key."""
    return ask_server(prosody.http_port, f"/invites_api?key={key}", headers={"Host": "example.com"}).status


def ask_ours(store: SqliteStore, key: str) -> int:
    """Return what our app answers to a key, as a bookmark has it."""
    app = App(Settings(database="memory:"), key_store=store, invite_store=store)
    return ask(app, f"/invites_api?key={key}").status


def url_of_socket(prosody: ConsoleProsody) -> str:
    return f"prosody://{prosody.socket}"


@pytest.mark.real_server
def test_keys_of_a_running_prosody_work_here(invoke: Invoke, store: SqliteStore, prosody: ConsoleProsody) -> None:
    """Keys that prosodyctl made work here as they are, beside Prosody; run again nothing changes, and what was deleted
    here stays deleted.
    """
    set_rows(prosody, "example.com", {DASHED: make_row(DASHED)})
    keys = [f"{DASHED}/{SECRET}", *(prosody.create_key("example.com", name) for name in ("A bot", 'quo"te ü\\'))]
    source = url_of_socket(prosody)
    assert [ask_ours(store, key) for key in keys] == [403] * 3
    run = invoke("import-keys", "example.com", "--from", source)
    assert (run.code, run.out, run.err) == (0, report(imported=3), "")
    assert [ask_ours(store, key) for key in keys] == [201] * 3
    assert [ask_prosody(prosody, key) for key in keys] == [201] * 3
    assert {key.name for key in store.list_keys()} == {None, "A bot", 'quo"te ü\\'}
    before = store.list_keys()
    assert invoke("import-keys", "example.com", "--from", source).out == report(present=3)
    assert [(key.id, key.secret_hash) for key in store.list_keys()] == [(key.id, key.secret_hash) for key in before]
    deleted = keys[1].partition("/")[0]
    assert invoke("delete", "example.com", deleted).code == 0
    run = invoke("import-keys", "example.com", "--from", source, "--remove")
    assert (run.code, run.out) == (0, report(present=2, deleted=1, removed=2))
    assert run.err == f"{deleted}: was deleted here, and stays so; Prosody has it still\n"
    assert [ask_ours(store, key) for key in keys] == [201, 403, 201]
    assert [ask_prosody(prosody, key) for key in keys] == [403, 201, 403]
    listed = prosody.ctl("mod_invites_api", "list", "example.com").stdout
    assert [key.partition("/")[0] in listed for key in keys] == [False, True, False]


@pytest.mark.real_server
def test_keys_of_the_file_that_a_prosody_left_work_here(invoke: Invoke, store: SqliteStore, tmp_path: Path) -> None:
    """What Prosody's default storage has written is read when Prosody is gone, for each host its own."""
    folder = tmp_path / "p"
    with start_prosody(folder, hosts=("example.com", "bücher.example")) as prosody:
        set_rows(prosody, "bücher.example", {DASHED: make_row(DASHED)})
        keys = [f"{DASHED}/{SECRET}", prosody.create_key("bücher.example", 'it\'s "mine" ü\x01\t')]
    dat = folder / "b%c3%bccher%2eexample" / "invite_api_keys.dat"
    run = invoke("import-keys", "example.com", "--from", str(dat))
    run.assert_failed(1, f"{dat} lies in Prosody's folder of bücher.example, not of example.com")
    run = invoke("import-keys", "bücher.example", "--from", str(dat))
    assert (run.code, run.out, run.err) == (0, report(imported=2), "")
    assert [ask_ours(store, key) for key in keys] == [201, 201]
    assert {key.name for key in store.list_keys()} == {None, 'it\'s "mine" ü\x01\t'}


@pytest.mark.real_server
def test_a_host_that_prosody_does_not_serve_is_refused(
    invoke: Invoke, store: SqliteStore, prosody: ConsoleProsody
) -> None:
    """Which hosts there are is what Prosody says; a host without keys has none."""
    run = invoke("import-keys", "example.net", "--from", url_of_socket(prosody))
    run.assert_failed(1, "please supply a valid host: Prosody does not serve example.net")
    assert invoke("import-keys", "example.com", "--from", url_of_socket(prosody), "--remove").out == report(removed=0)
    assert store.list_keys() == []


@pytest.mark.real_server
def test_hostile_rows_do_no_harm(invoke: Invoke, store: SqliteStore, prosody: ConsoleProsody) -> None:
    """Whatever stands in ids, names and secrets is data: no Lua of theirs runs, and what is no key is refused."""
    hostile = '"]] .. os.exit(1) .. [["\n\0é</repl-input>'
    rows = {
        "good": make_row("good", name=hostile),
        hostile: make_row(hostile),
        "secret": make_row("secret", hostile * 3),
        "table": make_row("table", name={"a": {"b": hostile}}),
    }
    set_rows(prosody, "example.com", rows)
    run = invoke("import-keys", "example.com", "--from", url_of_socket(prosody), "--remove")
    assert (run.code, run.out) == (1, report(imported=2, refused=2, removed=2))
    key = store.find_key("good")
    assert key is not None
    assert key.name == hostile.replace("\0", "\ufffd")
    assert ask_prosody(prosody, f"good/{SECRET}") == 403
    assert not any(SECRET in line for line in prosody.log_tail(100_000).splitlines())


@pytest.mark.real_server
def test_what_is_cut_short_is_finished_by_a_repeat(
    invoke: Invoke, store: SqliteStore, prosody: ConsoleProsody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that ends in the middle of bringing or of removing leaves each key whole; the next completes it."""
    rows = {f"key-{number}": make_row(f"key-{number}", f"{SECRET}{number}") for number in range(6)}
    set_rows(prosody, "example.com", rows)

    class CutShort(ProsodyKeys):
        def remove_key(self, host: str, key_id: str, secret: str) -> bool:
            if key_id == "key-3":
                raise KeyboardInterrupt
            return super().remove_key(host, key_id, secret)

    def stop(step: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    source = CutShort(prosody.socket)
    with pytest.raises(KeyboardInterrupt):
        import_keys(store, source, "example.com", remove=True, after_step=stop)
    assert 2 <= len(store.list_keys()) < 6
    assert len(source.list_keys("example.com")) == 6
    with pytest.raises(KeyboardInterrupt):
        import_keys(store, source, "example.com", remove=True)
    assert len(store.list_keys()) == 6
    assert [one.id for one in source.list_keys("example.com") if one.id < "key-3"] == []
    source.close()
    run = invoke("import-keys", "example.com", "--from", url_of_socket(prosody), "--remove")
    assert run.out == report(present=3, removed=3)
    for key_id, row in rows.items():
        assert ask_ours(store, f"{key_id}/{row['token']}") == 201
        assert ask_prosody(prosody, f"{key_id}/{row['token']}") == 403


@pytest.mark.real_server
def test_a_key_with_another_secret_by_now_is_not_removed(prosody: ConsoleProsody) -> None:
    """Prosody itself compares before it removes, in one step: what is another key by now stays."""
    set_rows(prosody, "example.com", {"a": make_row("a")})
    source = ProsodyKeys(prosody.socket)
    assert not source.remove_key("example.com", "a", SECRET[:-1])
    assert not source.remove_key("example.com", "b", SECRET)
    assert not source.remove_key("bücher.example", "a", SECRET)
    assert [type(key) for key in source.list_keys("example.com")] == [ForeignKey]
    assert source.remove_key("example.com", "a", SECRET)
    assert not source.remove_key("example.com", "a", SECRET)
    source.close()


@pytest.mark.real_server
def test_a_storage_that_fails_is_said_as_it_is(prosody: ConsoleProsody) -> None:
    """Where Prosody's storage fails at reading nothing was changed, and at writing nobody knows."""
    set_rows(prosody, "example.com", {"a": make_row("a")})
    fail = """(function() local sm = require "core.storagemanager"; real_open = real_open or sm.open;
      local function broken() return nil, "broken" end;
      local function row() return { token = TOKEN_TEXT } end;
      sm.open = function() return { get = READ, set = broken } end; return true; end)()"""
    restore = '(function() require "core.storagemanager".open = real_open; return true; end)()'
    source = ProsodyKeys(prosody.socket)
    try:
        prosody.evaluate(fail.replace("READ", "broken"))
        for call in (partial(source.list_keys, "example.com"), partial(source.remove_key, "example.com", "a", SECRET)):
            with pytest.raises(StorageError, match="storage failed") as caught:
                call()
            assert type(caught.value) is StorageError
        prosody.evaluate(fail.replace("READ", "row").replace("TOKEN_TEXT", f'"{SECRET}"'))
        with pytest.raises(OutcomeUnknown, match="storage failed"):
            source.remove_key("example.com", "a", SECRET)
    finally:
        prosody.evaluate(restore)
    assert source.remove_key("example.com", "a", SECRET)
    source.close()
