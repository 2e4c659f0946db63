"""Serve some millions of requests on SQLite, and tell whether what the service holds grows: ``bin/soak``.

What is watched, and when it counts as flat, over the second half of the samples; the first sample is left out, because
what is used for the first time is taken then.

memory       the resident memory of each worker grows by less than 2 MiB per million requests, by least squares
descriptors  no worker has more than the most that one had in the first half
threads      the same
WAL          its file is no larger than in the first half, or no larger than 8 MiB: from 4 MiB on SQLite copies it into
             the database, and begins it anew when nobody reads from it
workers      they are the same from beginning to end: a new one would begin with little memory
answers      all of them are the expected ones, from beginning to end
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import linear_regression
from typing import TYPE_CHECKING, Final

from tests.bench.load import LoadError, find_missing_wrk
from tests.bench.machine import describe_machine, find_folder_on_disk
from tests.bench.options import disk_folder, end, find_missing_packages, output_file, positive, say
from tests.bench.peers import Settings
from tests.bench.report import align
from tests.bench.verdicts import Verdict, format_verdicts
from tests.servers import ServerFailed

if TYPE_CHECKING:
    from tests.bench.memory import Sample

REQUESTS: Final = 2_000_000
POINTS: Final = 20
MOST_MIB_PER_MILLION: Final = 2.0
LARGEST_WAL_MIB: Final = 8.0
# Fewer samples have no halves, and over fewer requests a page more or less is already too much for a million.
_LEAST_SAMPLES: Final = 5
_LEAST_REQUESTS: Final = 100_000


def find_soak_verdicts(samples: Sequence[Sample]) -> list[Verdict]:
    """Judge what was seen; a line has no figure where there were too few samples, or requests, to tell.

    Args:
        samples: What was seen, in order.
    """
    lines = {
        "memory of a worker: MiB more per million requests": (_find_growth(samples), MOST_MIB_PER_MILLION),
        "descriptors of a worker: more than at first": (_find_excess(samples, "open_files"), 0),
        "threads of a worker: more than at first": (_find_excess(samples, "threads"), 0),
        "WAL at most: MiB": _find_wal(samples),
        "workers replaced": (sum(one.pids != samples[0].pids for one in samples), 0),
        "answers that were not the expected ones": (sum(sum(one.unexpected.values()) for one in samples[-1:]), 0),
    }
    return [Verdict(line, measured, bar, None, is_most=True) for line, (measured, bar) in lines.items()]


def _halve(samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]] | None:
    if len(samples) < _LEAST_SAMPLES:
        return None
    settled = samples[1:]
    return settled[: len(settled) // 2], settled[len(settled) // 2 :]


def _find_growth(samples: Sequence[Sample]) -> float | None:
    halves = _halve(samples)
    if halves is None or samples[-1].requests < _LEAST_REQUESTS:
        return None
    millions = [one.requests / 1e6 for one in halves[1]]
    # A worker that was replaced ends its row; that is a line of its own.
    rows = zip(*(one.rss_mib for one in halves[1]), strict=False)
    return max((linear_regression(millions, row).slope for row in rows), default=None)


def _find_excess(samples: Sequence[Sample], name: str) -> int | None:
    if (halves := _halve(samples)) is None:
        return None
    first, second = (max(max(getattr(one, name), default=0) for one in half) for half in halves)
    return int(second - first)


def _find_wal(samples: Sequence[Sample]) -> tuple[float | None, float]:
    if (halves := _halve(samples)) is None:
        return None, LARGEST_WAL_MIB
    first, second = (max(one.wal_mib for one in half) for half in halves)
    return second, max(first, LARGEST_WAL_MIB)


def main(argv: Sequence[str] | None = None) -> int:
    """Soak and report.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        The exit status: 0; 1 if something grew, failed, answered otherwise than it should, or could not be told; 2 if
        something needed is not installed.
    """
    options = _parser().parse_args(argv)
    if what := find_missing_packages() or find_missing_wrk():
        say(f"soak: {what}")
        return 2
    from tests.bench.memory import format_samples, watch_memory

    settings = Settings(1, options.seconds, options.connections, options.workers, options.threads)
    signal.signal(signal.SIGTERM, end)
    try:
        with tempfile.TemporaryDirectory(prefix="soak-", dir=options.folder or find_folder_on_disk()) as name:
            machine = describe_machine(Path(name))
            samples = watch_memory(
                options.requests, settings, Path(name), say, points=options.points, chunk_seconds=options.seconds
            )
    except (LoadError, ServerFailed) as error:
        say(f"soak: {error}")
        return 1
    except KeyboardInterrupt:
        say("soak: interrupted")
        return 128 + signal.SIGINT
    verdicts = find_soak_verdicts(samples)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print("\n" + "\n".join(align(format_samples(samples))))
    print("\n" + "\n".join(align(format_verdicts(verdicts))))
    for answer, count in samples[-1].unexpected.items():
        print(f"not the expected answer: {count} x {answer}")
    if options.json:
        report = {"format": 1, "machine": machine, "settings": asdict(settings), "requests": samples[-1].requests}
        report["samples"] = [asdict(one) for one in samples]
        report["verdicts"] = [{**asdict(one), "holds": one.holds} for one in verdicts]
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return _conclude(verdicts)


def _conclude(verdicts: Sequence[Verdict]) -> int:
    found = {one.holds for one in verdicts}
    if False in found:
        print("\nNOT flat")
    elif None in found:
        print("\ntoo few requests to tell")
    else:
        print("\nflat")
    return 0 if found == {True} else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="soak",
        description="Serve creations, refusals, reads and redemptions in turn, by gunicorn on SQLite, and look at the "
        "workers on the way: whether memory, descriptors, threads and WAL stay as they are.",
    )
    parser.add_argument("--requests", type=positive, default=REQUESTS, help="at least (default: %(default)s)")
    parser.add_argument("--points", type=positive, default=POINTS, help="how often to look (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=5, help="of each kind in turn (default: %(default)s)")
    parser.add_argument("--connections", type=positive, default=16, help="of the load (default: %(default)s)")
    parser.add_argument("--workers", type=positive, default=2, help="of the service (default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=8, help="of each worker (default: %(default)s)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every figure to a file")
    parser.add_argument("--folder", type=disk_folder, help="where the data goes (default: a temporary one on disk)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
