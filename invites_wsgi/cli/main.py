"""The group of all subcommands, and what becomes of errors."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from invites_core import InvitesError, __version__
from invites_wsgi.cli.agent import agent
from invites_wsgi.cli.backup import backup
from invites_wsgi.cli.base import escape_controls, session_options
from invites_wsgi.cli.check import check
from invites_wsgi.cli.copy import copy
from invites_wsgi.cli.import_keys import import_keys_command
from invites_wsgi.cli.invites import invite
from invites_wsgi.cli.keys import create, delete, find, list_keys, rotate, update
from invites_wsgi.cli.purge import purge
from invites_wsgi.cli.serve import serve
from invites_wsgi.config import SettingsError
from invites_wsgi.errors import get_error_kind
from invites_wsgi.logs import scrub_uncaught_errors

__all__ = ["main"]

# Secrets have 22 characters or more, tokens 16, and keys at most 255. Paths mostly begin with a slash, or have a dot in
# their last part.
_CREDENTIAL: Final = re.compile(r"(?:[A-Za-z0-9_-]+/)*[A-Za-z0-9_-]{16,255}", re.ASCII)
_PIECE: Final = re.compile(r"[A-Za-z0-9_-]{8,}", re.ASCII)


@click.group(context_settings={"help_option_names": ["--help"]})
@session_options
@click.version_option(__version__, prog_name="invites-api")
def command() -> None:
    """Make and keep API keys for invites, and serve the API that makes invites with them."""


for _subcommand in (
    create,
    list_keys,
    delete,
    update,
    rotate,
    find,
    import_keys_command,
    invite,
    copy,
    backup,
    purge,
    check,
    serve,
    agent,
):
    command.add_command(_subcommand)


def main() -> NoReturn:
    """Run the command. Whatever goes wrong is one line on standard error, and the exit code tells what kind it was."""
    scrub_uncaught_errors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character gets its escape, not an error halfway through a list.
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:
        # What create makes and cannot print would be lost.
        _fail("standard output is closed", 1)
    try:
        code = command.main(standalone_mode=False) or 0
    except click.exceptions.Abort:
        _fail("stopped", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except SettingsError as error:
        _fail(str(error), 2)
    except InvitesError as error:
        _fail(str(error), get_error_kind(error)[1].exit_code)
    except OSError as error:
        _give_up_output()
        _fail(f"{error.filename or 'the system'}: {(error.strerror or type(error).__name__).lower()}", 1)
    sys.exit(code)


def _give_up_output() -> None:
    """Drop what standard output did not take: Python would try once more at its end and exit with a code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"Error: {escape_controls(_hide_credentials(message, sys.argv[1:]))}", err=True)
    sys.exit(code)


def _hide_credentials(message: str, arguments: Sequence[str]) -> str:
    """Cut out of a message what it repeats of an argument that looks like a key, a secret or a token.

    Somebody put it where a file or a duration belongs; what is on the screen, or in the log of a script, stays there.
    """
    given = [argument.rpartition("=")[2] for argument in arguments]
    credentials = [value.lower() for value in given if _CREDENTIAL.fullmatch(value)]

    def hide(found: re.Match[str]) -> str:
        return "[…]" if any(found[0].lower() in value for value in credentials) else found[0]

    # In pieces, and in any case: messages may shorten what they repeat, have it in a path, or as the name of a host.
    return _PIECE.sub(hide, message)
