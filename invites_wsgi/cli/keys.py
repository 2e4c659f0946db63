"""The subcommands on keys. They take their arguments and print as ``prosodyctl mod_invites_api`` does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click

from invites_core import ApiKeys, Invites, KeyUnknown, delete_key_with_invites
from invites_core.keys import DEFAULT_POLICY
from invites_core.service.creation import check_policy_fields
from invites_wsgi.cli.base import Command, Session, escape_controls, print_fields, print_json, session_options, tell
from invites_wsgi.cli.links import describe_link
from invites_wsgi.cli.policy import apply_policy_options, policy_options
from invites_wsgi.cli.values import DurationType, KeyIdType
from invites_wsgi.representation import format_time, key_to_json

__all__ = ["create", "delete", "find", "list_keys", "rotate", "update"]


@click.command(cls=Command)
@click.argument("host")
@click.argument("name", required=False)
@click.option("--expires-in", type=DurationType(), metavar="DURATION", help="How long the key is valid, such as 90d.")
@policy_options
@click.option("--json", "as_json", is_flag=True, help="Print the key as JSON.")
@session_options
@click.pass_context
def create(
    ctx: click.Context, /, host: str, name: str | None, expires_in: timedelta | None, as_json: bool, **options: Any
) -> None:
    """Make a key for HOST and print it as ID/SECRET. The secret is shown only here.

    A key without policy options can do what a key of Prosody's mod_invites_api can: make single-use invites to
    register, with the host's lifetime.
    """
    session: Session = ctx.obj
    settings = session.load_settings()
    # Asked before the database is made: what is wrong leaves nothing behind.
    settings.hosts.normalize_served(host)
    policy = apply_policy_options(DEFAULT_POLICY, ctx, options)
    check_policy_fields(policy)
    on_event = session.find_event_hook(settings)
    with session.opened_stores(settings, create=True) as (key_store, _):
        keys = ApiKeys(key_store, hosts=settings.hosts, on_event=on_event)
        issued = keys.create(host, name=name, policy=policy, expires_in=expires_in)
    tell(describe_link(settings, issued.key.host))
    if as_json:
        print_json({**key_to_json(issued.key), "key": issued.combined})
    else:
        click.echo(issued.combined)


@click.command("list", cls=Command)
@click.argument("host", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the keys as JSON.")
@session_options
@click.pass_obj
def list_keys(session: Session, host: str | None, as_json: bool) -> None:
    """List the keys of HOST, or all: ID, a tab and the name, a line each."""
    settings = session.load_settings()
    with session.opened_stores(settings) as (key_store, _):
        keys = ApiKeys(key_store, hosts=settings.hosts).list(host)
    if as_json:
        print_json([key_to_json(key) for key in keys])
        return
    for key in keys:
        click.echo(f"{key.id}\t{'<unknown>' if key.name is None else escape_controls(key.name)}")


@click.command(cls=Command)
@click.argument("host")
@click.argument("key_id", metavar="ID", type=KeyIdType())
@click.option("--with-invites", is_flag=True, help="Take back all its pending invites too, and print how many.")
@session_options
@click.pass_obj
def delete(session: Session, host: str, key_id: str, with_invites: bool) -> None:
    """Delete the key ID of HOST: it is refused from this moment on. Prints nothing on success.

    With --with-invites it can be run again, also when the key is gone, to finish a run that was cut short.
    """
    settings = session.load_settings()
    on_event = session.find_event_hook(settings)
    with session.opened_stores(settings) as (key_store, invite_store):
        keys = ApiKeys(key_store, hosts=settings.hosts, on_event=on_event)
        if not with_invites:
            keys.delete(host, key_id)
            return
        invites = Invites(invite_store, keys=key_store, hosts=settings.hosts, on_event=on_event)
        if not invites.share_store_with_keys:
            tell("Deleting the key, then its invites twice: requests under way end within half a minute.")
        click.echo(delete_key_with_invites(keys, invites, host, key_id, by="command"))


@click.command(cls=Command)
@click.argument("host")
@click.argument("key_id", metavar="ID", type=KeyIdType())
@click.option("--name", metavar="NAME", help="Another name; empty for none.")
@click.option(
    "--expires-in",
    type=DurationType(never=True),
    metavar="DURATION",
    help="How long it is valid from now on, such as 90d, or never for no end.",
)
@policy_options
@session_options
@click.pass_context
def update(
    ctx: click.Context, /, host: str, key_id: str, name: str | None, expires_in: timedelta | None, **options: Any
) -> None:
    """Change what is said, and nothing else, of the key ID of HOST. Prints nothing on success.

    --group and --role replace what it had; --group "" takes all away.
    """
    session: Session = ctx.obj
    said = [name for name in ctx.params if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE]
    if set(said) <= {"host", "key_id"}:
        raise click.UsageError("there is nothing to change; see update --help")
    settings = session.load_settings()
    on_event = session.find_event_hook(settings)
    with session.opened_stores(settings) as (key_store, _):
        keys = ApiKeys(key_store, hosts=settings.hosts, on_event=on_event)
        # Applied to the policy that is there at the change, so that what another admin changes beside it is kept.
        keys.update(
            host,
            key_id,
            name=name,
            policy=lambda policy: apply_policy_options(policy, ctx, options),
            expires_in=expires_in,
        )


@click.command(cls=Command)
@click.argument("host")
@click.argument("key_id", metavar="ID", type=KeyIdType())
@click.option(
    "--grace",
    type=DurationType(),
    default="24h",
    show_default=True,
    metavar="DURATION",
    help="How long the old secret is still taken.",
)
@click.option("--no-grace", is_flag=True, help="Refuse the old secret at once.")
@session_options
@click.pass_context
def rotate(ctx: click.Context, /, host: str, key_id: str, grace: timedelta, no_grace: bool) -> None:
    """Give the key ID of HOST another secret and print ID/SECRET. The secret is shown only here."""
    session: Session = ctx.obj
    if no_grace and ctx.get_parameter_source("grace") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--grace and --no-grace say the opposite")
    settings = session.load_settings()
    on_event = session.find_event_hook(settings)
    with session.opened_stores(settings) as (key_store, _):
        issued = ApiKeys(key_store, hosts=settings.hosts, on_event=on_event).rotate(
            host, key_id, grace=timedelta(0) if no_grace else grace
        )
    until = issued.key.previous
    holds = "is refused" if until is None else f"holds until {format_time(until.valid_until)}"
    tell(f"The old secret {holds}.")
    click.echo(issued.combined)


@click.command(cls=Command)
@click.argument("key_id", metavar="ID", type=KeyIdType())
@click.option("--json", "as_json", is_flag=True, help="Print the key as JSON.")
@session_options
@click.pass_obj
def find(session: Session, key_id: str, as_json: bool) -> None:
    """Show the key ID, whichever host it is for."""
    settings = session.load_settings()
    with session.opened_stores(settings) as (key_store, _):
        key = ApiKeys(key_store, hosts=settings.hosts).find(key_id)
    if key is None:
        raise KeyUnknown
    shown = key_to_json(key)
    if as_json:
        print_json(shown)
    else:
        policy = shown.pop("policy")
        print_fields({**shown, **policy})
