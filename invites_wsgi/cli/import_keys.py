"""The subcommand that brings the keys of Prosody's mod_invites_api over."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from invites_core.errors import InvalidRequest
from invites_core.foreign_keys import KeySource
from invites_core.service.importing import KeyImport, import_keys
from invites_core.stores import parse_socket_path
from invites_wsgi.cli.base import Command, Session, escape_controls, session_options, tell

__all__ = ["import_keys_command"]


@click.command("import-keys", cls=Command)
@click.argument("host")
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    required=True,
    help="Prosody's admin socket, prosody:///…/prosody.sock, or a file invite_api_keys.dat of its default storage.",
)
@click.option("--remove", is_flag=True, help="Take each key out of the running Prosody, after its copy was verified.")
@session_options
@click.pass_context
def import_keys_command(ctx: click.Context, /, host: str, source: str, remove: bool) -> None:
    """Bring the keys of HOST over from Prosody's mod_invites_api, with their ids and secrets.

    They go on working as they are. Run again, it changes nothing and brings no key back that was deleted here.
    """
    session: Session = ctx.obj
    socket_path = _parse_source(source)
    if remove and socket_path is None:
        raise click.UsageError(
            "--remove takes keys out of a running Prosody: it needs --from prosody:///…/prosody.sock"
        )
    settings = session.load_settings()
    settings.hosts.normalize_served(host)
    on_event = session.find_event_hook(settings)
    with (
        _opened_source(source, socket_path) as keys,
        session.opened_stores(settings) as (key_store, _),
        _shown_progress() as progress,
    ):
        report = import_keys(
            key_store,
            keys,
            host,
            remove=remove,
            hosts=settings.hosts,
            on_event=on_event,
            after_step=progress.show,
        )
    _print_report(report, remove=remove)
    ctx.exit(1 if report.refused else 0)


def _parse_source(source: str) -> Path | None:
    """Return the path of the socket in a URL, or None for a file.

    Raises:
        click.UsageError: It is neither.
    """
    try:
        socket_path = parse_socket_path(source) if source.startswith("prosody:") else None
    except InvalidRequest as error:
        raise click.UsageError("--from must be prosody:///absolute.sock, prosody:relative.sock or a file") from error
    if socket_path is None and (not source or "\0" in source or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", source)):
        # Nothing of it is repeated: what looks like a URL may hold a password.
        raise click.UsageError("--from must be prosody:///…/prosody.sock, or a file of Prosody's default storage")
    return socket_path


@contextlib.contextmanager
def _opened_source(source: str, socket_path: Path | None) -> Iterator[KeySource]:
    from invites_core.stores.prosody_keys import ProsodyKeyFile, ProsodyKeys

    if socket_path is None:
        yield ProsodyKeyFile(Path(source))
        return
    with contextlib.closing(ProsodyKeys(socket_path)) as keys:
        yield keys


class _Progress:
    """Shows on a terminal how far the work is; a second of it is some forty keys."""

    def __init__(self) -> None:
        self._shows = sys.stderr.isatty()
        self._has_shown = False

    def show(self, step: str, done: int, total: int) -> None:
        if self._shows:
            self._has_shown = True
            text = "looked at" if step == "brought" else "removed from Prosody"
            click.echo(f"\r{done} of {total} keys {text}\x1b[K", nl=False, err=True)

    def end(self) -> None:
        if self._has_shown:
            click.echo("", err=True)


@contextlib.contextmanager
def _shown_progress() -> Iterator[_Progress]:
    progress = _Progress()
    try:
        yield progress
    finally:
        progress.end()


def _print_report(report: KeyImport, *, remove: bool) -> None:
    for key_id in report.deleted:
        tell(f"{escape_controls(key_id)}: was deleted here, and stays so{'; Prosody has it still' if remove else ''}")
    for refused in report.refused:
        # An id that is none may be a whole key: what follows a slash is not shown.
        shown = escape_controls(refused.id.partition("/")[0][:40])
        tell(f"{shown}: refused: {refused.reason}")
    click.echo(f"imported: {len(report.imported)}")
    click.echo(f"here already: {len(report.present)}")
    click.echo(f"deleted here: {len(report.deleted)}")
    click.echo(f"refused: {len(report.refused)}")
    if remove:
        click.echo(f"removed from Prosody: {len(report.removed)}")
