"""How the command takes its arguments, and how it fails: one line, and an exit code that says what kind it was."""

from __future__ import annotations

import errno
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import invites_core
from invites_core import ApiKeys, InvitesError
from invites_core.stores.sqlite import SqliteStore
from invites_wsgi.errors import ERRORS
from tests.cli.support import Invoke, run_command, run_main, url_of
from tests.helpers import PATIENCE, make_key
from tests.wsgi.support import COMMAND, FailingStore, get_sample_errors

COMMANDS = "agent backup check copy create delete find import-keys invite list purge rotate serve update".split()


# Where options stand


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--database", "{url}", "list", "example.com", "--json"], id="before-the-command"),
        pytest.param(["list", "--database", "{url}", "example.com", "--json"], id="after-the-command"),
        pytest.param(["list", "example.com", "--database", "{url}", "--json"], id="after-the-arguments"),
        pytest.param(["list", "--json", "example.com", "--database={url}"], id="with-an-equals-sign"),
        pytest.param(["--database={url}", "list", "--json", "--", "example.com"], id="two-dashes"),
        pytest.param(
            ["--database", "sqlite:///no", "list", "--json", "--database", "{url}"], id="the-later-one-counts"
        ),
    ],
)
def test_options_may_stand_before_and_after(
    invoke: Invoke, store: SqliteStore, database: Path, arguments: list[str]
) -> None:
    """Options are taken wherever they stand."""
    store.add_key(make_key(id="aaaaaaaa"))
    run = invoke(*[argument.format(url=url_of(database)) for argument in arguments], database=None)
    assert (run.code, run.err) == (0, "")
    assert [key["id"] for key in json.loads(run.out)] == ["aaaaaaaa"]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_settings_file_may_stand_before_and_after(
    invoke: Invoke, store: SqliteStore, database: Path, tmp_path: Path, *, before: bool
) -> None:
    """`--config` names the settings file, which names the database relative to itself."""
    store.add_key(make_key(id="aaaaaaaa"))
    config = tmp_path / "settings.toml"
    config.write_text(f'database = "sqlite:///{database.parent.name}/{database.name}"')
    option = ["--config", str(config)]
    run = invoke(*option, "list", database=None) if before else invoke("list", *option, database=None)
    assert run.out == "aaaaaaaa\tMy test key\n"


def test_arguments_outweigh_the_environment_which_outweighs_the_file(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is the one of --database, else INVITES_DATABASE, else the settings file, else the default."""
    for name in ("argument", "environment", "file", "default"):
        path = tmp_path / f"{name}.db"
        if name == "default":
            path = tmp_path / "home" / ".local" / "share" / "invites-api" / "invites.db"
            path.parent.mkdir(parents=True)
        opened = SqliteStore(path)
        opened.add_key(make_key(id="aaaaaaaa", name=name))
        opened.close()
    config = tmp_path / "settings.toml"
    config.write_text('database = "sqlite:///file.db"')

    def found(*options: str) -> str:
        return invoke(*options, "list", database=None).out.strip().partition("\t")[2]

    assert found() == "default"
    monkeypatch.setenv("INVITES_CONFIG", str(config))
    assert found() == "file"
    monkeypatch.setenv("INVITES_DATABASE", url_of(tmp_path / "environment.db"))
    assert found() == "environment"
    assert found("--config", str(config)) == "environment"
    assert found("--database", url_of(tmp_path / "argument.db")) == "argument"


# What is taken for an option, and what is not


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["create", "example.com", "--header-onyl"], "No such option '--header-onyl'.", id="name"),
        pytest.param(["create", "--nope", "example.com"], "No such option '--nope'.", id="host"),
        pytest.param(["create", "example.com", "--nope=1"], "No such option '--nope'.", id="with-a-value"),
        pytest.param(["delete", "example.com", "--abc"], "No such option '--abc'.", id="id"),
        pytest.param(["list", "--jsno"], "No such option '--jsno'. Did you mean '--json'?", id="near"),
        pytest.param(["create", "example.com", "--expires_in", "1d"], "No such option '--expires_in'", id="underscore"),
        *(
            pytest.param(["create", "example.com", option], f"No such option '{option}'.", id=option)
            for option in ("--header_only", "--Header-Only", "--HEADER_ONLY", "--headeR-only")
        ),
        pytest.param(
            ["find", "a", "--databse", "x"], "No such option '--databse'. Did you mean '--database'?", id="near-shared"
        ),
        pytest.param(["--nope", "list"], "No such option '--nope'.", id="group"),
        pytest.param(["-x", "list"], "No such option '-x'.", id="group-short"),
        pytest.param(["--jsn"], "No such option '--jsn'.", id="group-alone"),
    ],
)
def test_a_slip_in_an_option_is_refused(invoke: Invoke, database: Path, arguments: list[str], message: str) -> None:
    """What looks like an option and is none is a usage error, and never becomes a name; nothing is made."""
    run = invoke(*arguments)
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith(f"Error: {message}")
    assert run.err.count("\n") == 1
    assert not database.exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        pytest.param(["-x"], "-x", id="short"),
        pytest.param(["-LihiCNf28-X"], "-LihiCNf28-X", id="like-an-id"),
        pytest.param(["-"], "-", id="dash"),
        pytest.param(["--", "--header-onyl"], "--header-onyl", id="after-two-dashes"),
        pytest.param(["--", "--"], "--", id="two-dashes-after-two-dashes"),
        pytest.param(["--", "--json"], "--json", id="an-option-after-two-dashes"),
        pytest.param(["--json", "--", "-x"], "-x", id="options-before-two-dashes"),
        pytest.param(["--Jsno"], "--Jsno", id="upper-case"),
        pytest.param(["--my name"], "--my name", id="with-a-space"),
        pytest.param(["--é"], "--é", id="not-ascii"),
        pytest.param(["-x=1 2"], "-x=1 2", id="with-a-value"),
    ],
)
def test_an_argument_may_begin_with_a_dash(invoke: Invoke, store: SqliteStore, arguments: list[str], name: str) -> None:
    """What does not look like an option in lower-case words is an argument, and after `--` everything is."""
    assert invoke("create", "example.com", *arguments).code == 0
    assert [key.name for key in store.list_keys()] == [name]


def test_the_value_of_an_option_may_look_like_one(invoke: Invoke, database: Path) -> None:
    """What follows an option that takes a value is its value."""
    run = invoke("create", "example.com", "--expires-in", "--nope")
    assert run.code == 2
    assert "--expires-in" in run.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["create"], "Missing argument 'HOST'.", id="create-without-host"),
        pytest.param(["delete", "example.com"], "Missing argument 'ID'.", id="delete-without-id"),
        pytest.param(["find"], "Missing argument 'ID'.", id="find-without-id"),
        pytest.param(
            ["create", "example.com", "My", "test", "key"],
            "too many arguments; a name with spaces needs quotes",
            id="create-without-quotes",
        ),
        pytest.param(
            ["list", "a.example", "b.example"], "too many arguments; a name with spaces needs quotes", id="list"
        ),
        pytest.param(["check", "x"], "too many arguments; a name with spaces needs quotes", id="check"),
        pytest.param(["nope"], "No such command 'nope'.", id="unknown-command"),
        pytest.param(["list", "--config"], "Option '--config' requires an argument.", id="option-without-value"),
        pytest.param(["list", "--json=1"], "Option '--json' does not take a value.", id="flag-with-value"),
        pytest.param(
            ["serve", "--workers", "many"],
            "Invalid value for '--workers': 'many' is not a valid integer.",
            id="no-number",
        ),
        pytest.param(["serve", "--workers", "0"], "workers: must be a whole number from 1 to 256", id="workers"),
        pytest.param(["serve", "--threads", "999"], "threads: must be a whole number from 1 to 256", id="threads"),
        pytest.param(
            ["serve", "--listen", "x"],
            "listen: must be ADDRESS:PORT, such as 127.0.0.1:5280 or [::1]:5280, or unix:PATH",
            id="listen",
        ),
    ],
)
def test_a_usage_error_is_one_line_and_exit_2(
    invoke: Invoke, database: Path, arguments: list[str], message: str
) -> None:
    """Arguments that make no sense are named in one line, and nothing is made."""
    invoke(*arguments).assert_failed(2, message)
    assert not database.exists()


def test_a_second_part_of_a_key_is_not_repeated(invoke: Invoke, store: SqliteStore) -> None:
    """An id and its secret with a space between them, which is a likely slip, do not come back in the error."""
    issued = ApiKeys(store).create("example.com")
    run = invoke("delete", "example.com", issued.key.id, issued.secret)
    assert run.code == 2
    assert issued.secret not in run.err


# Settings


@pytest.mark.parametrize(
    "command",
    [["create", "example.com"], ["list"], ["delete", "example.com", "a"], ["find", "a"], ["check"], ["serve"]],
)
def test_a_mistake_in_the_settings_stops_every_command(
    invoke: Invoke, database: Path, tmp_path: Path, command: list[str]
) -> None:
    """A mistake is one line with the file and the key, exit 2, before anything is made."""
    config = tmp_path / "settings.toml"
    config.write_text("[http]\nlistn = 1\n")
    run = invoke("--config", str(config), *command)
    run.assert_failed(2, f"{config}: http.listn: unknown key; did you mean http.listen?")
    missing = tmp_path / "missing.toml"
    invoke("--config", str(missing), *command).assert_failed(2, f"cannot read {missing}: no such file or directory")
    assert not database.exists()


def test_a_mistake_cannot_break_the_line(invoke: Invoke, tmp_path: Path) -> None:
    """What a settings file holds is shown escaped."""
    config = tmp_path / "settings.toml"
    config.write_text('"a\\nb\\u001b[31m" = 1\n')
    invoke("--config", str(config), "list").assert_failed(2, rf"{config}: a\nb\x1b[31m: unknown key")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?password=hunter2",
        "host=h password=hunter2",
    ],
)
def test_a_password_is_no_argument(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """A URL with a password is refused as an argument, which every user of the machine can see, and is not repeated."""
    message = "--database: a URL with a password is taken from the settings file or INVITES_DATABASE only"
    invoke("list", database=url).assert_failed(2, message)
    monkeypatch.setenv("INVITES_DATABASE", url)
    run = invoke("list", database=None)
    # No server listens there.
    assert run.code == (3 if url.startswith("postgresql://") else 2)
    assert "hunter2" not in run.err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param(
            "mysql://h/d",
            "database: there is no store 'mysql:'; known are sqlite:///, postgresql:// and memory:",
            id="scheme",
        ),
        pytest.param(
            "x.db",
            "database: there is no store 'without a scheme'; known are sqlite:///, postgresql:// and memory:",
            id="path",
        ),
        pytest.param(
            "sqlite://x.db", "database: must be sqlite:///relative.db or sqlite:////absolute.db", id="slashes"
        ),
    ],
)
def test_a_store_that_is_none_is_refused(invoke: Invoke, url: str, message: str) -> None:
    """A URL of a store that there is not is a usage error."""
    invoke("list", database=url).assert_failed(2, message)


# Exit codes


EXIT_CODES = {
    **dict.fromkeys(["InvalidRequest"], 2),
    **dict.fromkeys(["QuotaSpent", "Busy", "StorageError", "StorageBusy", "OutcomeUnknown", "CorruptRecord"], 3),
}


@pytest.mark.parametrize("name", sorted(error_class.__name__ for error_class in ERRORS))
def test_every_error_has_its_exit_code(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each error of the library is its own message in one line, and the exit code of the contract, 1 for the rest."""
    error = get_sample_errors()[name]
    monkeypatch.setattr("invites_wsgi.cli.base.open_store", lambda *_, **__: FailingStore(error))
    invoke("find", "aaaaaaaa").assert_failed(EXIT_CODES.get(name, 1), str(error))


def test_a_message_of_a_store_cannot_break_the_line(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an error says is one line."""
    error = invites_core.StorageError("two\nlines \x1b[31m of trouble")
    monkeypatch.setattr("invites_wsgi.cli.base.open_store", lambda *_, **__: FailingStore(error))
    invoke("list").assert_failed(3, r"two\nlines \x1b[31m of trouble")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        pytest.param(OSError(errno.EACCES, "Permission denied", "/srv/x"), 1, "/srv/x: permission denied", id="system"),
        pytest.param(OSError(errno.EMFILE, "Too many open files"), 1, "the system: too many open files", id="no-file"),
        pytest.param(KeyboardInterrupt(), 130, "stopped", id="ctrl-c"),
    ],
)
def test_other_ends_are_one_line_too(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    """What the system refuses and who presses Ctrl-C get a line as well, no traceback."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("invites_wsgi.cli.base.open_store", fail)
    run = invoke("list")
    assert (run.code, run.out, run.err.strip()) == (code, "", f"Error: {message}")


# Help


def test_without_arguments_the_help_is_shown(invoke: Invoke) -> None:
    """The bare command tells how it is used on standard error and exits 2."""
    run = invoke(database=None)
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("Usage: ")


def test_help_names_every_command(invoke: Invoke) -> None:
    """--help lists the commands, and each command has help of its own, on standard output."""
    run = invoke("--help", database=None)
    assert (run.code, run.err) == (0, "")
    listed = re.findall(r"^  ([a-z-]+)  +[A-Z]", run.out.partition("Commands:\n")[2], re.MULTILINE)
    assert listed == COMMANDS
    for command in COMMANDS:
        run = invoke(command, "--help", database=None)
        assert (run.code, run.err) == (0, "")
        assert "--config FILE" in run.out
        assert "--database URL" in run.out


def test_version_is_the_package_s(invoke: Invoke) -> None:
    """--version prints the name and the version."""
    run = invoke("--version", database=None)
    assert (run.code, run.out) == (0, f"invites-api, version {invites_core.__version__}\n")


def test_main_ends_with_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    """The entry point never returns: it exits with a number."""
    assert run_main(["--version"]) == 0
    assert capsys.readouterr().out


def test_the_command_starts_without_the_server(store: SqliteStore, database: Path) -> None:
    """Only `serve` needs gunicorn, and only it imports it."""
    store.add_key(make_key(id="aaaaaaaa"))
    script = (
        "import sys; sys.modules['gunicorn'] = None; sys.argv = ['invites-api', '--database', sys.argv[1], 'list'];"
        "from invites_wsgi.cli import main; main()"
    )
    run = subprocess.run(
        [COMMAND[0], "-W", "error", "-c", script, url_of(database)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "aaaaaaaa\tMy test key\n", "")


def test_an_error_class_that_is_new_is_in_the_table() -> None:
    """Every error that the library exports has an exit code."""
    exported = {getattr(invites_core, name) for name in invites_core.__all__}
    classes = {item for item in exported if isinstance(item, type) and issubclass(item, InvitesError)}
    assert classes - {InvitesError} == set(ERRORS)


def test_the_module_is_the_command(store: SqliteStore, database: Path) -> None:
    """`python -m invites_wsgi.cli` runs the command as the script does."""
    store.add_key(make_key(id="aaaaaaaa"))
    run = run_command("list", "example.com", env={"INVITES_DATABASE": url_of(database)})
    assert (run.returncode, run.stdout, run.stderr) == (0, b"aaaaaaaa\tMy test key\n", b"")
