"""The command: ``python -m tests.misbehave``, or ``bin/misbehave``."""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from tests.bench.machine import describe_machine, find_folder_on_disk
from tests.bench.peers import Settings
from tests.misbehave.report import Row, format_rows
from tests.misbehave.run import misbehave
from tests.misbehave.scenarios import SCENARIOS, Sizes
from tests.servers import ServerFailed


def main(argv: Sequence[str] | None = None) -> int:
    """Misbehave and report.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        The exit status: 0; 1 if an answer was wrong, or a worker grew beyond its bound. Times do not matter to it.
    """
    options = _parser().parse_args(argv)
    sizes = Sizes(options.cold_keys, options.keys, options.slow, options.held, options.seconds)
    settings = Settings(1, 0, options.connections, options.workers, options.threads)
    scenarios = [one for one in SCENARIOS if not options.only or one.slug in options.only]
    # Each connection is a descriptor, here and in the service.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        with tempfile.TemporaryDirectory(prefix="misbehave-", dir=find_folder_on_disk()) as name:
            folder = options.folder or Path(name)
            folder.mkdir(parents=True, exist_ok=True)
            machine = describe_machine(folder)
            rows = misbehave(scenarios, sizes, settings, folder, _say)
    except KeyboardInterrupt:
        _say("interrupted")
        return 128 + signal.SIGINT
    except ServerFailed as error:
        _say(str(error))
        return 1
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in asdict(sizes).items()), end="\n\n")
    print("\n".join(format_rows(rows)))
    if options.json:
        options.json.write_text(json.dumps(_describe(machine, sizes, rows), indent=2) + "\n", "utf-8")
    return 1 if any(row.faults for row in rows) else 0


def _describe(machine: dict[str, str | int], sizes: Sizes, rows: list[Row]) -> dict[str, object]:
    """Put all of it into what JSON can hold; ``format`` changes with its shape."""
    names = [field.name for field in fields(Row)]
    series = [{**{name: getattr(row, name) for name in names}, "ratio": row.ratio} for row in rows]
    return {"format": 1, "machine": machine, "sizes": asdict(sizes), "rows": series}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="misbehave",
        description="Does to a service what it must bear, beside callers who behave, and says what these notice of it.",
    )
    slugs = [one.slug for one in SCENARIOS]
    parser.add_argument("--only", action="append", choices=slugs, help="only this scenario; may be repeated")
    parser.add_argument("--seconds", type=float, default=35, help="how long each lasts, and its callers alone before")
    parser.add_argument("--cold-keys", type=int, default=500, help="keys used for the first time, all at once")
    parser.add_argument("--keys", type=int, default=10_000, help="keys used for the first time after a restart")
    parser.add_argument("--slow", type=int, default=200, help="clients that send a byte a second")
    parser.add_argument("--held", type=int, default=500, help="connections held open")
    parser.add_argument("--connections", type=int, default=4, help="callers who behave")
    parser.add_argument("--workers", type=int, default=2, help="processes of the service")
    parser.add_argument("--threads", type=int, default=8, help="threads of each")
    parser.add_argument("--folder", type=Path, help="keep the database and its keys here, and use what is there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser


def _say(line: str) -> None:
    print(f"misbehave: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
