"""The subcommand that serves the API."""

from __future__ import annotations

import socket

import click

from invites_wsgi.cli.base import Command, Session, session_options, tell
from invites_wsgi.cli.links import describe_link
from invites_wsgi.config import Settings
from invites_wsgi.logs import configure_logging

__all__ = ["serve"]


@click.command(cls=Command)
@click.option("--listen", metavar="ADDRESS:PORT", help="Where to listen; the default is 127.0.0.1:5280.")
@click.option("--workers", type=int, metavar="N", help="Processes; the default is 2.")
@click.option("--threads", type=int, metavar="N", help="Threads of each process; the default is 8.")
@session_options
@click.pass_obj
def serve(session: Session, listen: str | None, workers: int | None, threads: int | None) -> None:
    """Serve the API with gunicorn until told to stop."""
    settings = session.load_settings(listen=listen, workers=workers, threads=threads)
    try:
        from invites_wsgi.server import Server
    except ModuleNotFoundError as error:
        if error.name != "gunicorn":
            raise
        raise click.ClickException("serve needs gunicorn: pip install 'invites-api[server]'") from error
    if "memory:" in (settings.database, settings.invites):
        raise click.UsageError("memory: cannot be served: every worker would have its own, and no command reaches it")
    # What is wrong with the database is said here, once, and not by every worker; nothing is left open at the fork.
    with session.opened_stores(settings) as (key_store, invite_store):
        location = key_store.location
        key_store.ping()
        invite_store.ping()
    _check_address(settings)
    configure_logging(settings.log_format, settings.log_level)
    socket_path = settings.listen.removeprefix("unix:")
    is_socket = socket_path != settings.listen
    place = f"{settings.path} on the socket {socket_path}" if is_socket else f"http://{settings.listen}{settings.path}"
    tell(f"Serving {place} with the database {location}")
    for host in settings.hosts.listed:
        tell(describe_link(settings, host))
    if not settings.hosts.listed:
        tell(
            f"Invites will point to https://HOST/invite?TOKEN of each key's host, where {settings.landing_path} of"
            " this service, or another page for invites, must answer."
        )
    Server(settings).run()


def _check_address(settings: Settings) -> None:
    """Say at once that an address cannot be had; gunicorn would try for five seconds first."""
    if settings.listen.startswith("unix:"):
        return
    address, _, port = settings.listen.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        reason = (error.strerror or "not possible").lower()
        raise click.ClickException(f"cannot listen on {settings.listen}: {reason}") from error
