"""A canary through every command there is: in each argument and option in turn, and in what the command works on.

The commands and their parameters are those of the command line itself, so that one that is new has its share at once;
it needs a line here that calls it rightly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest

from invites_core import ApiKeys, SecretHasher, open_store
from invites_core.stores.agent_server import AgentServer
from invites_core.stores.sqlite import SqliteStore
from invites_wsgi import Settings, create_app
from invites_wsgi.cli.main import command
from invites_wsgi.logs import configure_logging
from tests.cli.support import Invoke, url_of
from tests.cli.test_canary import assert_nowhere
from tests.cli.test_import_keys import make_row
from tests.conftest import StartPostgresql
from tests.helpers import make_invite
from tests.stores.test_lua_tables import write_file
from tests.wsgi.support import ask

RIGHT_CALLS: Final[dict[str, tuple[str, ...]]] = {
    "create": ("example.com", "My key"),
    "list": (),
    "delete": ("example.com", "{id}"),
    "update": ("example.com", "{id}", "--name", "Another name"),
    "rotate": ("example.com", "{id}"),
    "find": ("{id}",),
    "import-keys": ("example.com", "--from", "{folder}/invite_api_keys.dat"),
    "invite create": ("example.com",),
    "invite list": ("example.com",),
    "invite show": ("{token}",),
    "invite revoke": ("{token}",),
    "invite redeem": ("{token}", "--redeemer", "alice"),
    "invite release": ("{token}", "--redemption", "one"),
    "copy": ("--to", "sqlite:///{folder}/copy.db"),
    "backup": ("{folder}/backup.db",),
    "purge": ("--older-than", "30d"),
    "check": (),
    "serve": (),
    "agent": ("--store", "{url}", "--listen", "{folder}/agent.sock"),
}
"""Arguments with which each command does what it is for."""

TEXTS: Final = {"name", "groups", "roles", "note", "username", "redeemer", "redemption", "source"}
"""Parameters that are kept, or shown to whoever asks for what was made: a key in one of these is on standard output."""

FILES: Final = {"listen", "file", "target_url"}
"""Parameters that name a file that is made, and told, whatever it is called."""

SHOWING: Final = {"invite create", "invite list", "invite show", "invite redeem", "import-keys"}
"""Commands that print invites on standard output, which is what they are for."""


def list_commands(group: click.Group = command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Return every command that does something, by its words."""
    for word, found in group.commands.items():
        if isinstance(found, click.Group):
            yield from list_commands(found, f"{name}{word} ")
        else:
            yield f"{name}{word}", found


COMMANDS: Final = dict(list_commands())


def test_every_command_is_called_here() -> None:
    """No command is left out."""
    assert set(RIGHT_CALLS) == set(COMMANDS)


class World:
    """What the commands work on: a key, an invite, a file of keys, settings, and a file of events."""

    def __init__(self, folder: Path, store: SqliteStore, database: Path, hasher: SecretHasher) -> None:
        self.folder, self._store, self._database, self._hasher = folder, store, database, hasher
        self.events = folder / "events.log"

    def renew(self) -> dict[str, str]:
        """Make a key and an invite that nothing was done to yet, and return what fills in the right calls."""
        for left in ("copy.db", "backup.db"):
            (self.folder / left).unlink(missing_ok=True)
        keys = ApiKeys(self._store, hasher=self._hasher)
        issued, foreign = keys.create("example.com", name="My test key"), keys.create("example.com")
        keys.delete("example.com", foreign.key.id)
        invite = make_invite(expires_at=None)
        self._store.add_invites([invite])
        self.folder.joinpath("invite_api_keys.dat").write_bytes(
            write_file({f"imported-{issued.key.id}": make_row(f"imported-{issued.key.id}", foreign.secret)})
        )
        stored = self._store.find_key(issued.key.id)
        assert stored is not None
        return {
            "id": issued.key.id,
            "key": issued.combined,
            "secret": issued.secret,
            "token": invite.token,
            "hash": stored.secret_hash,
            "foreign": foreign.secret,
            "folder": str(self.folder),
            "url": url_of(self._database),
        }


class Ended:
    """Stands where gunicorn would start, and has ended already."""

    def __init__(self, settings: object, load_again: object) -> None:
        del settings, load_again

    def run(self) -> None:
        """End."""


@pytest.fixture(params=["text", "json"])
def world(
    request: pytest.FixtureRequest,
    store: SqliteStore,
    database: Path,
    hasher: SecretHasher,
    clean_environment: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    """A world in which commands keep their events, in each format, and what would serve for ever ends at once."""
    made = World(clean_environment, store, database, hasher)
    config = clean_environment / "settings.toml"
    # With a host of its own: otherwise a token can be the name of one, if its letters are right.
    config.write_text(
        f'[log]\nlevel = "debug"\nformat = "{request.param}"\ncommand_file = "{made.events}"\n[hosts."example.com"]\n'
    )
    monkeypatch.setenv("INVITES_CONFIG", str(config))
    monkeypatch.setattr("invites_wsgi.server.Server", Ended)
    monkeypatch.setattr(AgentServer, "serve", lambda *_: None)
    return made


def list_calls(name: str, values: list[str]) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Return calls of a command: right ones with each flag, and each of its parameters in turn with a canary in it.

    With each goes the name of the parameter, or nothing.
    """
    right, params = RIGHT_CALLS[name], COMMANDS[name].params
    yield right, set()
    for param in params:
        if not isinstance(param, click.Option):
            continue
        for option in (*param.opts, *param.secondary_opts):
            if param.is_flag:
                yield (*right, option), set()
            else:
                yield from (((*_without(right, option), option, value), {str(param.name)}) for value in values)
                yield from (((*_without(right, option), f"{option}={value}"), {str(param.name)}) for value in values)
    arguments = [str(param.name) for param in params if isinstance(param, click.Argument)]
    for position, argument in enumerate(arguments):
        for value in values:
            # What follows the arguments of a right call are options.
            yield (*right[:position], value, *right[position + 1 :]), {argument}
    for value in values:
        yield (*right, value), set(arguments)
        yield (*right, f"--{value}"), set()
        yield (*right, f"--nonsense={value}"), set()


def _without(arguments: tuple[str, ...], option: str) -> tuple[str, ...]:
    """Take an option and its value out of a call."""
    if option not in arguments:
        return arguments
    place = arguments.index(option)
    return (*arguments[:place], *arguments[place + 2 :])


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_tells_a_secret(name: str, world: World, invoke: Invoke) -> None:
    """Wherever a key, a secret or a token stands, none comes out on standard error, in a failure or in the events.

    On standard output are the invites that were asked for, and the texts that somebody has put into one, and no more.
    """
    codes = set()
    for call, params in list_calls(name, ["{key}", "{secret}", "{token}", "x={key}"]):
        fill = world.renew()
        run = invoke(*name.split(), *(argument.format(**fill) for argument in call))
        assert run.code in (0, 1, 2, 3), call
        codes.add(run.code)
        events = world.events.read_text("utf-8") if world.events.exists() else ""
        hidden = [fill[each] for each in ("secret", "hash", "foreign")]
        where = f"{name} {' '.join(call)}"
        assert_nowhere(events, *hidden, fill["token"], where=where)
        if run.code or not params & FILES:
            assert_nowhere(run.err, *hidden, fill["token"], where=where)
        if run.code:
            assert_nowhere(run.out, *hidden, fill["token"], where=where)
        if not params & TEXTS:
            assert_nowhere(run.out, *hidden, *([] if name in SHOWING else [fill["token"]]), where=where)
    assert codes >= {0, 2}


@pytest.mark.real_server
@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
def test_a_password_of_postgresql_is_nowhere(
    start_postgresql: StartPostgresql,
    invoke: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_right: bool,
) -> None:
    """Whether the server takes it or not, no command prints the password, and neither do the app and its log."""
    server = start_postgresql(auth="scram-sha-256")
    assert server.password is not None
    url, password = server.url, server.password
    if is_right:
        open_store(url, create=True).close()
    else:
        password = "hunter2-canary"
        url = url.replace(server.password, password)
    monkeypatch.setenv("INVITES_DATABASE", url)
    fill = {"id": "AAAAAAAA", "token": "A" * 24, "folder": str(tmp_path), "url": "sqlite:///nothing.db"}
    calls = {**RIGHT_CALLS, "check --json": ()}
    del calls["serve"], calls["agent"]
    texts = []
    for name, call in calls.items():
        run = invoke(*name.split(), *(argument.format(**fill) for argument in call), database=None)
        texts += [run.out, run.err]
    configure_logging("text", "debug")
    app = create_app(Settings(database=url))
    answers = [ask(app, target) for target in ("/healthz", "/invites_api?key=AAAAAAAA/x", f"/invite?{fill['token']}")]
    assert [answer.status for answer in answers] == ([200, 403, 404] if is_right else [503, 503, 503])
    texts += [f"{answer}" for answer in answers] + [repr(app), *capsys.readouterr()]
    assert_nowhere("\n".join(texts), password)
