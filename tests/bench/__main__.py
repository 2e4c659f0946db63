"""The command: ``python -m tests.bench``, or ``bin/bench``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.environments import find_cache_folder
from tests.bench.load import LoadError, find_missing_wrk
from tests.bench.machine import describe_machine, find_folder_on_disk
from tests.bench.options import disk_folder, end, find_missing_packages, output_file, positive, say
from tests.bench.peers import PEERS, Peer, Settings
from tests.bench.plans import DEFAULT, FETCHED_PEERS, POSTGRESQL_PEERS, PROSODY_PEERS, make_fetched_plan
from tests.bench.profile import ProfileError, find_missing_py_spy, profile_worker
from tests.bench.report import align, format_report, make_report
from tests.bench.rounds import measure
from tests.servers import ServerFailed

if TYPE_CHECKING:
    from tests.bench.pending import Timing
    from tests.bench.preparing import Run


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
    if options.svg and not options.all:
        parser.error("--svg is for --all")
    if options.all and (options.only or options.profile or options.database != "sqlite"):
        parser.error("--all takes neither --only nor --profile nor --database")
    if (options.sweep or options.page) and options.database != "sqlite":
        parser.error("--sweep and --page are for SQLite only")
    if options.pending and options.database == "prosody":
        parser.error("--pending is for SQLite and PostgreSQL only")
    if options.only and (options.sweep or options.page or options.pending):
        parser.error("--only is not for --sweep, --page and --pending")
    if options.peers == "all" and (options.sweep or options.page or options.pending or options.database != "sqlite"):
        parser.error("--peers all is for SQLite without --sweep, --page and --pending")
    if options.peers != "all" and (fetched := [slug for slug in options.only or () if slug in FETCHED_PEERS]):
        parser.error(f"--only {fetched[0]} needs --peers all")
    settings = Settings(options.rounds, options.seconds, options.connections, options.workers, options.threads)
    if options.quick:
        settings = replace(settings, rounds=1, seconds=1)
    if what := find_missing_packages():
        return _refuse(what)
    from tests.bench.preparing import find_missing_postgresql

    needed = [find_missing_wrk]
    needed += [find_missing_py_spy] if options.profile else []
    needed += [find_missing_postgresql] if options.database != "sqlite" else []
    if what := next(filter(None, (find_missing() for find_missing in needed)), None):
        return _refuse(what)
    parent = options.folder or find_folder_on_disk()
    signal.signal(signal.SIGTERM, end)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as name:
            if options.all:
                from tests.bench.whole import PENDING, REQUESTS, run_whole

                return run_whole(
                    settings,
                    Path(name),
                    say,
                    json_file=options.json,
                    chart_file=options.svg,
                    plan=make_fetched_plan(say) if options.peers == "all" else DEFAULT,
                    pending=1_000 if options.quick else PENDING,
                    requests=1 if options.quick else REQUESTS,
                )
            return _prepare_and_run(options, settings, Path(name))
    except KeyboardInterrupt:
        say("bench: interrupted")
        return 128 + signal.SIGINT


def _prepare_and_run(options: argparse.Namespace, settings: Settings, folder: Path) -> int:
    from invites_core import InvitesError
    from tests.bench.preparing import preparing

    try:
        with preparing(
            options.database,
            sweep=options.sweep,
            page=options.page,
            all_peers=options.peers == "all",
            pending=options.pending,
            folder=folder,
            say=say,
        ) as run:
            asked = [peer for peer in run.plan.peers if not options.only or peer.slug in options.only]
            missing = {peer.slug: what for peer in asked if (what := peer.find_missing())}
            peers = [peer for peer in asked if peer.slug not in missing]
            if not peers:
                return _refuse("nothing to measure: " + ("; ".join(missing.values()) or "no such peer in this run"))
            return _run(options, settings, run, peers, missing, folder)
    except (InvitesError, ServerFailed) as error:
        say(f"bench: {error}")
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
    for peer in peers:
        machine |= peer.find_versions()
    outcome = measure(peers, settings, folder, say)
    print(format_report(machine, settings, run.plan, outcome, missing))
    wrong = bool(outcome.failed) or any(series.count_unexpected() for series in outcome.series)
    if options.profile:
        # Before the timings, which take invites out of the stores.
        wrong = not _profile(options, settings, peers, folder) or wrong
    timings: dict[str, list[Timing]] = {}
    if run.time_library is not None:
        from tests.bench.pending import format_timings

        timings = run.time_library()
        for name, of_one in timings.items():
            print("\n" + "\n".join(align(format_timings(name, of_one))))
    if options.json:
        report = make_report(machine, settings, run.plan, outcome, missing)
        if timings:
            report["timings"] = {name: [asdict(timing) for timing in of_one] for name, of_one in timings.items()}
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 1 if wrong else 0


def _profile(options: argparse.Namespace, settings: Settings, peers: Sequence[Peer], folder: Path) -> bool:
    peer = next((peer for peer in peers if peer.is_python), None)
    if peer is None:
        say("nothing to profile: none of these peers is in Python")
        return False
    say(f"profile: {peer.title}")
    try:
        profiles = profile_worker(peer, options.profile_load, settings, folder, options.profile)
    except (ProfileError, LoadError, ServerFailed) as error:
        say(f"profile failed: {error}")
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
        epilog="Without --sweep, --page, --pending and --database it is the service on SQLite, beside a bare app and "
        "Prosody.",
    )
    _add_plans(parser)
    parser.add_argument("--rounds", type=positive, default=7, help="measurements of each peer (default: %(default)s)")
    parser.add_argument("--seconds", type=positive, default=5, help="length of a measurement (default: %(default)s)")
    parser.add_argument("--connections", type=positive, default=16, help="of the load (default: %(default)s)")
    parser.add_argument("--workers", type=positive, default=2, help="of a Python server (default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=8, help="of each worker (default: %(default)s)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every figure to a file")
    parser.add_argument("--svg", type=output_file, metavar="FILE", help="draw the rates of --all")
    parser.add_argument(
        "--profile",
        type=output_file,
        metavar="FILE",
        help="measure once more with py-spy on one worker, and print what its time goes to; FILE gets a flame graph "
        "(.svg) or the raw stacks",
    )
    loads = ("create", "refuse")
    parser.add_argument("--profile-load", choices=loads, default=loads[0], help="under what (default: %(default)s)")
    slugs = [peer.slug for peer in PEERS] + list(FETCHED_PEERS + POSTGRESQL_PEERS + PROSODY_PEERS)
    parser.add_argument("--only", action="append", choices=slugs, help="this peer only; can be given again")
    parser.add_argument(
        "--folder",
        type=disk_folder,
        help="where the data goes, but for PostgreSQL's, which is in /tmp (default: a temporary folder on disk)",
    )
    parser.add_argument("--quick", action="store_true", help="one round of one second, to see that all works")
    return parser


def _add_plans(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--database",
        choices=("sqlite", "postgresql", "prosody"),
        default="sqlite",
        help="with postgresql: two nodes of the service on one PostgreSQL, and one, beside Prosody on the same; the "
        "server is made for the run from the programs of the system. With prosody: the service in front of a Prosody, "
        "beside that one's own mod_invites_api, on each storage, and how long one call holds it (default: %(default)s)",
    )
    parser.add_argument(
        "--peers",
        choices=("installed", "all"),
        default="installed",
        help="with all: Synapse's registration tokens and djangorestframework-api-key too, each in a virtual "
        f"environment in {find_cache_folder()}, which pip fills in the first run (default: %(default)s)",
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument(
        "--all", action="store_true", help="all that the service is held to, part after part, and a verdict"
    )
    one.add_argument(
        "--sweep",
        action="store_true",
        help="the service alone, on SQLite: 1 to 64 connections with 2 workers, 1 to 4 workers with 16 connections",
    )
    one.add_argument("--page", action="store_true", help="pages of invites, beside those of Prosody's mod_invites_page")
    one.add_argument(
        "--pending",
        type=positive,
        metavar="N",
        help="creations on a store with N pending invites beside those on an empty one, and how long its lists and its "
        "purge take through the library; on the --database that is given",
    )


def _refuse(why: str) -> int:
    say(f"bench: {why}")
    return 2


if __name__ == "__main__":
    sys.exit(main())
