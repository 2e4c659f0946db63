"""The subcommand that serves a store of invites to processes of other users."""

from __future__ import annotations

import contextlib
import functools
import grp
import logging
import signal
from collections.abc import Callable
from pathlib import Path

import click

from invites_core import InvalidHost, InvalidRequest, InviteStore, open_invite_store
from invites_core.clock import system_clock
from invites_core.hosts import Hosts, normalize_host
from invites_core.invites import KINDS
from invites_core.stores.agent_guard import GuardedInvites
from invites_core.stores.agent_server import AgentServer
from invites_core.stores.agent_socket import listening
from invites_wsgi.cli.base import Command, Session, session_options
from invites_wsgi.cli.values import ChoicesType
from invites_wsgi.config import has_password
from invites_wsgi.logs import configure_logging

__all__ = ["agent"]

_log = logging.getLogger("invites_wsgi.agent")


class GroupType(click.ParamType[int]):
    """The name of a group of this system, as its number."""

    name = "group"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Look it up."""
        if isinstance(value, int):
            return value
        try:
            return grp.getgrnam(str(value)).gr_gid
        except (KeyError, ValueError):
            self.fail("there is no such group", param, ctx)


@click.command(cls=Command)
@click.option("--store", metavar="URL", required=True, help="The store of the invites to serve.")
@click.option("--listen", metavar="SOCKET", required=True, help="The path of the Unix socket to listen on.")
@click.option(
    "--group",
    type=GroupType(),
    metavar="NAME",
    help="The group that may connect; without it the group of the socket's folder.",
)
@click.option(
    "--kind",
    "kinds",
    type=ChoicesType(sorted(KINDS)),
    metavar="WORDS",
    default="register,roster",
    help="The kinds of invites that may be made; register,roster without it. A reset can take an account over.",
)
@click.option(
    "--role",
    "roles",
    multiple=True,
    metavar="NAME",
    help="A role that new accounts may get; may be repeated. Without it none: a role can make an administrator.",
)
@session_options
@click.pass_obj
def agent(
    session: Session, store: str, listen: str, group: int | None, kinds: frozenset[str], roles: tuple[str, ...]
) -> None:
    """Serve the invites of a store on a Unix socket, to its group alone, until told to stop."""
    settings = session.load_settings()
    if has_password(store):
        raise click.UsageError("--store: a URL with a password cannot be an argument, which every user can list")
    path = Path(listen).absolute()
    with contextlib.closing(_open(store)) as invites:
        guarded = GuardedInvites(
            invites,
            serves=_make_host_check(settings.hosts),
            clock=system_clock,
            kinds=frozenset(kinds),
            roles=frozenset(roles),
        )
        with (
            contextlib.closing(AgentServer(guarded, log=_log)) as server,
            # Before the socket is there: whoever sees it can tell the agent to stop.
            server.stopping_at(signal.SIGTERM, signal.SIGINT),
            listening(path, group=group) as listener,
        ):
            configure_logging(settings.log_format, settings.log_level)
            _log.info("serving the invites of %s on %s", invites.location, path)
            server.serve(listener)
    _log.info("stopped")


def _open(url: str) -> InviteStore:
    try:
        return open_invite_store(url, create=False)
    except InvalidRequest as error:
        # The library calls the field by another name.
        raise InvalidRequest("--store", str(error).removeprefix(f"{error.field}: ")) from error


def _make_host_check(hosts: Hosts) -> Callable[[str], bool]:
    """Return what tells whether the settings serve a host, in its one spelling."""

    @functools.lru_cache(maxsize=1024)
    def serves(host: str) -> bool:
        try:
            return hosts.serves(host) and normalize_host(host) == host
        except InvalidHost:
            return False

    return serves
