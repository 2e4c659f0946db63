"""The subcommand that deletes invites that are long over."""

from __future__ import annotations

import sys
from datetime import timedelta

import click

from invites_core import Invites
from invites_wsgi.cli.base import Command, Session, session_options
from invites_wsgi.cli.values import DurationType

__all__ = ["purge"]


@click.command(cls=Command)
@click.option(
    "--older-than",
    type=DurationType(),
    metavar="DURATION",
    help="The age, such as 90d, counted from when an invite was used up or revoked, or else from when it expired.",
)
@session_options
@click.pass_obj
def purge(session: Session, older_than: timedelta | None) -> None:
    """Delete invites that are over for longer than an age, with their history, and print how many.

    Without --older-than the age is the setting purge_after.
    """
    settings = session.load_settings()
    age = older_than or settings.purge_after
    if age is None:
        raise click.UsageError("purge needs an age: --older-than 90d, or the setting purge_after")
    shows_progress = sys.stderr.isatty()

    def show(removed: int) -> None:
        if shows_progress:
            click.echo(f"\r{removed} deleted so far", nl=False, err=True)

    on_event = session.find_event_hook(settings)
    with session.opened_stores(settings) as (key_store, invite_store):
        invites = Invites(invite_store, keys=key_store, hosts=settings.hosts, on_event=on_event)
        removed = invites.purge(older_than=age, after_step=show)
    if shows_progress:
        click.echo("", err=True)
    click.echo(removed)
