"""Databases for proofs: made once, copied for every run, looked at as a whole, used by processes that are killed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import apsw

from invites_core.errors import InvitesError, OutcomeUnknown, StorageError
from invites_core.stores.sqlite import SqliteStore

__all__ = [
    "Contents",
    "Count",
    "Told",
    "copy_database",
    "do_nothing",
    "look",
    "make_template",
    "run_and_kill",
    "tell",
]

PATIENCE: Final = 30.0
"""Seconds after which a process that says nothing is stuck."""

TABLES: Final = ("keys", "deleted_keys", "quotas", "creations", "invites", "redemptions")

Contents = dict[str, list[tuple[Any, ...]]]
"""All rows of a database, by table."""

_MISCOUNTED: Final = (
    "SELECT count(*) FROM invites WHERE uses > max_uses OR uses <> (SELECT count(*) FROM redemptions"
    " WHERE redemptions.token = invites.token AND redeemed_at IS NOT NULL AND released_at IS NULL)"
)


@dataclass(frozen=True, slots=True)
class Told:
    """What a call told its caller.

    Attributes:
        outcome: ``success``; ``error``: nothing was changed; ``unknown``.
        value: What it returned, or the error's name and message.
    """

    outcome: str
    value: object


@dataclass(slots=True)
class Count:
    """What the faults of a kind have done to an operation.

    Attributes:
        operation: Which.
        kind: Of which kind they were.
        mode: How they went on.
        injected: How many there were, each in a run of its own.
        success: How many runs told success.
        error: How many told that nothing was changed.
        unknown: How many told OutcomeUnknown.
        lost: Acknowledged, and not there.
        kept: Refused, and there.
        doubled: Not the same after a repeat as if it had happened once.
        damaged: Neither as before nor as after, wrong by SQLite's check or ours, or a wrong answer.
        stuck: A call that did not work after the disk was mended, never ended, or raised what is not ours.
        examples: A line for each of these.
    """

    operation: str
    kind: str
    mode: str
    injected: int = 0
    success: int = 0
    error: int = 0
    unknown: int = 0
    lost: int = 0
    kept: int = 0
    doubled: int = 0
    damaged: int = 0
    stuck: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing was lost, kept, doubled, damaged or stuck."""
        return not self.examples

    def add(self, what: str, example: str) -> None:
        """Count a failure of the store."""
        setattr(self, what, getattr(self, what) + 1)
        self.examples.append(f"{self.operation}, {self.kind}, {self.mode}: {what}: {example}")


def do_nothing() -> None:
    """Leave the store as it is."""


def tell(call: Callable[[], object]) -> Told:
    """Make a call, and return what it told. What no caller could expect comes out as it is."""
    try:
        return Told("success", call())
    except OutcomeUnknown as error:
        return Told("unknown", f"OutcomeUnknown: {error}")
    except StorageError as error:
        return Told("error", f"{type(error).__name__}: {error}")
    except InvitesError as error:
        # Such as KeyExists: the store has answered.
        return Told("success", type(error).__name__)


def run_and_kill(function: Callable[[Callable[[object], None]], None]) -> list[Any]:
    """Run a function in a forked child that is killed as soon as it comes to its end, and return what it sent.

    Args:
        function: Called with what sends something to this process. What it raises is sent too, as an `Exception`.

    Raises:
        TimeoutError: It never came to an end.
    """
    reader, writer = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        # Python 3.12 and later warn that threads and fork do not mix; there is but one thread here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            function(writer.send)
        except BaseException:
            writer.send(RuntimeError(traceback.format_exc()))
        finally:
            # Nothing is closed, and nothing that Python would do at its end is done.
            os.kill(os.getpid(), signal.SIGKILL)
    writer.close()
    sent = []
    try:
        while reader.poll(PATIENCE):
            sent.append(reader.recv())
        raise TimeoutError("a process came to no end")
    except EOFError:
        return sent or [RuntimeError("a process died before its time")]
    finally:
        reader.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def copy_database(source: Path, path: Path) -> Path:
    """Copy a database that nobody has open, with its log, to a folder that is made anew."""
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    for name in _list_files(source):
        shutil.copyfile(name, path.with_name(path.name + name.name.removeprefix(source.name)))
    return path


def _list_files(path: Path) -> Iterator[Path]:
    yield from (name for name in (path, Path(f"{path}-wal")) if name.exists())


def look(path: Path) -> tuple[Contents | None, list[str]]:
    """Return all that is in a database that nobody has open, None where there is none, and what is wrong with it."""
    if not path.exists():
        return None, []
    connection = apsw.Connection(str(path))
    try:
        damage = [str(row[0]) for row in connection.execute("PRAGMA integrity_check").fetchall() if row[0] != "ok"]
        contents = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES}
        [(miscounted,)] = connection.execute(_MISCOUNTED).fetchall()
        if miscounted:
            damage.append(f"{miscounted} invites with other uses than redemptions, or with too many")
    except apsw.Error as error:
        return {}, [f"{type(error).__name__}: {error}"]
    else:
        return contents, damage
    finally:
        connection.close(True)


def make_template(path: Path, prepare: Callable[[SqliteStore], object], *, is_closed: bool) -> None:
    """Make a database, and close it or kill its process."""

    def make(send: Callable[[object], None]) -> None:
        store = SqliteStore(path)
        prepare(store)
        if is_closed:
            store.close()
        send("made")

    path.parent.mkdir(exist_ok=True)
    if (sent := run_and_kill(make)) != ["made"]:
        raise RuntimeError(sent)
