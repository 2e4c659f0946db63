"""Runs of the SQLite store on a disk that fails: every kind of fault, at every call in which it can happen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import apsw

from invites_core.stores.sqlite import SqliteStore
from invites_core.testing import make_key
from tests.proofs.faulty_vfs import FaultyDisk
from tests.proofs.sqlite_operations import Operation
from tests.proofs.sqlite_worlds import (
    Contents,
    Count,
    Told,
    copy_database,
    do_nothing,
    look,
    make_template,
    run_and_kill,
    tell,
)

__all__ = ["KINDS", "MODES", "Kind", "Mode", "prove_faults"]

TIMEOUT: Final = 0.5
"""Seconds that a store waits for its turn. SQLite's own waiting takes no time on a faulty disk."""

LATER_KEYS: Final = ("meanwhile", "next")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: which function of SQLite's VFS fails, with which result code, for which files."""

    name: str
    call: str
    code: int
    ending: str = ""


KINDS: Final = (
    Kind("write", "xWrite", apsw.SQLITE_IOERR_WRITE),
    Kind("disk full", "xWrite", apsw.SQLITE_FULL),
    Kind("sync", "xSync", apsw.SQLITE_IOERR_FSYNC),
    Kind("read", "xRead", apsw.SQLITE_IOERR_READ),
    # Of the log alone: SQLite takes what it does not get of the database itself for zeros, as it must after the end of
    # a file, and no program can tell such a disk from a sound one.
    Kind("short read", "xRead", apsw.SQLITE_IOERR_SHORT_READ, "-wal"),
    Kind("truncate", "xTruncate", apsw.SQLITE_IOERR_TRUNCATE),
    Kind("size", "xFileSize", apsw.SQLITE_IOERR_FSTAT),
    Kind("locked", "xLock", apsw.SQLITE_BUSY),
    Kind("lock", "xLock", apsw.SQLITE_IOERR_LOCK),
    Kind("open", "xOpen", apsw.SQLITE_CANTOPEN),
    Kind("close", "xClose", apsw.SQLITE_IOERR_CLOSE),
    Kind("delete", "xDelete", apsw.SQLITE_IOERR_DELETE),
    Kind("access", "xAccess", apsw.SQLITE_IOERR_ACCESS),
    Kind("index", "xShmMap", apsw.SQLITE_IOERR_SHMMAP),
    Kind("index full", "xShmMap", apsw.SQLITE_IOERR_SHMSIZE),
    Kind("index locked", "xShmLock", apsw.SQLITE_BUSY),
    Kind("index lock", "xShmLock", apsw.SQLITE_IOERR_SHMLOCK),
)


@dataclass(frozen=True, slots=True)
class Mode:
    """How a fault goes on.

    Attributes:
        name: What it is called.
        lasting: Whether every call after the first that fails does so too.
        goes_on: Whether the process goes on after the disk was mended; else it is killed when the operation returns.
    """

    name: str
    lasting: bool
    goes_on: bool


MODES: Final = (
    Mode("once", lasting=False, goes_on=False),
    Mode("once, goes on", lasting=False, goes_on=True),
    Mode("lasting", lasting=True, goes_on=False),
    Mode("lasting, goes on", lasting=True, goes_on=True),
)


@dataclass(frozen=True, slots=True)
class Report:
    """What a process with a faulty disk tells.

    Attributes:
        told: What the operation told.
        calls: How many calls there were that could have failed.
        repeated: What its repeat told on the mended disk.
        following: What the next call told then.
    """

    told: Told
    calls: int
    repeated: Told | None = None
    following: Told | None = None


class World:
    """An operation with the databases before and after it."""

    def __init__(self, folder: Path, operation: Operation) -> None:
        self.operation = operation
        self.template = folder / "template" / "invites.db"
        self.path = folder / "run" / "invites.db"
        if operation.start != "making":
            make_template(self.template, operation.prepare, is_closed=operation.is_closed)
        copy_database(self.template, self.path)
        [report] = self.run(KINDS[0], MODES[0], number=0)
        if not isinstance(report, Report) or report.told.outcome != "success":
            raise RuntimeError(report)
        self.value = report.told.value
        self.after, damage = look(self.path)
        assert not damage, damage
        copy_database(self.template, self.path)
        with_warming = self._warm_only() if operation.start == "open" else None
        self.before, damage = with_warming or look(self.path)
        assert not damage, damage

    def _warm_only(self) -> tuple[Contents | None, list[str]]:
        run_and_kill(lambda send: send(bool(_open_warm(self.operation, self.path))))
        return look(self.path)

    def run(self, kind: Kind, mode: Mode, number: int, tamper: Callable[[], None] = do_nothing) -> list[Any]:
        """Run the operation on a fresh copy, whose disk fails at a call; 0: at none."""
        copy_database(self.template, self.path)

        def use(send: Callable[[object], None]) -> None:
            tamper()
            send(_use(self.operation, self.path, kind, mode, number))

        return run_and_kill(use)

    def reopen(self, *, repeat: bool) -> list[Any]:
        """Open the database in another process without faults, repeat the operation if need be, and go on."""

        def use(send: Callable[[object], None]) -> None:
            store = SqliteStore(self.path, create=self.operation.start == "making")
            send(tell(lambda: self.operation.repeat(store)) if repeat else None)
            send(tell(lambda: store.add_key(make_key(id="next"))))

        return run_and_kill(use)


def _open_warm(operation: Operation, path: Path) -> list[SqliteStore]:
    store = SqliteStore(path, create=False, timeout=TIMEOUT)
    operation.warm(store)
    return [store]


def _use(operation: Operation, path: Path, kind: Kind, mode: Mode, number: int) -> Report:
    """Run in a process of its own: do the operation on a faulty disk, and go on with it mended if that is asked for."""
    disk = FaultyDisk()
    disk.install()
    stores = _open_warm(operation, path) if operation.start == "open" else []

    def reach() -> SqliteStore:
        if not stores:
            stores.append(SqliteStore(path, create=operation.start == "making", timeout=TIMEOUT))
        return stores[0]

    disk.arm(kind.call, kind.code, ending=kind.ending, first=number or sys.maxsize, lasting=mode.lasting)
    report = Report(tell(lambda: operation.call(reach())), disk.calls)
    disk.mend()
    if mode.goes_on:
        if report.told.outcome == "unknown":
            report = replace(report, repeated=tell(lambda: operation.repeat(reach())))
        report = replace(report, following=tell(lambda: reach().add_key(make_key(id="meanwhile"))))
    return report


def _run_faults(
    world: World, kind: Kind, mode: Mode, *, numbers: Iterable[int], tamper: Callable[[], None] = do_nothing
) -> Count:
    """Let the calls of these numbers fail, each in a run of its own, until one is not reached any more."""
    count = Count(world.operation.name, kind.name, mode.name)
    for number in numbers:
        try:
            [report] = world.run(kind, mode, number, tamper)
        except TimeoutError as error:
            count.add("stuck", f"at call {number}: {error}")
            continue
        if isinstance(report, Exception):
            count.injected += 1
            count.add("stuck", f"at call {number}: {report}")
            continue
        if report.calls < number:
            break
        count.injected += 1
        setattr(count, report.told.outcome, getattr(count, report.told.outcome) + 1)
        _judge(world, report, count, f"at call {number}, told {report.told}")
    return count


def _judge(world: World, report: Report, count: Count, where: str) -> None:
    """Look at what a fault has left behind, resolve what is unknown, and go on."""
    told = report.repeated or report.told
    contents, damage = look(world.path)
    found = _without(contents, LATER_KEYS)
    if damage:
        count.add("damaged", f"{where}: {damage}")
    if report.told.outcome == "success" and report.told.value != world.value:
        count.add("damaged", f"{where}, where {world.value} is right")
    if found not in (world.before, world.after):
        count.add("doubled" if report.repeated else "damaged", f"{where}: neither as before nor as after")
    elif told.outcome == "success" and found != world.after:
        count.add("lost", where)
    # A database that was made whole and could not be opened then holds nothing that was refused.
    elif told.outcome == "error" and found != world.before and world.operation.start != "making":
        count.add("kept", where)
    if report.following is not None and (
        report.following != Told("success", None) or not _has_key(contents, LATER_KEYS[0])
    ):
        count.add("stuck", f"{where}, and then {report.repeated} and {report.following}")
    leftovers = {each.name for each in world.path.parent.iterdir()} - {"invites.db", "invites.db-lock"}
    if leftovers:
        count.add("damaged", f"{where}: left behind {leftovers}")
    _judge_reopened(world, count, where, repeat=told.outcome == "unknown", found=found)


def _judge_reopened(world: World, count: Count, where: str, *, repeat: bool, found: Contents | None) -> None:
    sent = world.reopen(repeat=repeat)
    contents, damage = look(world.path)
    if damage:
        count.add("damaged", f"{where}, opened again: {damage}")
    if len(sent) != 2 or sent[1] != Told("success", None) or not _has_key(contents, LATER_KEYS[1]):
        count.add("stuck", f"{where}, opened again: {sent}")
    elif repeat and sent[0].outcome != "success":
        count.add("stuck", f"{where}, opened again and repeated: {sent}")
    elif repeat and _without(contents, LATER_KEYS) != world.after:
        count.add("doubled", f"{where}, opened again and repeated: {sent}")
    elif not repeat and found is not None and _without(contents, LATER_KEYS) != found:
        count.add("damaged", f"{where}, opened again: not as before")


def _without(contents: Contents | None, ids: tuple[str, ...]) -> Contents | None:
    if contents is None:
        return None
    return {**contents, "keys": [row for row in contents.get("keys", []) if row[0] not in ids]}


def _has_key(contents: Contents | None, key_id: str) -> bool:
    return contents is not None and any(row[0] == key_id for row in contents.get("keys", []))


def prove_faults(
    folder: Path,
    operation: Operation,
    *,
    kinds: Iterable[Kind] = KINDS,
    modes: Sequence[Mode] = MODES,
    numbers: Iterable[int] = range(1, 10_000),
    tamper: Callable[[], None] = do_nothing,
) -> list[Count]:
    """Let an operation meet every kind of fault in every mode.

    Args:
        folder: Where the databases go; an empty one.
        operation: Which operation.
        kinds: Which kinds of faults.
        modes: How they go on.
        numbers: At which calls; those after the last that can be reached are not tried.
        tamper: Called in each process before its store is opened.

    Returns:
        What they have done, by kind and mode; nothing for those that the operation cannot meet.
    """
    world, calls = World(folder, operation), list(numbers)
    counts = [_run_faults(world, kind, mode, numbers=calls, tamper=tamper) for kind in kinds for mode in modes]
    return [count for count in counts if count.injected]
