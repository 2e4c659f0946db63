"""The subcommands on keys. They take their arguments and print as ``prosodyctl mod_invites_api`` does."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click

from invites_core import ApiKey, ApiKeys, KeyPolicy, KeyUnknown
from invites_core.durations import format_duration, parse_duration
from invites_core.keys import NEVER
from invites_wsgi.api import format_time
from invites_wsgi.cli.base import Command, Session, escape_controls, print_json, session_options, tell
from invites_wsgi.cli.links import describe_link

__all__ = ["create", "delete", "find", "key_to_json", "list_keys"]


class DurationType(click.ParamType[timedelta]):
    """A duration such as ``90d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it; its errors name the option."""
        if isinstance(value, timedelta):
            return value
        return parse_duration(value, field=param.opts[0] if param else "duration")


def policy_to_json(policy: KeyPolicy) -> dict[str, Any]:
    """Return a policy as JSON, as the HTTP API and the command show it."""
    expiry = policy.max_expiry
    return {
        "scopes": sorted(policy.scopes),
        "kinds": sorted(policy.kinds),
        "groups": sorted(policy.groups),
        "roles": sorted(policy.roles),
        "allow_username": policy.allow_username,
        "max_expiry": None if expiry is None else "never" if expiry == NEVER else format_duration(expiry),
        "max_uses": policy.max_uses,
        "quota": None if policy.quota is None else str(policy.quota),
        "all_invites": policy.all_invites,
        "header_only": policy.header_only,
    }


def key_to_json(key: ApiKey) -> dict[str, Any]:
    """Return a key as JSON; nothing of its secret is in it."""
    return {
        "id": key.id,
        "host": key.host,
        "name": key.name,
        "created_at": format_time(key.created_at),
        "expires_at": None if key.expires_at is None else format_time(key.expires_at),
        "last_used_at": None if key.last_used_at is None else format_time(key.last_used_at),
        "policy": policy_to_json(key.policy),
    }


@click.command(cls=Command)
@click.argument("host")
@click.argument("name", required=False)
@click.option("--expires-in", type=DurationType(), metavar="DURATION", help="How long the key is valid, such as 90d.")
@click.option("--json", "as_json", is_flag=True, help="Print the key as JSON.")
@session_options
@click.pass_obj
def create(session: Session, host: str, name: str | None, expires_in: timedelta | None, as_json: bool) -> None:
    """Make a key for HOST and print it as ID/SECRET. The secret is shown only here.

    A key without policy options can do what a key of Prosody's mod_invites_api can: make single-use invites to
    register, with the host's lifetime.
    """
    settings = session.load_settings()
    # Asked before the database is made: a wrong host leaves nothing behind.
    settings.hosts.normalize_served(host)
    store = session.open_store(settings, create=True)
    try:
        issued = ApiKeys(store, hosts=settings.hosts).create(host, name=name, expires_in=expires_in)
    finally:
        store.close()
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
    store = session.open_store(settings)
    try:
        keys = ApiKeys(store, hosts=settings.hosts).list(host)
    finally:
        store.close()
    if as_json:
        print_json([key_to_json(key) for key in keys])
        return
    for key in keys:
        click.echo(f"{key.id}\t{'<unknown>' if key.name is None else escape_controls(key.name)}")


@click.command(cls=Command)
@click.argument("host")
@click.argument("key_id", metavar="ID")
@session_options
@click.pass_obj
def delete(session: Session, host: str, key_id: str) -> None:
    """Delete the key ID of HOST: it is refused from this moment on. Prints nothing on success."""
    settings = session.load_settings()
    store = session.open_store(settings)
    try:
        ApiKeys(store, hosts=settings.hosts).delete(host, key_id)
    finally:
        store.close()


@click.command(cls=Command)
@click.argument("key_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the key as JSON.")
@session_options
@click.pass_obj
def find(session: Session, key_id: str, as_json: bool) -> None:
    """Show the key ID, whichever host it is for."""
    settings = session.load_settings()
    store = session.open_store(settings)
    try:
        key = ApiKeys(store, hosts=settings.hosts).find(key_id)
    finally:
        store.close()
    if key is None:
        raise KeyUnknown
    shown = key_to_json(key)
    if as_json:
        print_json(shown)
        return
    policy = shown.pop("policy")
    for name, value in {**shown, **policy}.items():
        text = ", ".join(value) if isinstance(value, list) else value
        click.echo(f"{name}: {escape_controls(_say(text))}")


def _say(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in (None, "") else str(value)
