"""Runs of the SQLite store on a machine that stops: at every change, with more or less of what was not synced."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from invites_core.stores.sqlite import SqliteStore
from invites_core.testing import make_key
from tests.proofs.power_cut import MortalDisk
from tests.proofs.sqlite_operations import Operation, tune_checkpoints
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

__all__ = ["CUTS", "FAILED_SYNC", "Cut", "make_cuts", "prove_power"]

FOLLOWING_KEYS: Final = ("second", "third", "fourth")
"""What is written after the operation, each with a checkpoint behind it and a log that begins anew."""

STEPS: Final = 1 + len(FOLLOWING_KEYS)


@dataclass(frozen=True, slots=True)
class Cut:
    """How a machine stops.

    Attributes:
        name: What it is called.
        make_keep: Makes what decides, for each piece that is under way, whether it comes to the disk.
        call: The function that fails instead, at which the system loses what is under way; the machine stops at the
            end. Empty: it stops at the change.
    """

    name: str
    make_keep: Callable[[], Callable[[], bool]]
    call: str = ""


def _keep_some(seed: int) -> Callable[[], bool]:
    draw = random.Random(seed).random
    return lambda: draw() < 0.5


def make_cuts(seeds: Iterable[int]) -> list[Cut]:
    """Return a cut for each seed of a generator that says what comes to the disk."""
    return [Cut(f"torn ({seed})", partial(_keep_some, seed)) for seed in seeds]


FAILED_SYNC: Final = Cut("sync lost", lambda: lambda: False, call="xSync")
CUTS: Final = (
    Cut("all lost", lambda: lambda: False),
    Cut("none lost", lambda: lambda: True),
    *make_cuts(range(1, 4)),
    FAILED_SYNC,
)


class PowerWorld:
    """An operation and the writes behind it, with the database as it is after each of them."""

    def __init__(self, folder: Path, operation: Operation) -> None:
        self.operation = operation
        self.template = folder / "template" / "invites.db"
        self.path = folder / "run" / "invites.db"
        self.left = folder / "left" / "invites.db"
        if operation.start != "making":
            make_template(self.template, operation.prepare, is_closed=operation.is_closed)
        self.states = [self._find_state(steps) for steps in range(STEPS + 1)]

    def _find_state(self, steps: int) -> Contents | None:
        copy_database(self.template, self.path)
        stores: list[SqliteStore] = []

        def take(send: Callable[[object], None]) -> None:
            _take_steps(self, stores, steps, do_nothing)
            send("taken")

        sent = run_and_kill(take)
        if sent != ["taken"]:
            raise RuntimeError(sent)
        contents, damage = look(self.path)
        if damage:
            raise RuntimeError(damage)
        return contents

    def run(self, cut: Cut, number: int, tamper: Callable[[], None]) -> list[Any]:
        """Run all steps on a fresh copy, until the machine stops at a change or at the end.

        Returns:
            A True for each step that was acknowledged, and how many changes there were.
        """
        copy_database(self.template, self.path)
        copy_database(self.path, self.left)
        files = list(self.path.parent.iterdir())
        for file in self.left.parent.iterdir():
            file.unlink()
        self.left.parent.rmdir()

        def use(send: Callable[[object], None]) -> None:
            tamper()
            disk = MortalDisk(
                self.left.parent,
                keep=cut.make_keep(),
                at=number,
                call=cut.call,
                report=lambda: send(disk.changes),
            )
            for file in files:
                disk.know(file)
            disk.install()
            stores: list[SqliteStore] = []
            if self.operation.start != "open":
                disk.arm()
            _take_steps(self, stores, STEPS, lambda: send(True), disk.arm)
            disk.stop()

        return run_and_kill(use)


def _take_steps(
    world: PowerWorld,
    stores: list[SqliteStore],
    steps: int,
    acknowledge: Callable[[], None],
    arm: Callable[[], None] = do_nothing,
) -> None:
    """Do the operation and write the keys behind it, each again where it was not done, and tell of each that was."""
    operation = world.operation

    def reach() -> SqliteStore:
        if not stores:
            stores.append(SqliteStore(world.path, create=operation.start == "making"))
        return stores[0]

    if operation.start == "open":
        operation.warm(reach())
        arm()
    elif steps == 0:
        return
    calls: list[Callable[[], object]] = [lambda: operation.call(reach())]
    again: list[Callable[[], object]] = [lambda: operation.repeat(reach())]
    calls += [partial(lambda key: reach().add_key(key), make_key(id=key_id)) for key_id in FOLLOWING_KEYS]
    again += calls[1:]
    for number, (call, repeat) in enumerate(zip(calls[:steps], again[:steps], strict=True)):
        told = tell(call)
        if told.outcome != "success":
            told = tell(repeat)
        if told.outcome != "success":
            raise RuntimeError(f"step {number}: {told}")
        acknowledge()
        tune_checkpoints(reach())


def prove_power(
    folder: Path,
    operation: Operation,
    *,
    cuts: Sequence[Cut] = CUTS,
    numbers: Iterable[int] = range(1, 10_000),
    tamper: Callable[[], None] = do_nothing,
) -> list[Count]:
    """Let the machine stop at every change of an operation and of the writes behind it.

    Args:
        folder: Where the databases go; an empty one.
        operation: Which operation.
        cuts: How it stops.
        numbers: At which changes; the first after the last change is the end, and the last that is tried.
        tamper: Called in each process before its store is opened.

    Returns:
        What has become of the database, by cut. The columns of `Count` for what was told count steps here:
        acknowledged ones as success, the one under way as unknown.
    """
    world, changes = PowerWorld(folder, operation), list(numbers)
    return [_run_cuts(world, cut, changes, tamper) for cut in cuts]


def _run_cuts(world: PowerWorld, cut: Cut, numbers: Sequence[int], tamper: Callable[[], None]) -> Count:
    count = Count(world.operation.name, "power cut", cut.name)
    for number in numbers:
        try:
            sent = world.run(cut, number, tamper)
        except TimeoutError as error:
            count.add("stuck", f"at change {number}: {error}")
            continue
        count.injected += 1
        where = f"at change {number}"
        if isinstance(sent[-1], Exception):
            count.add("stuck", f"{where}: {sent[-1]}")
            continue
        acknowledged = len(sent) - 1
        count.success += acknowledged
        count.unknown += acknowledged < STEPS
        _judge(world, count, acknowledged, f"{where}, {acknowledged} acknowledged")
        if sent[-1] < number:
            break
    return count


def _judge(world: PowerWorld, count: Count, acknowledged: int, where: str) -> None:
    contents, damage = look(world.left)
    if damage:
        count.add("damaged", f"{where}: {damage}")
        return
    if contents not in world.states:
        count.add("damaged", f"{where}: not as after any of the writes")
        return
    if contents not in world.states[acknowledged : acknowledged + 2]:
        is_behind = contents in world.states[:acknowledged]
        count.add("lost" if is_behind else "kept", f"{where}, and there are {world.states.index(contents)}")
        return

    def go_on(send: Callable[[object], None]) -> None:
        store = SqliteStore(world.left, create=world.operation.start == "making")
        send(tell(lambda: store.add_key(make_key(id="next"))))

    sent = run_and_kill(go_on)
    after, damage = look(world.left)
    found = {row[0] for row in (after or {}).get("keys", [])} - {row[0] for row in (contents or {}).get("keys", [])}
    if sent != [Told("success", None)] or damage or found != {"next"}:
        count.add("stuck", f"{where}, opened again: {sent} {damage}")
