"""Secrets in every place of the command: none comes out but the new key that `create` prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from invites_core import ApiKeys, IssuedKey
from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke, Run, change_database, run_command, url_of
from tests.helpers import PATIENCE, make_invite

WINDOW = 10


@pytest.fixture
def issued(store: SqliteStore) -> IssuedKey:
    """A key that is in the database."""
    return ApiKeys(store).create("example.com", name="My test key")


def assert_nowhere(text: str, *secrets: str, where: str = "") -> None:
    """Fail if a text holds a piece of a secret, in capitals or not: names of hosts are written small."""
    text = text.lower()
    for secret in secrets:
        for start in range(len(secret) - WINDOW + 1):
            assert secret[start : start + WINDOW].lower() not in text, where


def everything(run: Run) -> str:
    """Return all that a run printed."""
    return run.out + run.err


def test_the_key_is_printed_once(invoke: Invoke, store: SqliteStore) -> None:
    """`create` prints the new secret once, on standard output, and no command prints it again."""
    for options in ((), ("--json",)):
        run = invoke("create", "example.com", "My test key", *options)
        combined = run.out.strip() if not options else run.out.rpartition('"key": "')[2].partition('"')[0]
        assert ApiKeys(store).verify(combined)
        key_id, _, secret = combined.partition("/")
        assert run.out.count(secret) == 1
        assert_nowhere(run.err, secret)
        for command in (
            ("list",),
            ("list", "--json"),
            ("find", key_id),
            ("find", key_id, "--json"),
            ("check",),
            ("check", "--json"),
        ):
            assert_nowhere(everything(invoke(*command)), secret)
        assert_nowhere(everything(invoke("delete", "example.com", key_id)), secret)


def test_no_command_shows_what_is_stored_of_a_secret(invoke: Invoke, store: SqliteStore, issued: IssuedKey) -> None:
    """Hashes and tags stay in the database."""
    key = store.find_key(issued.key.id)
    assert key is not None
    for command in (("list", "--json"), ("find", key.id), ("find", key.id, "--json"), ("check", "--json")):
        assert_nowhere(everything(invoke(*command)), key.secret_hash, key.tag.hex(), repr(key.tag)[2:-1])


@pytest.mark.parametrize(
    "arguments",
    [
        ("find", "{secret}"),
        ("find", "{key}"),
        ("find", "--json", "{key}"),
        ("find", "--", "{key}"),
        ("find", "{id}", "{secret}"),
        ("find", "{token}"),
        ("delete", "example.com", "{key}"),
        ("delete", "example.com", "{secret}"),
        ("delete", "example.com", "{id}", "{secret}"),
        ("delete", "{key}", "example.com"),
        ("delete", "{secret}", "{id}"),
        ("list", "{key}"),
        ("list", "{secret}", "{secret}"),
        ("create", "{key}"),
        ("create", "{token} x"),
        ("create", "example.com", "a", "{key}", "b"),
        ("check", "{key}"),
        ("serve", "{key}"),
        ("serve", "--listen", "{key}"),
        ("create", "example.com", "--expires-in", "0d", "{key}"),
        ("list", "--database", "{key}"),
        ("list", "--database", "postgresql://u:{secret}@h/d"),
        ("list", "--database", "host=h password={secret}"),
        ("list", "--database", "sqlite:{secret}"),
    ],
    ids=" ".join,
)
def test_a_secret_in_the_wrong_place_is_not_repeated(
    invoke: Invoke, store: SqliteStore, issued: IssuedKey, arguments: tuple[str, ...]
) -> None:
    """A key, a secret or a token where an id, a host or nothing belongs does not come back in what is printed."""
    invite = make_invite()
    store.add_invites([invite])
    fill = {"key": issued.combined, "secret": issued.secret, "id": issued.key.id, "token": invite.token}
    run = invoke(*[argument.format(**fill) for argument in arguments])
    assert run.code in (1, 2)
    assert_nowhere(everything(run), issued.secret, invite.token)
    assert [key.id for key in store.list_keys()] == [issued.key.id]


@pytest.mark.parametrize(
    "content",
    [
        'database = "postgresql://user:{secret}@127.0.0.1:1/db"',
        'database = "postgresql://user:{secret}@127.0.0.1:{secret}/db"',
        'database = "postgresql://127.0.0.1:1/db?password={secret}&nonsense=1"',
        'database = "{secret}"',
        'invites = "agent://{secret}"',
        '[http]\ntrusted_proxies = "{secret}"',
        '[log]\nlevel = "{secret}"',
    ],
)
@pytest.mark.parametrize("command", [("list",), ("check",), ("check", "--json")], ids=" ".join)
def test_a_secret_in_the_settings_is_not_repeated(
    invoke: Invoke, issued: IssuedKey, tmp_path: Path, content: str, command: tuple[str, ...]
) -> None:
    """What a mistake in the settings holds is not part of the line that names it."""
    config = tmp_path / "settings.toml"
    config.write_text(content.format(secret=issued.secret))
    run = invoke("--config", str(config), *command, database=None)
    assert run.code != 0
    assert_nowhere(everything(run), issued.secret)


def test_a_database_in_trouble_tells_no_secret(
    invoke: Invoke, store: SqliteStore, database: Path, issued: IssuedKey
) -> None:
    """An error of the database, and a check that finds damage, show no secret, hash or token that lies in it."""
    invite = make_invite()
    store.add_invites([invite])
    key = store.find_key(issued.key.id)
    assert key is not None
    hidden = (issued.secret, key.secret_hash, invite.token)
    change_database(database, f"UPDATE keys SET policy = '{{\"{issued.secret}\": 1}}'")
    for command in (("list",), ("find", key.id), ("check",), ("check", "--json")):
        assert_nowhere(everything(invoke(*command)), *hidden)
    store.close()
    with database.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * 4096)
    for command in (("list",), ("find", key.id), ("check",), ("check", "--json")):
        assert_nowhere(everything(invoke(*command)), *hidden)


def test_a_crash_shows_no_secret(store: SqliteStore, database: Path, issued: IssuedKey) -> None:
    """In a process of its own, with Python's own way of showing errors, nothing of a key comes out either."""
    assert store.list_keys()
    for arguments in (("find", issued.combined), ("delete", "example.com", issued.combined), ("list", issued.combined)):
        run = run_command("--database", url_of(database), *arguments)
        assert run.returncode == 1
        assert_nowhere((run.stdout + run.stderr).decode(), issued.secret)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("--config", "{key}"), "cannot read […]/[…]: no such file or directory", id="key"),
        pytest.param(("--config={secret}",), "cannot read […]: no such file or directory", id="secret"),
        pytest.param(
            ("--config", "./a-folder-with-a-long-name/file-without-an-ending"),
            "cannot read a-folder-with-a-long-name/file-without-an-ending: no such file or directory",
            id="path",
        ),
    ],
)
def test_what_looks_like_a_key_is_cut_out_of_a_message(
    invoke: Invoke, issued: IssuedKey, arguments: tuple[str, ...], message: str
) -> None:
    """A path stays whole in a message, unless it has the form of a key and nothing of that of a path."""
    fill = {"key": f"abcdefgh/{issued.secret.strip('-')}", "secret": issued.secret.strip("-")}
    run = invoke(*(argument.format(**fill) for argument in arguments), "list", database=None)
    run.assert_failed(2, message)


CARELESS = """
import sys
from invites_core.stores.sqlite import SqliteStore
from invites_wsgi.cli import main

secret, *sys.argv[1:] = sys.argv[1:]

def fail(self, *arguments, **named):
    raise LookupError(f"postgresql://user:hunter2@h/d {secret}")

for name in ("find_key", "list_keys", "find_invite", "list_invites", "add_key", "ping"):
    setattr(SqliteStore, name, fail)
main()
"""


@pytest.mark.parametrize(
    "arguments", [("find", "AAAAAAAA"), ("list",), ("create", "example.com"), ("invite", "list", "example.com")]
)
def test_an_error_that_nobody_foresaw_shows_no_secret(
    store: SqliteStore, database: Path, issued: IssuedKey, arguments: tuple[str, ...]
) -> None:
    """A fault in the program itself ends it with the places of the code, and without what its message holds."""
    assert store.list_keys()
    run = subprocess.run(
        [sys.executable, "-c", CARELESS, issued.combined, "--database", url_of(database), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert run.returncode == 1
    assert "an error that should not be" in run.stderr
    assert "LookupError: postgresql://[…]@h/d" in run.stderr
    assert_nowhere(run.stdout + run.stderr, issued.secret)
