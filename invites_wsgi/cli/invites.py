"""The subcommands on invites: what an admin makes, looks at and takes back without a key."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any, Final

import click

from invites_core import Invite, Invites
from invites_core.clock import system_clock
from invites_wsgi.cli.base import (
    Command,
    Session,
    escape_controls,
    print_fields,
    print_json,
    session_options,
    tell,
)
from invites_wsgi.cli.values import DurationType, TokenType, UsesType
from invites_wsgi.representation import invite_details_to_json, invite_to_json

__all__ = ["invite"]

SOURCE: Final = "command"
LIST_LIMIT: Final = 100

_token = click.argument("token", type=TokenType())


@click.group()
@session_options
def invite() -> None:
    """Make, list, show, revoke, redeem and release invites, on your own authority."""


@invite.command("create", cls=Command)
@click.argument("host")
@click.option("--kind", default="register", show_default=True, metavar="KIND", help="register, roster or reset.")
@click.option("--username", metavar="NAME", help="The account to create or to reset, or the one that invites.")
@click.option(
    "--registration/--no-registration", default=None, help="Whether a roster invite also registers an account."
)
@click.option(
    "--expires-in",
    type=DurationType(never=True),
    metavar="DURATION",
    help="How long it is valid, such as 30d, or never for no end.",
)
@click.option("--max-uses", type=UsesType(), default="1", metavar="N", help="How often it can be used, or unlimited.")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="A group for the new account; repeatable.")
@click.option("--role", "roles", multiple=True, metavar="NAME", help="A role for the new account; repeatable.")
@click.option("--note", metavar="TEXT", help="A note for admins.")
@click.option("--count", type=int, default=1, metavar="N", help="How many alike, up to 1000.")
@click.option("--qr", is_flag=True, help="Draw the link as a QR code too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: one object, or a list with --count.")
@session_options
@click.pass_context
def create(
    ctx: click.Context, /, host: str, expires_in: timedelta | None, count: int, qr: bool, as_json: bool, **fields: Any
) -> None:
    """Make an invite for HOST and print its link."""
    session: Session = ctx.obj
    settings = session.load_settings()
    on_event = session.find_event_hook(settings)
    with session.opened_stores(settings) as (key_store, invite_store):
        invites = Invites(invite_store, keys=key_store, hosts=settings.hosts, on_event=on_event)
        made = invites.create_many_for(host, count, source=SOURCE, expires_in=expires_in, **fields)
    if as_json:
        shown = [invite_to_json(one, one.created_at) for one in made]
        counted = ctx.get_parameter_source("count") is click.core.ParameterSource.COMMANDLINE
        print_json(shown if counted else shown[0])
        return
    for one in made:
        click.echo(one.landing_page)
        if qr:
            import segno

            segno.make(one.landing_page, micro=False).terminal(out=sys.stdout, compact=True)


@invite.command("list", cls=Command)
@click.argument("host")
@click.option("--state", metavar="STATE", help="Only pending, used, revoked or expired ones.")
@click.option("--source", metavar="SOURCE", help="Only those of this source, such as command or api/token/ID.")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=LIST_LIMIT, show_default=True, metavar="N")
@click.option("--cursor", metavar="CURSOR", help="Go on where a list ended.")
@click.option("--json", "as_json", is_flag=True, help='Print JSON: {"invites": [...], "next": CURSOR}.')
@session_options
@click.pass_obj
def list_invites(
    session: Session,
    host: str,
    state: Any,
    source: str | None,
    limit: int,
    cursor: str | None,
    as_json: bool,
) -> None:
    """List invites of HOST, newest first: a table on a terminal, else tab-separated lines.

    The columns: token, kind, what it is for, state, since when, uses, source.
    """
    settings = session.load_settings()
    found: list[Invite] = []
    with session.opened_stores(settings) as (key_store, invite_store):
        invites = Invites(invite_store, keys=key_store, hosts=settings.hosts)
        while True:
            part = min(1000, limit - len(found))
            page = invites.list(host, state=state, source=source, limit=part, cursor=cursor)
            found, cursor = [*found, *page.invites], page.next
            if cursor is None or len(found) >= limit:
                break
    now = system_clock().replace(microsecond=0)
    shown = [invite_to_json(one, now) for one in found]
    if as_json:
        print_json({"invites": shown, "next": cursor})
        return
    rows = [
        [
            one.token,
            one.kind,
            one.jid,
            one.state_at(now),
            one.state_since(now).strftime("%Y-%m-%d %H:%M"),
            f"{one.uses}/{'∞' if one.max_uses is None else one.max_uses}",
            one.source,
        ]
        for one in found
    ]
    _print_rows(rows)
    if cursor is not None:
        tell(f"There are more: --cursor {cursor}")


@invite.command("show", cls=Command)
@_token
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@session_options
@click.pass_obj
def show(session: Session, token: str, as_json: bool) -> None:
    """Show the invite TOKEN: its state, since when and by whom, its link, and every use of it."""
    settings = session.load_settings()
    with session.opened_stores(settings) as (key_store, invite_store):
        invites = Invites(invite_store, keys=key_store, hosts=settings.hosts)
        found = invites.get(token)
        redemptions = invites.list_redemptions(token)
    shown = invite_details_to_json(found, redemptions, system_clock().replace(microsecond=0))
    if as_json:
        print_json(shown)
        return
    uses = shown.pop("redemptions")
    print_fields(shown)
    for use in uses:
        released = f", released {use['released_at']}" if use["released_at"] else ""
        who = escape_controls(use["redeemer"] or "-")
        click.echo(f"use {use['redemption_id']}: {who}, {use['redeemed_at'] or 'never redeemed'}{released}")


@invite.command("revoke", cls=Command)
@_token
@session_options
@click.pass_obj
def revoke(session: Session, token: str) -> None:
    """Take the pending invite TOKEN back. Prints nothing on success."""
    settings = session.load_settings()
    on_event = session.find_event_hook(settings)
    with session.opened_stores(settings) as (key_store, invite_store):
        Invites(invite_store, keys=key_store, hosts=settings.hosts, on_event=on_event).revoke(token, by=SOURCE)


@invite.command("redeem", cls=Command)
@_token
@click.option("--redeemer", metavar="NAME", help="Who redeems it, such as a user name.")
@click.option("--redemption", metavar="ID", help="The redemption's identity; repeating it takes no second use.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@session_options
@click.pass_obj
def redeem(session: Session, token: str, redeemer: str | None, redemption: str | None, as_json: bool) -> None:
    """Use the invite TOKEN once and print the redemption's id."""
    settings = session.load_settings()
    on_event = session.find_event_hook(settings)
    with session.opened_stores(settings) as (key_store, invite_store):
        invites = Invites(invite_store, keys=key_store, hosts=settings.hosts, on_event=on_event)
        redeemed = invites.redeem(token, redeemer=redeemer, redemption_id=redemption)
    if as_json:
        shown = invite_to_json(redeemed.invite, system_clock().replace(microsecond=0))
        print_json({"redemption_id": redeemed.redemption_id, "invite": shown})
    else:
        click.echo(redeemed.redemption_id)


@invite.command("release", cls=Command)
@_token
@click.option("--redemption", metavar="ID", required=True, help="The redemption's identity.")
@session_options
@click.pass_obj
def release(session: Session, token: str, redemption: str) -> None:
    """Give a use of the invite TOKEN back; final, and twice is once. Prints nothing on success."""
    settings = session.load_settings()
    on_event = session.find_event_hook(settings)
    with session.opened_stores(settings) as (key_store, invite_store):
        Invites(invite_store, keys=key_store, hosts=settings.hosts, on_event=on_event).release(
            token, redemption_id=redemption
        )


def _print_rows(rows: list[list[str]]) -> None:
    """Print a table with aligned columns and a heading on a terminal, and tab-separated lines elsewhere."""
    escaped = [[escape_controls(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in escaped:
            click.echo("\t".join(row))
        return
    table = [["TOKEN", "KIND", "FOR", "STATE", "SINCE (UTC)", "USES", "SOURCE"], *escaped]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
