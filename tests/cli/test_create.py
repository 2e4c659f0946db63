"""`invites-api create`: what it prints, what it makes, and where."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from invites_core import ApiKeys
from invites_core.keys import DEFAULT_POLICY
from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import LANDING_NOTE, Invoke, run_command, url_of
from tests.privileges import without_power_over_files

KEY = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_-]{7})/([A-Za-z0-9_-]{32})\n")
NOTE = LANDING_NOTE.format(host="example.com", ascii="example.com")


@pytest.fixture
def any_umask() -> Iterator[None]:
    """A umask that takes nothing away, which is the worst one."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_the_key_alone_is_printed(invoke: Invoke, database: Path) -> None:
    """Standard output is ID/SECRET and a newline; what people should know besides goes to standard error."""
    run = invoke("create", "example.com", "My test key")
    assert run.code == 0
    assert KEY.fullmatch(run.out)
    assert run.err == f"Made the database {database}\n{NOTE}"
    assert invoke("create", "example.com").err == NOTE


def test_the_key_works_and_is_as_said(invoke: Invoke, store: SqliteStore) -> None:
    """What was printed is a key of this host and name, with the plain policy and without an end."""
    before = datetime.now(UTC).replace(microsecond=0)
    combined = invoke("create", "example.com", "My test key").out.strip()
    key = ApiKeys(store).verify(combined)
    assert (key.host, key.name, key.policy, key.expires_at) == ("example.com", "My test key", DEFAULT_POLICY, None)
    assert before <= key.created_at <= datetime.now(UTC)
    assert key.last_used_at is None


@pytest.mark.parametrize(
    ("host", "stored", "ascii_form"),
    [
        pytest.param("example.com", "example.com", "example.com", id="plain"),
        pytest.param("Example.COM.", "example.com", "example.com", id="case-and-dot"),
        pytest.param("bücher.example", "bücher.example", "xn--bcher-kva.example", id="unicode"),
        pytest.param("BÜCHER.example", "bücher.example", "xn--bcher-kva.example", id="unicode-upper-case"),
        pytest.param("xn--bcher-kva.example", "bücher.example", "xn--bcher-kva.example", id="a-label"),
        pytest.param("例え。テスト", "例え.テスト", "xn--r8jz45g.xn--zckzah", id="ideographic-dot"),
        pytest.param("localhost", "localhost", "localhost", id="one-label"),
        pytest.param("192.0.2.1", "192.0.2.1", "192.0.2.1", id="digits"),
    ],
)
def test_a_host_is_normalised(invoke: Invoke, store: SqliteStore, host: str, stored: str, ascii_form: str) -> None:
    """A host in any spelling is stored in one, and its links use the form that URLs need."""
    run = invoke("create", host)
    assert run.code == 0
    assert run.err == LANDING_NOTE.format(host=stored, ascii=ascii_form)
    assert [key.host for key in store.list_keys()] == [stored]


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "bad host",
        "-a.example",
        "a-.example",
        "a_b.example",
        "a..b",
        ".example",
        "x" * 64,
        "a." * 127 + "a",
        "user@example.com",
        "https://example.com",
        "example.com/x",
        "example.com:80",
        "a\nb",
        "\x1b[31m",
        "\u202e",
        "*",
        "[::1]",
        "xn--\u00fc",
    ],
    ids=ascii,
)
def test_a_bad_host_is_refused(invoke: Invoke, database: Path, host: str) -> None:
    """What is no host name is one line, exit 1, and no database is made for it."""
    invoke("create", host).assert_failed(1, "please supply a valid host")
    assert not database.exists()


def test_a_host_that_is_not_served_is_refused(invoke: Invoke, database: Path, tmp_path: Path) -> None:
    """With hosts in the settings a key can be made for these alone, in any spelling."""
    config = tmp_path / "settings.toml"
    config.write_text('[hosts."bücher.example"]\nlanding_page = ""\n', "utf-8")
    invoke("--config", str(config), "create", "example.com").assert_failed(
        1, "please supply a valid host: example.com is not among those in the settings"
    )
    assert not database.exists()
    run = invoke("--config", str(config), "create", "XN--BCHER-KVA.example")
    assert run.code == 0
    assert "Invites of bücher.example are xmpp: links, which open in a chat app; no page is needed.\n" in run.err


@pytest.mark.parametrize(
    "name",
    [
        "My test key",
        "with \"double\" and 'single' quotes",
        "tab\there",
        "line\nbreak\r\n",
        "emoji 😀👩‍👩‍👧 and ünïcode",
        "escape \x1b[31m and bell \a",
        "bidi \u202eevil\u2066",
        "separators \u2028\u2029\x85",
        "-",
        "-x",
        "--",
        " leading and trailing ",
        "$(rm -rf /) `x` ; | & > \\",
        "%s {} %(x)s",
        "x" * 255,
        "<unknown>",
    ],
    ids=ascii,
)
def test_a_name_is_kept_as_it_is(invoke: Invoke, store: SqliteStore, name: str) -> None:
    """Whatever characters a name has, they are stored and come back unchanged."""
    arguments = ["create", "example.com", "--", name] if name == "--" else ["create", "example.com", name]
    assert invoke(*arguments).code == 0
    assert [key.name for key in store.list_keys()] == [name]


@pytest.mark.parametrize("arguments", [(), ("",)], ids=["absent", "empty"])
def test_a_key_may_have_no_name(invoke: Invoke, store: SqliteStore, arguments: tuple[str, ...]) -> None:
    """No name and an empty name are the same: none."""
    assert invoke("create", "example.com", *arguments).code == 0
    assert [key.name for key in store.list_keys()] == [None]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("x" * 256, "name: must have at most 255 characters, not 256", id="too-long"),
        pytest.param("a\udcffb", "name: must be valid Unicode without NUL", id="not-utf-8"),
    ],
)
def test_a_name_that_cannot_be_kept_is_refused(invoke: Invoke, store: SqliteStore, name: str, message: str) -> None:
    """A name beyond what every store can hold is a usage error, and no key is made."""
    invoke("create", "example.com", name).assert_failed(2, message)
    assert store.list_keys() == []


@pytest.mark.parametrize(
    ("option", "lifetime"),
    [
        pytest.param("90d", timedelta(days=90), id="days"),
        pytest.param("1s", timedelta(seconds=1), id="shortest"),
        pytest.param("2w", timedelta(weeks=2), id="weeks"),
        pytest.param("36500d", timedelta(days=36500), id="longest"),
    ],
)
def test_a_key_can_expire(invoke: Invoke, store: SqliteStore, option: str, lifetime: timedelta) -> None:
    """`--expires-in` sets the key's own end, counted from now."""
    assert invoke("create", "example.com", "--expires-in", option).code == 0
    [key] = store.list_keys()
    assert key.expires_at == key.created_at + lifetime


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("90", "--expires-in: must be a number with s, min, h, d or w, such as 7d, not '90'"),
        ("", "--expires-in: must be a number with s, min, h, d or w, such as 7d, not ''"),
        ("-1d", "--expires-in: must be a number with s, min, h, d or w, such as 7d, not '-1d'"),
        ("1.5d", "--expires-in: must be a number with s, min, h, d or w, such as 7d, not '1.5d'"),
        ("0d", "--expires-in: must be from 1s to 36500d, not '0d'"),
        ("36501d", "--expires-in: must be from 1s to 36500d, not '36501d'"),
        ("٧d", "--expires-in: must be a number with s, min, h, d or w, such as 7d, not '٧d'"),
    ],
)
def test_a_lifetime_that_is_none_is_refused(invoke: Invoke, database: Path, option: str, message: str) -> None:
    """A bare number and one out of range are usage errors, and nothing is made."""
    invoke("create", "example.com", f"--expires-in={option}").assert_failed(2, message)
    assert not database.exists()


def test_json_holds_the_key(invoke: Invoke) -> None:
    """With --json standard output is one document with the key in it, and nothing of its hash."""
    run = invoke("create", "example.com", "Schlüssel 😀\x9b\u202e", "--json", "--expires-in", "1h")
    content = json.loads(run.out)
    assert run.out.isascii()
    key_id, _, secret = content["key"].partition("/")
    created = datetime.fromisoformat(content["created_at"])
    assert content == {
        "id": key_id,
        "host": "example.com",
        "name": "Schlüssel 😀\x9b\u202e",
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "expires_at": (created + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "last_used_at": None,
        "policy": {
            "scopes": ["create"],
            "kinds": ["register"],
            "groups": [],
            "roles": [],
            "allow_username": False,
            "max_expiry": None,
            "max_uses": 1,
            "quota": None,
            "all_invites": False,
            "header_only": False,
        },
        "key": f"{key_id}/{secret}",
    }
    assert (len(key_id), len(secret)) == (8, 32)
    assert "argon2" not in run.out


# The database


@pytest.mark.usefixtures("any_umask")
def test_a_new_database_is_private_under_any_umask(invoke: Invoke, database: Path) -> None:
    """What `create` makes is for its owner alone from the start, and nothing else is left in the folder."""
    assert invoke("create", "example.com").code == 0
    assert {stat.S_IMODE(path.stat().st_mode) for path in database.parent.iterdir()} == {0o600}
    assert database in database.parent.iterdir()
    assert all(path.name.startswith(database.name) for path in database.parent.iterdir())


@pytest.mark.usefixtures("any_umask")
def test_the_default_database_gets_private_folders(invoke: Invoke, clean_environment: Path) -> None:
    """Without any settings the database is made in the user's data folder, and every folder on the way is private."""
    run = invoke("create", "example.com", database=None)
    assert run.code == 0
    database = clean_environment / ".local" / "share" / "invites-api" / "invites.db"
    assert f"Made the database {database}\n" in run.err
    for folder in (database.parent, database.parent.parent, database.parent.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    assert invoke("list", database=None).out.count("\n") == 1


def test_only_the_default_folder_is_made(invoke: Invoke, tmp_path: Path) -> None:
    """A folder that somebody named and that is not there is a mistake, in one line."""
    path = tmp_path / "missing" / "x.db"
    run = invoke("create", "example.com", database=path)
    run.assert_failed(3, f"cannot make the database {path}: there is no folder {path.parent}")
    assert not path.parent.exists()


def test_a_home_that_is_closed_is_one_line(invoke: Invoke, clean_environment: Path) -> None:
    """Where the user's data folder cannot be made, the command says so."""
    clean_environment.chmod(0o500)
    with without_power_over_files():
        run = invoke("create", "example.com", database=None)
    folder = clean_environment / ".local" / "share" / "invites-api"
    run.assert_failed(3, f"cannot make the folder {folder}: permission denied")


def test_a_folder_that_is_closed_is_one_line(invoke: Invoke, database: Path) -> None:
    """A folder in which no file can be made is named, whether it can be looked into or not."""
    database.parent.chmod(0o500)
    with without_power_over_files():
        run = invoke("create", "example.com")
    run.assert_failed(3, f"cannot make the database {database}: permission denied")
    database.parent.chmod(0o000)
    with without_power_over_files():
        run = invoke("create", "example.com")
    assert (run.code, run.out) == (3, "")
    assert re.fullmatch(rf"Error: cannot (make|open) the database {database}: permission denied\n", run.err)
    database.parent.chmod(0o700)


def test_a_relative_path_is_told_whole(invoke: Invoke, tmp_path: Path) -> None:
    """The path of a new database is told as it can be found from anywhere."""
    run = invoke("create", "example.com", database="sqlite:///keys.db")
    assert f"Made the database {tmp_path / 'work' / 'keys.db'}\n" in run.err
    assert (tmp_path / "work" / "keys.db").exists()


def test_a_second_create_makes_nothing_new(invoke: Invoke, store: SqliteStore, database: Path) -> None:
    """A database that is there is used as it is."""
    first, second = invoke("create", "example.com").out, invoke("create", "other.example").out
    assert first != second
    assert {key.host for key in store.list_keys()} == {"example.com", "other.example"}


def test_several_at_once_share_one_new_database(database: Path) -> None:
    """When several processes find no database, one of them makes it, and each makes its key in it."""
    import subprocess

    from tests.helpers import PATIENCE
    from tests.wsgi.support import COMMAND

    command = [*COMMAND, "--database", url_of(database), "create", "example.com"]
    running = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    outcomes = [process.communicate(timeout=PATIENCE) for process in running]
    assert [process.returncode for process in running] == [0] * 4, outcomes
    store = SqliteStore(database)
    keys = ApiKeys(store)
    assert len({keys.verify(out.decode().strip()).id for out, _ in outcomes}) == 4
    store.close()


def test_the_installed_command_is_the_same(database: Path) -> None:
    """In a process of its own the command prints the same, and nothing else."""
    run = run_command("--database", url_of(database), "create", "example.com", "My test key")
    assert (run.returncode, run.stderr.decode()) == (0, f"Made the database {database}\n{NOTE}")
    assert KEY.fullmatch(run.stdout.decode())


def test_a_key_that_cannot_be_printed_is_an_error(database: Path) -> None:
    """Where standard output takes nothing, the command fails with one line instead of losing the key in silence."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full: run the tests on Linux")
    with Path("/dev/full").open("wb") as full:
        run = run_command("--database", url_of(database), "create", "example.com", stdout=full)
    assert run.returncode == 1
    assert run.stderr.decode().splitlines()[-1] == "Error: the system: no space left on device"
    assert "Traceback" not in run.stderr.decode()


def test_no_key_is_made_that_nobody_could_read(database: Path) -> None:
    """With standard output closed the command makes nothing, and says so in one line."""
    run = run_command("--database", url_of(database), "create", "example.com", shell='exec "$@" >&-')
    assert (run.returncode, run.stderr.decode()) == (1, "Error: standard output is closed\n")
    assert not database.exists()
