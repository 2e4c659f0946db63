"""The SQLite store under faults: its disk fails at every call in which it can, and the machine stops at every change.

After each fault the process is killed and the database opened again without faults. What was acknowledged must be
there once, what was refused must not be there, what is unknown must be resolved by repeating the same write, and the
next call must work. Where the machine stops, what was written and not synced is lost, in whole or in part.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.proofs.sqlite_fault_runs import prove_faults
from tests.proofs.sqlite_operations import Operation, make_operations
from tests.proofs.sqlite_power_runs import prove_power
from tests.proofs.sqlite_worlds import Count

__all__ = ["main", "print_table"]

COLUMNS = ("injected", "success", "error", "unknown", "lost", "kept", "doubled", "damaged", "stuck")
MEMORY = "/dev/shm"
"""Where files are in memory: what a sync does for real is nothing to a proof that says itself what was synced."""

FOLDER_HELP = f"where the databases go; the default is {MEMORY} or, where there is none, the folder for such files"
EXAMPLES = 3
"""How many failures of a kind are told in words."""


def print_table(counts: Iterable[Count]) -> None:
    """Print a line for each operation, kind of fault and mode, and examples of what failed."""
    total = dict.fromkeys(COLUMNS, 0)
    print(f"{'operation':<24}{'fault':<13}{'mode':<18}" + "".join(f"{column:>9}" for column in COLUMNS))
    for count in counts:
        numbers = {column: getattr(count, column) for column in COLUMNS}
        print(f"{count.operation:<24}{count.kind:<13}{count.mode:<18}" + "".join(f"{n:>9}" for n in numbers.values()))
        for example in count.examples[:EXAMPLES]:
            print(f"    {example}")
        total = {column: total[column] + numbers[column] for column in COLUMNS}
    print(f"{'all':<55}" + "".join(f"{number:>9}" for number in total.values()), flush=True)


def run(folder: Path, operation: Operation, *, faults: bool, power: bool) -> list[Count]:
    """Let an operation meet all that it can meet."""
    counts = []
    if faults:
        (own := folder / "faults").mkdir()
        counts += prove_faults(own, operation)
    if power and operation.writes:
        (own := folder / "power").mkdir()
        counts += prove_power(own, operation)
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the proof as a command."""
    names = [operation.name for operation in make_operations()]
    parser = argparse.ArgumentParser(prog="sqlite-faults", description=__doc__)
    parser.add_argument(
        "--operation", action="append", choices=names, metavar="NAME", help=f"one of: {'; '.join(names)}; repeatable"
    )
    parser.add_argument("--only", choices=["faults", "power"], help="only faults of the disk, or only power cuts")
    parser.add_argument("--folder", default=MEMORY if os.access(MEMORY, os.W_OK) else None, help=FOLDER_HELP)
    options = parser.parse_args(arguments)
    counts: list[Count] = []
    started = time.monotonic()
    for operation in make_operations():
        if options.operation is None or operation.name in options.operation:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                counts += run(Path(folder), operation, faults=options.only != "power", power=options.only != "faults")
            print(f"{operation.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print_table(counts)
    holds = bool(counts) and all(count.holds for count in counts)
    print("the store holds under faults" if holds else "the store does NOT hold under faults")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
