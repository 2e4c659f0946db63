"""What the tests of the command share: running it, in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import apsw

from tests.helpers import PATIENCE
from tests.wsgi.support import CLEAN_ENVIRONMENT, COMMAND, restored_hooks

LANDING_NOTE = (
    "Invites of {host} will point to https://{ascii}/invite?TOKEN; this address must show the page for the invite, as"
    " /invite of this service does.\n"
)


@dataclass(frozen=True)
class Run:
    """What a run of the command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    def assert_failed(self, code: int, message: str) -> None:
        """Check that it printed nothing but one line on standard error, and its exit code."""
        assert (self.code, self.out, self.err) == (code, "", f"Error: {message}\n")


class Invoke(Protocol):
    """The fixture ``invoke``: runs the command in this process, on the test's database unless told otherwise."""

    def __call__(self, *arguments: str, database: Path | str | None = "the test's") -> Run: ...


def run_command(
    *arguments: str | bytes, env: Mapping[str, str | None] | None = None, shell: str = 'exec "$@"', **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own, in an environment without settings, and return what it left in bytes.

    ``shell`` is the line that starts it, for what a shell can do to a process.
    """
    changes = {**CLEAN_ENVIRONMENT, **(env or {})}
    environment = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(["sh", "-c", shell, "sh", *COMMAND, *arguments], env=environment, timeout=PATIENCE, **options)


def url_of(database: Path) -> str:
    """Return the URL of a SQLite database."""
    return f"sqlite:///{database}"


def change_database(database: Path, *statements: str) -> None:
    """Do to a database what no part of this project would do."""
    connection = apsw.Connection(str(database))
    try:
        for statement in statements:
            connection.execute(statement).fetchall()
    finally:
        connection.close()


def run_main(arguments: Sequence[str]) -> int:
    """Call the command's entry point, and return the code that it exits with."""
    from invites_wsgi.cli import main

    before = sys.argv
    sys.argv = ["invites-api", *arguments]
    try:
        with restored_hooks():
            main()
    except SystemExit as exit_:
        assert isinstance(exit_.code, int)
        return exit_.code
    finally:
        sys.argv = before
