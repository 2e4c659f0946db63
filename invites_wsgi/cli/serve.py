"""The subcommand that serves the API."""

from __future__ import annotations

import importlib.util
import socket

import click

from invites_wsgi.cli.base import Command, Session, session_options, tell
from invites_wsgi.cli.links import describe_link
from invites_wsgi.config import Settings, SettingsError
from invites_wsgi.logs import configure_logging

__all__ = ["serve"]


@click.command(cls=Command)
@click.option("--listen", metavar="ADDRESS:PORT", help="Where to listen; the default is 127.0.0.1:5280.")
@click.option("--workers", type=int, metavar="N", help="Processes; the default is 2.")
@click.option("--threads", type=int, metavar="N", help="Threads of each process for invites in a Prosody.")
@session_options
@click.pass_obj
def serve(session: Session, listen: str | None, workers: int | None, threads: int | None) -> None:
    """Serve the API with gunicorn until told to stop."""
    overrides = {"listen": listen, "workers": workers, "threads": threads}
    settings = session.load_settings(**overrides)
    try:
        from invites_wsgi import app
        from invites_wsgi.server import Server
    except ModuleNotFoundError as error:
        if error.name not in ("gunicorn", "greenlet"):
            raise
        raise click.ClickException(f"serve needs {error.name}: pip install 'invites-api[server]'") from error
    location = _check_settings(session, settings)
    _check_address(settings.listen)
    if settings.metrics_listen is not None:
        if importlib.util.find_spec("prometheus_client") is None:
            raise click.ClickException(app.NO_METRICS)
        _check_address(settings.metrics_listen)
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
    if settings.metrics_listen is not None:
        tell(f"Metrics are at {settings.metrics_listen}.")

    def load_again() -> Settings:
        renewed = session.load_settings(**overrides)
        try:
            _check_settings(session, renewed)
        except click.ClickException as error:
            raise SettingsError(error.message) from error
        return renewed

    Server(settings, load_again).run()


def _check_settings(session: Session, settings: Settings) -> str:
    """Look whether workers can start with the settings, and return where the keys are.

    What is wrong is said here, once, and not by every worker; nothing is left open at the fork.
    """
    if "memory:" in (settings.database, settings.invites):
        raise click.UsageError("memory: cannot be served: every worker would have its own, and no command reaches it")
    # Here, since no other subcommand needs what the page is made of.
    from invites_wsgi.page.view import PageView

    PageView(settings.page, settings.hosts)
    with session.opened_stores(settings) as (key_store, invite_store):
        key_store.ping()
        invite_store.ping()
        return key_store.location


def _check_address(listen: str) -> None:
    """Say at once that an address cannot be had; gunicorn would try for five seconds first."""
    if listen.startswith("unix:"):
        return
    address, _, port = listen.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        reason = (error.strerror or "not possible").lower()
        raise click.ClickException(f"cannot listen on {listen}: {reason}") from error
