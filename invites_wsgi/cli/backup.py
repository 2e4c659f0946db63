"""The subcommand that makes a backup of the database."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from invites_core import StorageError, Unsupported, open_store
from invites_core.stores.transfer import BackedUp
from invites_wsgi.cli.base import Command, Session, session_options, tell

__all__ = ["backup"]


@click.command(cls=Command)
@click.argument("file")
@session_options
@click.pass_obj
def backup(session: Session, file: str) -> None:
    """Write a backup of the database into FILE, which must not be there yet, while the service goes on.

    For SQLite. A PostgreSQL database is backed up with pg_dump.
    """
    settings = session.load_settings()
    if settings.database == "memory:":
        raise Unsupported("memory: is gone with its process; there is nothing to back up")
    if settings.database.startswith("postgresql:"):
        shown = shlex.quote(file)
        raise Unsupported(f"a PostgreSQL database is backed up with: pg_dump --format=custom --file={shown} DATABASE")
    if not file or file.endswith(os.sep):
        raise click.UsageError("FILE must be the name of a file")
    store = open_store(settings.database, create=False)
    try:
        if not isinstance(store, BackedUp):
            raise StorageError(f"{store.location} cannot be backed up by this command")
        path = Path(os.path.abspath(file))
        store.back_up(path)
    finally:
        store.close()
    if settings.invites is not None and settings.invites != settings.database:
        tell("The invites are in a database of their own; back that up with --database too, before this one.")
    tell(f"Made the backup {path}")
