"""Many redeemers race for every one of many single-use invites, from several processes: each invite has one winner."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Empty

from invites_core import Invites, InvitesError, InviteUsed, StorageBusy, Store, open_store

HOST = "example.com"

Result = tuple[list[str], Counter[str]]
"""What a process has won, by token, and what else was told to its redeemers, by the error's name."""


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


def run_race(
    url: str, *, invites: int, redeemers: int, processes: int, prepare: Callable[[], None] = do_nothing
) -> Outcome:
    """Make invites in a database and let redeemers race for each of them.

    Args:
        url: The database, made if need be.
        invites: How many single-use invites.
        redeemers: How many try each of them, spread over the processes, each in a thread of its own.
        processes: How many processes.
        prepare: Called in each process before it opens the database.
    """
    store = open_store(url)
    service = Invites(store)
    tokens = [
        invite.token
        for start in range(0, invites, 1000)
        for invite in service.create_many_for(HOST, min(1000, invites - start), source="race")
    ]
    context = multiprocessing.get_context("spawn")
    results: Queue[Result] = context.Queue()
    barrier = context.Barrier(processes)
    shares = [redeemers // processes + (number < redeemers % processes) for number in range(processes)]
    workers = [
        context.Process(target=_redeem_all, args=(prepare, url, tokens, number, share, barrier, results))
        for number, share in enumerate(shares)
    ]
    started = time.monotonic()
    for worker in workers:
        worker.start()
    collected = _collect(results, workers)
    seconds = time.monotonic() - started
    for worker in workers:
        worker.join()
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


def _count_wrong(store: Store, tokens: list[str]) -> int:
    wrong = 0
    for token in tokens:
        invite = store.find_invite(token)
        redemptions = store.list_redemptions(token)
        wrong += invite is None or invite.uses != 1 or len(redemptions) != 1
    return wrong


def _redeem_all(
    prepare: Callable[[], None],
    url: str,
    tokens: list[str],
    number: int,
    redeemers: int,
    barrier: Barrier,
    results: Queue[Result],
) -> None:
    """Run in a process of its own: redeem every invite once with each of some redeemers, in threads."""
    prepare()
    store = open_store(url, create=False)
    service = Invites(store)
    won: list[str] = []
    raised: Counter[str] = Counter()
    lock = threading.Lock()

    def redeem(name: str) -> None:
        for token in tokens:
            outcome = _redeem(service, token, name)
            with lock:
                if outcome is None:
                    won.append(token)
                else:
                    raised[outcome] += 1

    threads = [threading.Thread(target=redeem, args=(f"redeemer-{number}-{each}",)) for each in range(redeemers)]
    barrier.wait()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    results.put((won, raised))


def _redeem(service: Invites, token: str, name: str) -> str | None:
    """Redeem, again with the same identity where the store was busy; return the error's name, or None for success."""
    while True:
        try:
            service.redeem(token, redeemer=name, redemption_id=name)
        except StorageBusy:
            continue
        except InvitesError as error:
            return type(error).__name__
        return None


def main() -> int:
    """Run the race as a command."""
    parser = argparse.ArgumentParser(prog="redeem-race", description=__doc__)
    parser.add_argument("--invites", type=int, default=10_000)
    parser.add_argument("--redeemers", type=int, default=32)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--database", metavar="URL", help="an empty database; the default is one in a new folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_race(
            options.database or f"sqlite:///{Path(folder) / 'race.db'}",
            invites=options.invites,
            redeemers=options.redeemers,
            processes=options.processes,
        )
    print(outcome)
    print("every invite had exactly one winner" if outcome.holds else "NOT every invite had exactly one winner")
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
