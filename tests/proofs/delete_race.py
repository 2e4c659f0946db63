"""Keys are deleted while several warm workers create with them: nothing that began afterwards is accepted.

The workers are those of one server, or of several nodes on one database.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from invites_core import ApiKeys, Invites, IssuedKey, delete_key_with_invites, open_store
from tests.proofs.nodes import make_absolute, serving_nodes
from tests.servers import Server

HOST = "example.com"
WARM_UP = 4
"""How many requests each caller sends with a key before it may be deleted."""


@dataclass(slots=True)
class Outcome:
    """What the race has shown.

    Attributes:
        keys: How many keys were deleted.
        workers: How many worker processes served them, on all nodes.
        accepted: How many requests were accepted while their key was there.
        late: How many requests that began after the deletion had returned were sent.
        accepted_late: How many of those were accepted.
        busy: How many requests with a key that a worker did not know yet were told to try again, before its deletion.
        unexpected: Other answers than 201 and 403.
        pending: How many invites of deleted keys are pending; only with their invites none may be.
        seconds: How long it took.
    """

    keys: int
    workers: int
    accepted: int = 0
    late: int = 0
    accepted_late: int = 0
    busy: int = 0
    unexpected: list[int] = field(default_factory=list)
    pending: int = 0
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether every key was refused from its deletion on, after having worked."""
        return self.accepted >= self.keys and self.late >= self.keys and not self.accepted_late and not self.unexpected


class _Round:
    """The life of one key: callers that create with it as fast as they can, and its deletion amid that."""

    def __init__(self, issued: IssuedKey, outcome: Outcome, lock: threading.Lock) -> None:
        self._headers = {"Authorization": f"Bearer {issued.combined}"}
        self._outcome = outcome
        self._lock = lock
        self._warm = threading.Semaphore(0)
        self._is_deleted = threading.Event()
        self._is_ending = False

    def wait_until_warm(self, callers: int) -> None:
        """Return once every caller has been accepted some times."""
        for _ in range(callers):
            if not self._warm.acquire(timeout=30):
                raise RuntimeError("a caller was not served in time")

    def note_deletion_begins(self) -> None:
        """Let refusals be expected from here on."""
        self._is_ending = True

    def note_deletion(self) -> None:
        """Let every request that begins from here on count as late."""
        self._is_deleted.set()

    def call(self, port: int) -> None:
        """Create until some requests in a row that began after the deletion were answered."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            count = late = 0
            while late < WARM_UP:
                # Asked before the request is sent: what began before the deletion returned may be accepted.
                is_late = self._is_deleted.is_set()
                connection.request("POST", "/invites_api", headers=self._headers)
                response = connection.getresponse()
                response.read()
                self._note(response.status, is_late)
                late += is_late
                if response.status == 201:
                    count += 1
                    if count == WARM_UP:
                        self._warm.release()

    def _note(self, status: int, is_late: bool) -> None:
        with self._lock:
            self._outcome.late += is_late
            if status == 201:
                self._outcome.accepted += not is_late
                self._outcome.accepted_late += is_late
            elif status == 503 and not is_late:
                self._outcome.busy += 1
            elif status != 403 or not (is_late or self._is_ending):
                self._outcome.unexpected.append(status)


@contextlib.contextmanager
def serving(folder: Path, database: Path, workers: int) -> Iterator[Server]:
    """Serve a database with several workers, all of them there."""
    with serving_nodes(folder, f"sqlite:///{database}", nodes=1, workers=workers) as [server]:
        yield server


def run_race(
    folder: Path,
    *,
    keys: int,
    workers: int,
    callers: int,
    with_invites: bool = False,
    nodes: int = 1,
    url: str | None = None,
) -> Outcome:
    """Delete keys that are in use.

    Args:
        folder: Where the servers' output goes, and the database where none is given.
        keys: How many keys, one after another.
        workers: How many worker processes each node has.
        callers: How many connections create with a key at the same time, spread over the nodes.
        with_invites: Whether the invites of a key are taken back with it.
        nodes: How many servers serve the database.
        url: The database, made if need be; None: a new one in the folder.
    """
    url = url or f"sqlite:///{folder / 'race.db'}"
    store = open_store(url)
    service, invites = ApiKeys(store), Invites(store)
    outcome, lock = Outcome(keys=keys, workers=nodes * workers), threading.Lock()
    started = time.monotonic()
    with serving_nodes(folder / "servers", url, nodes=nodes, workers=workers) as servers:
        ports = [servers[number % nodes].port for number in range(callers)]
        for _ in range(keys):
            issued = service.create(HOST)
            one = _Round(issued, outcome, lock)
            threads = [threading.Thread(target=one.call, args=(port,), daemon=True) for port in ports]
            for thread in threads:
                thread.start()
            one.wait_until_warm(callers)
            one.note_deletion_begins()
            if with_invites:
                delete_key_with_invites(service, invites, HOST, issued.key.id, by="race")
            else:
                service.delete(HOST, issued.key.id)
            one.note_deletion()
            for thread in threads:
                thread.join(60)
                if thread.is_alive():
                    raise RuntimeError("a caller was not served in time")
            page = invites.list(HOST, source=issued.key.source, state="pending", limit=1000)
            outcome.pending += len(page.invites)
    store.close()
    outcome.seconds = time.monotonic() - started
    return outcome


def main() -> int:
    """Run the race as a command."""
    parser = argparse.ArgumentParser(prog="delete-race", description=__doc__)
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=1, help="servers on the same database")
    parser.add_argument("--workers", type=int, default=4, help="processes of each server")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--with-invites", action="store_true", help="take the invites back with their key")
    parser.add_argument("--database", metavar="URL", help="an empty database; the default is one in a new folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_race(
            Path(folder),
            keys=options.keys,
            workers=options.workers,
            callers=options.callers,
            with_invites=options.with_invites,
            nodes=options.nodes,
            url=make_absolute(options.database) if options.database else None,
        )
    print(outcome)
    holds = outcome.holds and not (options.with_invites and outcome.pending)
    print("every deleted key was refused at once" if holds else "NOT every deleted key was refused at once")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
