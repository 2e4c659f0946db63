"""Many redeemers race for every one of many single-use invites, from several processes: each invite has one winner.

They use the library, or ask nodes over HTTP that serve the database, each redeemer one of them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Empty
from typing import NamedTuple

from invites_core import (
    ApiKeys,
    Invites,
    InvitesError,
    InviteStore,
    InviteUsed,
    KeyPolicy,
    StorageBusy,
    open_invite_store,
    open_store,
)
from tests.proofs.nodes import APP, NodeCaller, make_absolute, serving_nodes

HOST = "example.com"

Result = tuple[list[str], Counter[str]]
"""What a process has won, by token, and what else was told to its redeemers, by the error's name."""

Redeem = Callable[[str], str | None]
"""Redeems an invite for one redeemer; returns the error's name, or None for success."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a race has shown.

    Attributes:
        invites: How many invites there were.
        successes: How many redemptions succeeded.
        doubled: How many invites were redeemed more than once, by what the redeemers were told.
        refused: How many redemptions were told that the invite had been used.
        miscounted: How many invites do not hold exactly one use and one redemption in the store.
        unexpected: What else was raised, with how often.
        seconds: How long it took.
    """

    invites: int
    successes: int
    doubled: int
    refused: int
    miscounted: int
    unexpected: dict[str, int]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether each invite had exactly one winner."""
        return self.successes == self.invites and self.doubled == 0 and self.miscounted == 0 and not self.unexpected


def do_nothing() -> None:
    """Race with the store as it is."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where redeemers redeem.

    Attributes:
        url: The database.
        ports: The nodes that serve it, for redeemers who ask over HTTP; none: they use the library.
        combined: Their key at the nodes.
    """

    url: str
    ports: tuple[int, ...] = ()
    combined: str = ""

    def choose_port(self, number: int, processes: int) -> int | None:
        """Return the node for a redeemer, so that all nodes are asked, and by each process; None: the library."""
        return self.ports[(number % processes + number // processes) % len(self.ports)] if self.ports else None


class Seat(NamedTuple):
    """A redeemer's name, and the port that is asked, or None."""

    name: str
    port: int | None


def run_race(
    url: str,
    *,
    invites: int,
    redeemers: int,
    processes: int,
    nodes: int = 0,
    workers: int = 2,
    app: str = APP,
    prepare: Callable[[], None] = do_nothing,
) -> Outcome:
    """Make invites in a database and let redeemers race for each of them.

    Args:
        url: The store, a database made if need be.
        invites: How many single-use invites.
        redeemers: How many try each of them, spread over the processes, each in a thread of its own.
        processes: How many processes.
        nodes: How many nodes serve the database, for redeemers who ask over HTTP; 0: they use the library.
        workers: How many worker processes each node has.
        app: What the nodes serve.
        prepare: Called in each process before it opens the database.
    """
    store = open_invite_store(url)
    service = Invites(store)
    tokens = [
        invite.token
        for start in range(0, invites, 1000)
        for invite in service.create_many_for(HOST, min(1000, invites - start), source="race")
    ]
    with _serving(url, nodes, workers, app) as place:
        collected, seconds = _race(place, tokens, redeemers, processes, prepare)
    won = Counter(token for tokens_won, _ in collected for token in tokens_won)
    raised = sum((counter for _, counter in collected), Counter[str]())
    outcome = Outcome(
        invites=invites,
        successes=won.total(),
        doubled=sum(count > 1 for count in won.values()),
        refused=raised.pop(InviteUsed.__name__, 0),
        miscounted=_count_wrong(store, tokens),
        unexpected=dict(raised),
        seconds=seconds,
    )
    store.close()
    return outcome


@contextlib.contextmanager
def _serving(url: str, nodes: int, workers: int, app: str) -> Iterator[Place]:
    if not nodes:
        yield Place(url)
        return
    with contextlib.closing(open_store(url)) as store:
        issued = ApiKeys(store).create(HOST, policy=KeyPolicy(scopes=frozenset({"redeem"}), all_invites=True))
    with (
        tempfile.TemporaryDirectory() as folder,
        serving_nodes(Path(folder), url, nodes=nodes, workers=workers, app=app) as servers,
    ):
        yield Place(url, tuple(server.port for server in servers), issued.combined)


def _race(
    place: Place, tokens: list[str], redeemers: int, processes: int, prepare: Callable[[], None]
) -> tuple[list[Result], float]:
    """Let all redeem in processes of their own; return what each process has to say, and how long it took."""
    context = multiprocessing.get_context("spawn")
    results: Queue[Result] = context.Queue()
    barrier = context.Barrier(processes)
    seats = [Seat(f"redeemer-{number}", place.choose_port(number, processes)) for number in range(redeemers)]
    workers = [
        context.Process(target=_redeem_all, args=(prepare, place, tokens, seats[first::processes], barrier, results))
        for first in range(processes)
    ]
    started = time.monotonic()
    for worker in workers:
        worker.start()
    collected = _collect(results, workers)
    seconds = time.monotonic() - started
    for worker in workers:
        worker.join()
    return collected, seconds


def _collect(results: Queue[Result], workers: Sequence[BaseProcess]) -> list[Result]:
    """Return what each process has to say; fail where one ends without a word, for the others would wait for it."""
    collected: list[Result] = []
    while len(collected) < len(workers):
        try:
            collected.append(results.get(timeout=1))
        except Empty:
            if any(worker.exitcode for worker in workers):
                for worker in workers:
                    worker.terminate()
                raise RuntimeError("a process of the race has failed") from None
    return collected


def _count_wrong(store: InviteStore, tokens: list[str]) -> int:
    wrong = 0
    for token in tokens:
        invite = store.find_invite(token)
        redemptions = store.list_redemptions(token)
        wrong += invite is None or invite.uses != 1 or len(redemptions) != 1
    return wrong


def _redeem_all(
    prepare: Callable[[], None],
    place: Place,
    tokens: list[str],
    seats: list[Seat],
    barrier: Barrier,
    results: Queue[Result],
) -> None:
    """Run in a process of its own: redeem every invite once with each of some redeemers, in threads."""
    prepare()
    store = open_invite_store(place.url, create=False)
    won: list[str] = []
    raised: Counter[str] = Counter()
    lock = threading.Lock()

    def redeem_each(redeem: Redeem) -> None:
        for token in tokens:
            outcome = redeem(token)
            with lock:
                if outcome is None:
                    won.append(token)
                else:
                    raised[outcome] += 1

    with contextlib.ExitStack() as stack:
        redeems = [_make_redeemer(place, seat, store, stack) for seat in seats]
        threads = [threading.Thread(target=redeem_each, args=(redeem,)) for redeem in redeems]
        barrier.wait()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    store.close()
    results.put((won, raised))


def _make_redeemer(place: Place, seat: Seat, store: InviteStore, stack: contextlib.ExitStack) -> Redeem:
    if seat.port is None:
        return functools.partial(_redeem, Invites(store), seat.name)
    return functools.partial(_ask, stack.enter_context(NodeCaller(seat.port, place.combined)), seat.name)


def _redeem(service: Invites, name: str, token: str) -> str | None:
    """Redeem, again with the same identity where the store was busy."""
    while True:
        try:
            service.redeem(token, redeemer=name, redemption_id=name)
        except StorageBusy:
            continue
        except InvitesError as error:
            return type(error).__name__
        return None


def _ask(caller: NodeCaller, name: str, token: str) -> str | None:
    """Ask a node to redeem, again with the same identity where it was busy."""
    answer = caller.redeem(token, name)
    if answer.status == 200:
        return None
    kind = str(answer.document["type"])
    return InviteUsed.__name__ if kind == "invite-used" else f"{answer.status} {kind}"


def main() -> int:
    """Run the race as a command."""
    parser = argparse.ArgumentParser(prog="redeem-race", description=__doc__)
    parser.add_argument("--invites", type=int, default=10_000)
    parser.add_argument("--redeemers", type=int, default=32)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=0, help="redeem over HTTP at so many servers; 0: with the library")
    parser.add_argument("--workers", type=int, default=2, help="processes of each of these servers")
    parser.add_argument("--database", metavar="URL", help="an empty database; the default is one in a new folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_race(
            make_absolute(options.database or f"sqlite:///{Path(folder) / 'race.db'}"),
            invites=options.invites,
            redeemers=options.redeemers,
            processes=options.processes,
            nodes=options.nodes,
            workers=options.workers,
        )
    print(outcome)
    print("every invite had exactly one winner" if outcome.holds else "NOT every invite had exactly one winner")
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
