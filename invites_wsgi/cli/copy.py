"""The subcommand that copies one database into another."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import click

from invites_core import KeyStore
from invites_core.stores.transfer import Transferable, copy_store
from invites_wsgi.cli.base import Command, Session, session_options, tell
from invites_wsgi.config import Settings, SettingsError, has_password

__all__ = ["copy"]


@click.command(cls=Command)
@click.option("--from", "source_url", metavar="URL", help="What is copied; without it the database of the settings.")
@click.option(
    "--to", "target_url", metavar="URL", help="Where it is copied to; without it the database of the settings."
)
@session_options
@click.pass_obj
def copy(session: Session, source_url: str | None, target_url: str | None) -> None:
    """Copy all keys and invites into an empty database, verify the copy, and print how many rows each table has.

    Stop the service first. A copy that was cut short goes on when the same is run again.
    """
    if source_url is None and target_url is None:
        raise click.UsageError("copy needs --from or --to; the one that is left out is the database of the settings")
    source_settings = _settings_of(session, "--from", source_url)
    target_settings = _settings_of(session, "--to", target_url)
    show, end = _make_progress()
    # The target is made only when the source is there.
    with (
        session.opened_stores(source_settings) as (source, _),
        session.opened_stores(target_settings, create=True) as (target, _),
    ):
        try:
            rows = copy_store(_need(source, "--from"), _need(target, "--to"), progress=show)
        finally:
            end()
        tell(f"{target.location} holds all of {source.location}, row for row.")
    for name, count in rows.items():
        click.echo(f"{name}\t{count}")


def _settings_of(session: Session, option: str, url: str | None) -> Settings:
    """Return the settings with the database that an option names, and with no other for the invites."""
    if url is not None and has_password(url):
        raise click.UsageError(
            f"{option}: a URL with a password is taken from the settings file or INVITES_DATABASE only; leave {option}"
            " out to mean that database"
        )
    try:
        settings = (session if url is None else replace(session, database=url)).load_settings()
    except SettingsError as error:
        if url is None:
            raise
        raise click.UsageError(f"{option}: {str(error).removeprefix('database: ')}") from error
    if settings.database == "memory:":
        raise click.UsageError(f"{option}: memory: is gone with its process; there is nothing to copy")
    if settings.invites not in (None, settings.database):
        tell(f"{option}: the invites are in a database of their own, which is not copied with the keys")
    return replace(settings, invites=None)


def _need(store: KeyStore, option: str) -> Transferable:
    if not isinstance(store, Transferable):
        raise click.UsageError(f"{option}: only SQLite and PostgreSQL databases can be copied")
    return store


def _make_progress() -> tuple[Callable[[str, int, int], None], Callable[[], None]]:
    """Return what shows progress on a terminal, in one line, and what ends that line."""
    shown = False

    def show(what: str, done: int, total: int) -> None:
        nonlocal shown
        if sys.stderr.isatty():
            shown = True
            click.echo(f"\r{what} {done} of {total} rows\x1b[K", nl=False, err=True)

    def end() -> None:
        if shown:
            click.echo("", err=True)

    return show, end
