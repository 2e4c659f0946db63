"""`invites-api list`: a line a key, whatever the names are."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from datetime import timedelta
from pathlib import Path

import pytest

from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke, run_command, url_of
from tests.helpers import FULL_POLICY, NOON, make_key

JOINERS = "\u200c\u200d"


def test_a_key_is_its_id_a_tab_and_its_name(invoke: Invoke, store: SqliteStore) -> None:
    """Keys are listed a line each, oldest first, with <unknown> for those without a name."""
    store.add_key(make_key(id="bbbbbbbb", name="second", created_at=NOON + timedelta(seconds=1)))
    store.add_key(make_key(id="-LihiCNf28-X", name=None, created_at=NOON))
    store.add_key(make_key(id="aaaaaaaa", name="My test key", created_at=NOON + timedelta(seconds=1)))
    run = invoke("list", "example.com")
    assert (run.code, run.err) == (0, "")
    assert run.out == "-LihiCNf28-X\t<unknown>\naaaaaaaa\tMy test key\nbbbbbbbb\tsecond\n"


def test_a_host_lists_its_own_keys_alone(invoke: Invoke, store: SqliteStore) -> None:
    """Keys of one host in any spelling, or of all hosts."""
    store.add_key(make_key(id="aaaaaaaa", name="a"))
    store.add_key(make_key(id="bbbbbbbb", name="b", host="bücher.example"))
    assert invoke("list", "EXAMPLE.com.").out == "aaaaaaaa\ta\n"
    assert invoke("list", "xn--bcher-kva.example").out == "bbbbbbbb\tb\n"
    assert invoke("list").out == "aaaaaaaa\ta\nbbbbbbbb\tb\n"


@pytest.mark.usefixtures("store")
def test_no_keys_are_no_lines(invoke: Invoke) -> None:
    """An empty list is nothing, in text, and an empty list in JSON; a host without keys is no error."""
    for arguments in ((), ("example.com",), ("nobody.example",)):
        run = invoke("list", *arguments)
        assert (run.code, run.out, run.err) == (0, "", "")
    assert json.loads(invoke("list", "--json").out) == []


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("host", ["bad host", "", "a..b", "-x", "\udcff"], ids=ascii)
def test_a_bad_host_is_refused(invoke: Invoke, host: str) -> None:
    """What is no host name cannot have keys."""
    invoke("list", host).assert_failed(1, "please supply a valid host")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        pytest.param("\"double\" and 'single'", "\"double\" and 'single'", id="quotes"),
        pytest.param("tab\there", r"tab\there", id="tab"),
        pytest.param("line\r\nbreak", r"line\r\nbreak", id="newline"),
        pytest.param("\x1b[31mred\x1b[0m\x07", r"\x1b[31mred\x1b[0m\x07", id="escape"),
        pytest.param("\x9b31m \x7f", r"\x9b31m \x7f", id="c1"),
        pytest.param("\u202eevil\u2066\u200f", r"\u202eevil\u2066\u200f", id="bidi"),
        pytest.param("a\u2028b\u2029c\x85d\x0be", r"a\u2028b\u2029c\x85d\x0be", id="line-separators"),
        pytest.param("\ufeff\u200b\u00ad", r"\ufeff\u200b\xad", id="invisible"),
        pytest.param("😀 👩‍👩‍👧 🇪🇺 é 日本", "😀 👩‍👩‍👧 🇪🇺 é 日本", id="emoji"),
        pytest.param("  spaces  ", "  spaces  ", id="spaces"),
        pytest.param("<unknown>", "<unknown>", id="like-no-name"),
    ],
)
def test_a_name_stays_on_its_line(invoke: Invoke, store: SqliteStore, name: str, shown: str) -> None:
    """Names are shown with what would break the line or steer the terminal escaped, and everything else as it is."""
    store.add_key(make_key(id="aaaaaaaa", name=name))
    assert invoke("list").out == f"aaaaaaaa\t{shown}\n"


def test_no_character_breaks_the_list(invoke: Invoke, store: SqliteStore) -> None:
    """Every control, format and separator character there is stays within its line, escaped."""
    risky = [
        char
        for char in map(chr, range(1, sys.maxunicode + 1))
        if unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp", "Zs"}
    ]
    for number, char in enumerate(risky):
        store.add_key(make_key(id=f"key{number:05}", name=f"a{char}b"))
    assert len(risky) > 200
    lines = invoke("list").out.split("\n")[:-1]
    assert [line.partition("\t")[0] for line in lines] == [f"key{number:05}" for number in range(len(risky))]
    shown = "".join(line.partition("\t")[2] for line in lines)
    assert not [
        char for char in shown if unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"} and char not in JOINERS
    ]


def test_json_tells_all_but_the_secret(invoke: Invoke, store: SqliteStore) -> None:
    """With --json every field of every key is there, names as they are, and nothing of any secret."""
    name = 'a\tb\n"c" 😀 \x1b\x9b\u202e'
    key = make_key(id="aaaaaaaa", name=name, policy=FULL_POLICY, expires_at=NOON + timedelta(days=1), last_used_at=NOON)
    store.add_key(key)
    run = invoke("list", "--json", "example.com")
    assert run.out.replace("\n", "").isprintable()
    assert json.loads(run.out) == [
        {
            "id": "aaaaaaaa",
            "host": "example.com",
            "name": name,
            "created_at": "2026-03-01T12:00:00Z",
            "expires_at": "2026-03-02T12:00:00Z",
            "last_used_at": "2026-03-01T12:00:00Z",
            "policy": {
                "scopes": ["create", "read", "redeem", "revoke"],
                "kinds": ["register", "reset", "roster"],
                "groups": ["Gäste", "staff"],
                "roles": ["prosody:admin"],
                "allow_username": True,
                "max_expiry": "30d",
                "max_uses": 10,
                "quota": "100/1d",
                "all_invites": True,
                "header_only": True,
            },
        }
    ]
    assert key.secret_hash not in run.out
    assert "hash" not in run.out
    assert "tag" not in run.out


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        pytest.param("utf-8", "é 😀".encode(), id="utf-8"),
        pytest.param("iso-8859-1", b"\xe9 \\U0001f600", id="latin-1"),
    ],
)
def test_a_terminal_gets_what_it_can_show(store: SqliteStore, database: Path, encoding: str, shown: bytes) -> None:
    """Where the locale has no such character its escape is printed, and JSON stays right in every locale."""
    store.add_key(make_key(id="aaaaaaaa", name="é 😀"))
    env = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    run = run_command("--database", url_of(database), "list", env=env)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"aaaaaaaa\t" + shown + b"\n", b"")
    as_json = run_command("--database", url_of(database), "list", "--json", env=env)
    assert json.loads(as_json.stdout)[0]["name"] == "é 😀"


def test_a_locale_without_any_such_characters_is_no_error(store: SqliteStore, database: Path) -> None:
    """In the C locale, which cron jobs run in, the list is complete."""
    store.add_key(make_key(id="aaaaaaaa", name="é 😀 \udc80".replace("\udc80", "")))
    env = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None}
    run = run_command("--database", url_of(database), "list", env=env)
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout.startswith(b"aaaaaaaa\t")
    assert run.stdout.count(b"\n") == 1


def test_a_reader_that_has_gone_is_no_traceback(store: SqliteStore, database: Path) -> None:
    """Piped into what reads no further, as `head` does, the list just ends."""
    for number in range(3):
        store.add_key(make_key(id=f"key{number:05}"))
    reader, writer = os.pipe()
    os.close(reader)
    try:
        run = run_command("--database", url_of(database), "list", stdout=writer)
    finally:
        os.close(writer)
    assert (run.returncode, run.stderr) == (1, b"")


def test_a_closed_output_is_no_traceback(store: SqliteStore, database: Path) -> None:
    """Without any standard output, as some supervisors start programs, a line says so, and nothing is done."""
    store.add_key(make_key())
    run = run_command("--database", url_of(database), "list", shell='exec "$@" >&-')
    assert (run.returncode, run.stderr) == (1, b"Error: standard output is closed\n")
