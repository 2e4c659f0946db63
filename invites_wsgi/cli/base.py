"""What every subcommand shares: its options, its settings and store, and how it takes arguments and prints."""

from __future__ import annotations

import contextlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from invites_core import Event, EventHook, InviteStore, KeyStore, StorageError, open_invite_store, open_store
from invites_core.stores import parse_sqlite_path
from invites_core.stores.schema import HasSchema
from invites_wsgi.config import Settings, default_database, has_password, load_settings
from invites_wsgi.events import EventFile

__all__ = ["Command", "Session", "escape_controls", "print_fields", "print_json", "session_options", "tell"]

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound=InviteStore | KeyStore)

_OPTION_LIKE: Final = re.compile(r"--[a-z]+(-[a-z]+)*(=.*)?", re.DOTALL)
_JOINERS: Final = "\u200c\u200d"
"""Zero-width joiners: part of how emoji and some scripts are written."""


class Command(click.Command):
    """A command whose arguments may begin with ``-``, as ids, tokens and names may.

    What looks like an option in lower-case words and is none is still refused: a slip in ``--header-only`` must not
    become the name of a key that can do more than was meant. ``--`` before an argument takes it as it is.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {
            **self.context_settings,
            "ignore_unknown_options": True,
            "allow_extra_args": True,
        }

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, refusing options that are not there, and arguments that are too many."""
        options = {
            name: param
            for param in self.get_params(ctx)
            if isinstance(param, click.Option)
            for name in (*param.opts, *param.secondary_opts)
        }
        values_to_skip = 0
        for arg in args:
            if values_to_skip:
                values_to_skip -= 1
                continue
            if arg == "--":
                break
            name, equals, _ = arg.partition("=")
            option = options.get(name)
            if option is not None:
                values_to_skip = 0 if equals or option.is_flag else option.nargs
            elif _OPTION_LIKE.fullmatch(arg) or (_OPTION_LIKE.fullmatch(_plain(name)) and _plain(name) in options):
                raise click.NoSuchOption(name, possibilities=sorted(options), ctx=ctx)
        too_many = super().parse_args(ctx, args)
        if too_many and not ctx.resilient_parsing:
            # They are not repeated, as click would do: an id and its secret with a space between is a likely slip.
            ctx.fail("too many arguments; a name with spaces needs quotes")
        return too_many


def _plain(name: str) -> str:
    """Return how an option would be written that somebody wrote with capitals or underscores."""
    return name.lower().replace("_", "-")


@dataclass(slots=True)
class Session:
    """One run of the command: what it was told, and the settings that come of it.

    Attributes:
        config: The settings file from ``--config``, or None.
        database: The database URL from ``--database``, or None.
    """

    config: str | None = None
    database: str | None = field(default=None, repr=False)

    def load_settings(self, **overrides: object) -> Settings:
        """Return the settings: file, environment, arguments.

        Raises:
            SettingsError: A mistake in them.
            click.UsageError: A password in an argument.
        """
        if self.database is not None and has_password(self.database):
            raise click.UsageError(
                "--database: a URL with a password is taken from the settings file or INVITES_DATABASE only"
            )
        return load_settings(file=self.config, overrides={"database": self.database, **overrides})

    def find_event_hook(self, settings: Settings) -> EventHook | None:
        """Return what keeps the events of this run, or None where the settings name no file for them.

        Raises:
            OSError: The file cannot be written to. So ask before anything is changed.
        """
        if settings.log_command_file is None:
            return None
        append = EventFile(settings.log_command_file, settings.log_format)

        def keep(event: Event) -> None:
            try:
                append(event)
            except OSError as error:
                # It is done, and has no line: that is for whoever has done it to know, and no reason to do it again.
                tell(f"{event.name} could not be written to {settings.log_command_file}: {error.strerror}")

        return keep

    @contextlib.contextmanager
    def opened_stores(self, settings: Settings, *, create: bool = False) -> Iterator[tuple[KeyStore, InviteStore]]:
        """Open the stores of the keys and of the invites, which may be one, and close them in the end.

        Args:
            settings: Which stores.
            create: Whether to make databases that are not there, and tell their paths.
        """
        with contextlib.ExitStack() as stack:
            key_store = _open_store(open_store, settings.database, create=create)
            stack.callback(key_store.close)
            invite_store: InviteStore = key_store
            if settings.invites is not None:
                invite_store = _open_store(open_invite_store, settings.invites, create=create)
                stack.callback(invite_store.close)
            yield key_store, invite_store


def _open_store(open_url: Callable[..., S], url: str, *, create: bool) -> S:
    path = parse_sqlite_path(url)
    if create and path is not None and url == default_database(os.environ):
        _make_private_folder(path.parent)
    store = open_url(url, create=create)
    opened: object = store
    if create and isinstance(opened, HasSchema) and opened.schema.is_new:
        tell(f"Made the database {store.location}")
    return store


def _make_private_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, each for its owner alone, whatever the umask is.

    Raises:
        StorageError: It cannot be made.
    """
    try:
        for part in reversed([folder, *folder.parents]):
            if not part.is_dir():
                part.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {(error.strerror or 'error').lower()}") from error


def session_options(command: F) -> F:
    """Add the options that may stand before and after the subcommand's name."""

    def keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        session = ctx.ensure_object(Session)
        if value is not None and param.name is not None:
            setattr(session, param.name, value)

    for name, metavar, text in (
        ("--database", "URL", "The database, such as sqlite:////var/lib/invites-api/invites.db."),
        ("--config", "FILE", "The settings file."),
    ):
        command = click.option(name, metavar=metavar, help=text, expose_value=False, callback=keep)(command)
    return command


def escape_controls(text: str) -> str:
    r"""Return a text that stays on its line and cannot steer a terminal: controls become ``\n``, ``\x1b`` and so on."""
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and char not in _JOINERS
        else char
        for char in text
    )


def print_json(content: object) -> None:
    """Print a JSON document on standard output, in ASCII: right in every locale, and no character steers a terminal."""
    click.echo(json.dumps(content, indent=2))


def print_fields(fields: Mapping[str, object]) -> None:
    """Print a record for people, a field a line."""
    for name, value in fields.items():
        if isinstance(value, bool):
            text = "yes" if value else "no"
        elif isinstance(value, list):
            text = ", ".join(map(str, value))
        else:
            text = "" if value is None else str(value)
        click.echo(f"{name}: {escape_controls(text) or '-'}")


def tell(text: str) -> None:
    """Say something to the person at the terminal, beside what is printed for programs."""
    click.echo(text, err=True)
