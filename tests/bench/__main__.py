"""The command: ``python -m tests.bench``, or ``bin/bench``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from tests.bench.load import LoadError, find_missing_wrk
from tests.bench.machine import describe_machine, find_filesystem, find_folder_on_disk
from tests.bench.peers import PEERS, Peer, Settings
from tests.bench.plans import POSTGRESQL_PEERS
from tests.bench.profile import ProfileError, find_missing_py_spy, profile_worker
from tests.bench.report import align, format_report, make_report
from tests.bench.rounds import measure
from tests.servers import ServerFailed

if TYPE_CHECKING:
    from tests.bench.pending import Timing
    from tests.bench.preparing import Run

# Whatever needs one of these is imported after it was looked for, so that what is missing is told in a sentence.
_NEEDED = ("apsw", "argon2", "gunicorn", "werkzeug")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        The exit status: 0; 1 if anything failed or answered otherwise than it should; 2 if something needed is not
        installed.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.sweep and options.database != "sqlite":
        parser.error("--sweep is for SQLite only")
    if options.only and (options.sweep or options.pending):
        parser.error("--only is not for --sweep and --pending")
    settings = Settings(options.rounds, options.seconds, options.connections, options.workers, options.threads)
    if options.quick:
        settings = replace(settings, rounds=1, seconds=1)
    lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        return _refuse(f"{', '.join(lacking)} missing: run bin/test once, or pip install -e '.[test]'")
    from tests.bench.preparing import find_missing_postgresql

    needed = [find_missing_wrk]
    needed += [find_missing_py_spy] if options.profile else []
    needed += [find_missing_postgresql] if options.database == "postgresql" else []
    if what := next(filter(None, (find_missing() for find_missing in needed)), None):
        return _refuse(what)
    parent = options.folder or find_folder_on_disk()
    signal.signal(signal.SIGTERM, _end)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as name:
            return _prepare_and_run(options, settings, Path(name))
    except KeyboardInterrupt:
        _say("bench: interrupted")
        return 128 + signal.SIGINT


def _prepare_and_run(options: argparse.Namespace, settings: Settings, folder: Path) -> int:
    from invites_core import InvitesError
    from tests.bench.preparing import preparing

    try:
        with preparing(options.database, sweep=options.sweep, pending=options.pending, folder=folder, say=_say) as run:
            asked = [peer for peer in run.plan.peers if not options.only or peer.slug in options.only]
            missing = {peer.slug: what for peer in asked if (what := peer.find_missing())}
            peers = [peer for peer in asked if peer.slug not in missing]
            if not peers:
                return _refuse("nothing to measure: " + ("; ".join(missing.values()) or "no such peer in this run"))
            return _run(options, settings, run, peers, missing, folder)
    except (InvitesError, ServerFailed) as error:
        _say(f"bench: {error}")
        return 1


def _run(
    options: argparse.Namespace,
    settings: Settings,
    run: Run,
    peers: Sequence[Peer],
    missing: dict[str, str],
    folder: Path,
) -> int:
    machine = {**describe_machine(folder), **run.machine}
    outcome = measure(peers, settings, folder, _say)
    print(format_report(machine, settings, run.plan, outcome, missing))
    wrong = bool(outcome.failed) or any(series.count_unexpected() for series in outcome.series)
    if options.profile:
        # Before the timings, which take invites out of the stores.
        wrong = not _profile(options, settings, peers, folder) or wrong
    timings: list[Timing] = []
    if run.time_library is not None:
        from tests.bench.pending import format_timings

        timings = run.time_library()
        print("\n" + "\n".join(align(format_timings(timings))))
    if options.json:
        report = make_report(machine, settings, run.plan, outcome, missing)
        if timings:
            report["timings"] = [asdict(timing) for timing in timings]
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 1 if wrong else 0


def _profile(options: argparse.Namespace, settings: Settings, peers: Sequence[Peer], folder: Path) -> bool:
    peer = next((peer for peer in peers if peer.is_python), None)
    if peer is None:
        _say("nothing to profile: none of these peers is in Python")
        return False
    _say(f"profile: {peer.title}")
    try:
        profiles = profile_worker(peer, options.profile_load, settings, folder, options.profile)
    except (ProfileError, LoadError, ServerFailed) as error:
        _say(f"profile failed: {error}")
        return False
    for threads, profile in profiles.items():
        print(f"\n{peer.title}, one worker, {threads}: {profile.samples} samples, by self time")
        print(profile.format())
    print(f"{options.profile} has the stacks.")
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measure the service beside its peers in one run: how many invites a second, how fast, in how much "
        "memory. Starts and stops every server itself; a peer that is not installed is named as missing.",
        epilog="Without --sweep, --pending and --database it is the service on SQLite, beside a bare app and Prosody.",
    )
    _add_plans(parser)
    number = _positive
    parser.add_argument("--rounds", type=number, default=7, help="measurements of each peer (default: %(default)s)")
    parser.add_argument("--seconds", type=number, default=5, help="length of a measurement (default: %(default)s)")
    parser.add_argument("--connections", type=number, default=16, help="of the load (default: %(default)s)")
    parser.add_argument("--workers", type=number, default=2, help="of a Python server (default: %(default)s)")
    parser.add_argument("--threads", type=number, default=8, help="of each worker (default: %(default)s)")
    parser.add_argument("--json", type=_output_file, metavar="FILE", help="write every figure to a file")
    parser.add_argument(
        "--profile",
        type=_output_file,
        metavar="FILE",
        help="measure once more with py-spy on one worker, and print what its time goes to; FILE gets a flame graph "
        "(.svg) or the raw stacks",
    )
    loads = ("create", "refuse")
    parser.add_argument("--profile-load", choices=loads, default=loads[0], help="under what (default: %(default)s)")
    slugs = [peer.slug for peer in PEERS] + list(POSTGRESQL_PEERS)
    parser.add_argument("--only", action="append", choices=slugs, help="this peer only; can be given again")
    parser.add_argument(
        "--folder",
        type=_disk_folder,
        help="where the data goes, but for PostgreSQL's, which is in /tmp (default: a temporary folder on disk)",
    )
    parser.add_argument("--quick", action="store_true", help="one round of one second, to see that all works")
    return parser


def _add_plans(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--database",
        choices=("sqlite", "postgresql"),
        default="sqlite",
        help="with postgresql: two nodes of the service on one PostgreSQL, and one, beside Prosody on the same; the "
        "server is made for the run from the programs of the system (default: %(default)s)",
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument(
        "--sweep",
        action="store_true",
        help="the service alone, on SQLite: 1 to 64 connections with 2 workers, 1 to 4 workers with 16 connections",
    )
    one.add_argument(
        "--pending",
        type=_positive,
        metavar="N",
        help="creations on a store with N pending invites beside those on an empty one, and how long its lists and its "
        "purge take through the library; on the --database that is given",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _output_file(text: str) -> Path:
    # Known at once, and not after minutes of measuring.
    file = Path(text).absolute()
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {text}")
    return file


def _disk_folder(text: str) -> Path:
    folder = Path(text)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"no folder {text}")
    if find_filesystem(folder) == "tmpfs":
        _say(f"warning: {text} is in memory: a sync costs nothing there, so the figures are too good")
    return folder


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _refuse(why: str) -> int:
    _say(f"bench: {why}")
    return 2


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # Ends through every "with" on the way, so that no server stays behind.
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
