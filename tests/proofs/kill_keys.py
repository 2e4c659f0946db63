"""Processes that make and delete keys through the library, are killed at that, and leave a journal in a file.

A line is appended before and after each call with one write, which the system keeps whatever becomes of the process.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Final

from invites_core import ApiKeys, Invites, KeyUnknown, delete_key_with_invites, open_store
from invites_core.testing.hashing import cheap_hasher
from tests.proofs.kill_journal import KeyLife

PAUSE_SECONDS: Final = 0.01
"""How long a process rests between two keys, so that there are not more of them than can be looked at afterwards."""


class KeyMaker:
    """A process that makes and deletes keys until it is killed, and those that come after it."""

    def __init__(self, url: str, folder: Path, *, host: str, name: str) -> None:
        """Start the first process.

        Args:
            url: The database.
            folder: Where the journals go.
            host: The host of the keys.
            name: A text in the keys' names, which no other maker has.
        """
        self._url, self._folder, self._host, self._name = url, folder, host, name
        self._lives: dict[str, KeyLife] = {}
        self._generation = 0
        self._start()

    def is_at_work(self) -> bool:
        """Whether the process has begun with a key.

        Raises:
            RuntimeError: It has ended by itself.
        """
        if self._process.exitcode is not None:
            raise RuntimeError(f"a process that makes keys has ended by itself: {self._process.exitcode}")
        return self._file.exists() and self._file.stat().st_size > 0

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        _read_journal(self._file, self._lives)

    def restart(self) -> None:
        """Start another process, which begins with the deletions that the killed one was not told the outcome of."""
        self._generation += 1
        self._start()

    @property
    def lives(self) -> list[KeyLife]:
        """The keys of all processes that were killed."""
        return list(self._lives.values())

    def _start(self) -> None:
        name = f"{self._name}-{self._generation}"
        self._file = self._folder / f"{name}.journal"
        unfinished = [
            (life.name, life.id, life.with_invites) for life in self._lives.values() if life.deletion == "unknown"
        ]
        self._process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(self._url, str(self._file), self._host, name, unfinished), daemon=True
        )
        self._process.start()


def _read_journal(file: Path, lives: dict[str, KeyLife]) -> None:
    if not file.exists():
        return
    for line in file.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            # The process was killed amid its last line: what it was told then is not known.
            break
        what, name, value = json.loads(line)
        life = lives.setdefault(name, KeyLife(name))
        if what == "created":
            life.combined = value
        elif what == "invited":
            life.invites.append(value)
        elif what == "deleting":
            life.deletion, life.with_invites = "unknown", value
        elif what == "deleted":
            life.deletion = "acknowledged"


def _work(url: str, file: str, host: str, name: str, unfinished: list[tuple[str, str, bool]]) -> None:
    """Run in a process of its own until it is killed."""
    worker = _Worker(url, file, host)
    for life, key_id, with_invites in unfinished:
        worker.delete(life, key_id, with_invites=with_invites)
    chance, mine, count = random.Random(name), [], 0
    while True:
        count += 1
        life = f"{name}-{count}"
        mine.append((life, worker.create(life, invites=chance.randint(0, 2))))
        if chance.random() < 0.7:
            life, key_id = mine.pop(chance.randrange(len(mine)))
            worker.delete(life, key_id, with_invites=chance.random() < 0.5)
        time.sleep(PAUSE_SECONDS)


class _Worker:
    """What one process works with."""

    def __init__(self, url: str, file: str, host: str) -> None:
        store = open_store(url, create=False)
        self._keys = ApiKeys(store, hasher=cheap_hasher())
        self._invites = Invites(store, keys=store)
        self._host = host
        self._journal = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def create(self, name: str, *, invites: int) -> str:
        """Make a key and some invites with it, and return its id."""
        self._note("creating", name)
        issued = self._keys.create(self._host, name=name)
        self._note("created", name, issued.combined)
        for _ in range(invites):
            self._note("invited", name, self._invites.create(issued.key).token)
        return issued.key.id

    def delete(self, name: str, key_id: str, *, with_invites: bool) -> None:
        """Delete a key, again where nobody knows whether it was; the mark tells that it was."""
        self._note("deleting", name, with_invites)
        try:
            if with_invites:
                delete_key_with_invites(self._keys, self._invites, self._host, key_id, by="kill race")
            else:
                self._keys.delete(self._host, key_id)
        except KeyUnknown:
            if self._keys.find_deletion(key_id) is None:
                raise
        self._note("deleted", name)

    def _note(self, what: str, name: str, value: object = None) -> None:
        os.write(self._journal, f"{json.dumps([what, name, value])}\n".encode())
