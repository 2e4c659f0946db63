"""Processes are killed at random instants under load: all that was acknowledged is there afterwards, and once."""

from __future__ import annotations

import argparse
import http.client
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from invites_core import ApiKey, ApiKeys, KeyPolicy, Quota, open_store
from invites_core.keys import SCOPES
from invites_core.stores import parse_sqlite_path
from invites_core.testing.hashing import cheap_hasher
from tests.proofs.kill_audit import Fault, check_next_calls, find_faults
from tests.proofs.kill_callers import PATIENCE, Caller, Scene
from tests.proofs.kill_journal import Journal, KeyLife
from tests.proofs.kill_keys import KeyMaker
from tests.proofs.kill_killer import Killer
from tests.servers import Gunicorn

HOST: Final = "example.com"
APP: Final = "invites_wsgi:create_app()"
MAKERS: Final = 2
QUOTA_KEYS: Final = 8
QUOTA: Final = Quota(100, timedelta(days=36_500))
"""A period that does not end while this runs: what is left of a quota is told by what is there."""

SHOWN_FAULTS: Final = 20
SAMPLE: Final = 20


@dataclass(slots=True)
class Outcome:
    """What the race has shown.

    Attributes:
        kills: How many processes were killed, by kind.
        acknowledged: What was told to be done, by kind.
        faults: What the database says otherwise.
        unexpected: Answers that should never be.
        unanswered: How many requests were cut off without an answer.
        left: How many requests' callers did not wait for the answer.
        repeats: How many requests were sent again with their identity.
        checks: How often everything was compared.
        seconds: How long it took.
    """

    kills: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    faults: set[Fault] = field(default_factory=set)
    unexpected: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    left: int = 0
    repeats: int = 0
    checks: int = 0
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether something was acknowledged under kills, and all of it is there, once."""
        return bool(self.kills and self.checks and self.acknowledged and not self.faults and not self.unexpected)

    def count_faults(self, kind: str) -> int:
        """Count the faults of one kind."""
        return sum(fault.kind == kind for fault in self.faults)


class _Race:
    """A database, and all that was told to those who worked on it."""

    def __init__(self, url: str, folder: Path, *, workers: int, clients: int, app: str, seed: int) -> None:
        self._url, self._folder, self._app = url, folder, app
        self._workers, self._clients = workers, clients
        self._random = random.Random(seed)
        self._rounds: list[tuple[Journal, list[ApiKey]]] = []
        self.outcome = Outcome()
        open_store(url).close()

    def run_round(self, kills: int) -> None:
        """Kill so many times, then stop everything and compare."""
        number = len(self._rounds)
        server = Gunicorn(
            self._folder / "server",
            self._app,
            {"INVITES_DATABASE": self._url, "INVITES_CONFIG": None},
            workers=self._workers,
            options=["--reuse-port"],
            path="/healthz",
        )
        scene = self._make_scene(f"round-{number}", server.port)
        callers = [Caller(scene, each, self._random.getrandbits(32)) for each in range(self._clients)]
        names = [f"{scene.name}-maker-{each}" for each in range(MAKERS)]
        with server:
            makers = [KeyMaker(self._url, self._folder, host=HOST, name=name) for name in names]
            killer = Killer(scene, server, makers, workers=self._workers, seed=self._random.getrandbits(32))
            try:
                scene.is_up.set()
                for caller in callers:
                    caller.start()
                killer.kill(kills)
            finally:
                scene.is_ending.set()
                for maker in makers:
                    maker.kill()
            journal = _collect(scene, callers, makers)
            self.outcome.faults.update(_check_over_http(server.port, journal.keys))
        self.outcome.kills += killer.kills
        self._rounds.append((journal, [issued.key for issued in scene.issued]))
        self._note(journal)
        self._check([self._rounds[-1]])

    def check_all(self) -> None:
        """Compare everything since the beginning once more: what was there must not go later either."""
        self._check(self._rounds)

    def _make_scene(self, name: str, port: int) -> Scene:
        store = open_store(self._url, create=False)
        keys = ApiKeys(store, hasher=cheap_hasher())
        policy = KeyPolicy(scopes=SCOPES, max_uses=None)
        quota_policy = KeyPolicy(quota=QUOTA)
        scene = Scene(
            name,
            port,
            keys.create(HOST, name=name, policy=policy),
            [keys.create(HOST, name=f"{name}-quota-{each}", policy=quota_policy) for each in range(QUOTA_KEYS)],
        )
        store.close()
        return scene

    def _note(self, journal: Journal) -> None:
        self.outcome.acknowledged += journal.count_acknowledged()
        self.outcome.unexpected += journal.unexpected
        self.outcome.unanswered += journal.lost
        self.outcome.left += journal.left
        self.outcome.repeats += journal.repeats

    def _check(self, rounds: Sequence[tuple[Journal, list[ApiKey]]]) -> None:
        store = open_store(self._url, create=False)
        for journal, issued in rounds:
            self.outcome.faults.update(find_faults(store, journal, host=HOST, issued=issued))
        self.outcome.faults.update(check_next_calls(store, host=HOST))
        self.outcome.checks += 1
        store.close()


def _collect(scene: Scene, callers: Sequence[Caller], makers: Sequence[KeyMaker]) -> Journal:
    """Return what all were told, once they have finished what they were at."""
    journal = Journal()
    for caller in callers:
        caller.join(2 * PATIENCE)
        if caller.is_alive() or scene.failure is not None:
            raise RuntimeError("a caller did not come to its end") from scene.failure
        journal.add(caller.journal)
    for maker in makers:
        journal.keys += maker.lives
    return journal


def _check_over_http(port: int, lives: Sequence[KeyLife]) -> list[Fault]:
    """Ask the server that was killed so often about some keys: it takes those that are there, and no deleted one."""
    faults = []
    for expected, wanted in ((200, None), (401, "acknowledged")):
        sample = [life for life in lives if life.combined is not None and life.deletion == wanted][:SAMPLE]
        for life in sample:
            status = _show_key(port, life.combined)
            if status != expected:
                faults.append(Fault("wrong", f"the key {life.name} is answered with {status}, not {expected}"))
    return faults


def _show_key(port: int, combined: str | None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/invites_api/key", headers={"Authorization": f"Bearer {combined}"})
        return connection.getresponse().status
    finally:
        connection.close()


def do_nothing(_: Outcome) -> None:
    """Say nothing while it lasts."""


def run_race(
    url: str,
    folder: Path,
    *,
    kills: int,
    workers: int,
    clients: int,
    every: int = 100,
    app: str = APP,
    seed: int | None = None,
    progress: Callable[[Outcome], None] = do_nothing,
) -> Outcome:
    """Kill processes of a service under load, and compare its database with what its callers were told.

    Args:
        url: The database, made if need be; nothing else works on it.
        folder: Where the server's output and the journals go.
        kills: How many times.
        workers: How many worker processes the server has.
        clients: How many connections call it at the same time.
        every: After how many kills everything is stopped and compared.
        app: What gunicorn serves.
        seed: Chooses what is done and killed; None: something else each time. The instants are never the same.
        progress: Called with what was shown so far, after each comparison.
    """
    started = time.monotonic()
    seed = random.randrange(2**32) if seed is None else seed
    race = _Race(url, folder, workers=workers, clients=clients, app=app, seed=seed)
    for done in range(0, kills, every):
        race.run_round(min(every, kills - done))
        race.outcome.seconds = time.monotonic() - started
        progress(race.outcome)
    if kills > every:
        race.check_all()
    race.outcome.seconds = time.monotonic() - started
    return race.outcome


def format_table(outcome: Outcome) -> str:
    """Return the outcome as people read it."""
    lines = [("kills", outcome.kills.total(), "")]
    lines += [("", count, kind) for kind, count in outcome.kills.most_common()]
    lines += [("acknowledged", count, kind) for kind, count in outcome.acknowledged.items()]
    lines += [("cut off", outcome.unanswered, "requests"), ("left", outcome.left, "requests")]
    lines += [("repeated", outcome.repeats, "requests")]
    lines += [(kind, outcome.count_faults(kind), "") for kind in ("lost", "doubled", "wrong")]
    lines += [("unexpected", count, answer) for answer, count in outcome.unexpected.items()]
    shown = [f"{title:<14}{count:>9}  {what}".rstrip() for title, count, what in lines]
    shown += [f"{fault.kind}: {fault.what}" for fault in sorted(outcome.faults, key=str)[:SHOWN_FAULTS]]
    return "\n".join([*shown, f"compared {outcome.checks} times, {outcome.seconds:.0f} s"])


def print_progress(outcome: Outcome) -> None:
    """Say on stderr how far it is."""
    kills, faults = outcome.kills.total(), len(outcome.faults)
    print(f"{kills} kills in {outcome.seconds:.0f} s, {faults} faults", file=sys.stderr, flush=True)


def _make_absolute(url: str) -> str:
    """Return the URL as the server understands it, which runs in another folder."""
    path = parse_sqlite_path(url)
    return url if path is None else f"sqlite:///{path.absolute()}"


def main() -> int:
    """Run the race as a command."""
    parser = argparse.ArgumentParser(prog="kill-race", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100, help="after so many kills all is stopped and compared")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, help="chooses what is done and killed; something else each time without")
    parser.add_argument("--database", metavar="URL", help="an empty database; the default is one in a new folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_race(
            _make_absolute(options.database or f"sqlite:///{Path(folder) / 'race.db'}"),
            Path(folder),
            kills=options.kills,
            workers=options.workers,
            clients=options.clients,
            every=options.every,
            seed=options.seed,
            progress=print_progress,
        )
    print(format_table(outcome))
    verdict = "all that was acknowledged is there, once"
    print(verdict if outcome.holds else f"NOT {verdict}")
    return 0 if outcome.holds else 1


if __name__ == "__main__":
    sys.exit(main())
