"""Whether what an answer acknowledges was synced before its first byte: seen under SQLite, and at the socket.

Run as a module it is ``invites-api serve`` with a layer under SQLite that follows the log of the database, and with a
recorder before each socket. Every worker appends a line to its journal for each token and each redemption_id that it
acknowledges, before the bytes go out.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import apsw

from invites_core.invites import Invite
from invites_core.store import Grant, GrantTaken
from invites_core.stores.sqlite import SqliteStore
from invites_core.stores.sqlite_database import SqliteDatabase
from tests.proofs.faulty_vfs import Layer

__all__ = ["JOURNAL_VARIABLE", "TAMPERINGS", "WatchedLog", "count_journal", "set_synchronous"]

JOURNAL_VARIABLE: Final = "SYNC_ORDER_JOURNAL"

_FRAME_HEADER: Final = 24
"""Its size; a page follows, each in a call of its own (sqlite.org/fileformat2.html#the_write_ahead_log)."""

_NEW_ANSWER: Final = b"HTTP/1."
_ACKNOWLEDGED: Final = re.compile(rb'\r\nLocation: [^\r\n]*\?([A-Za-z0-9_-]{24})\r\n|"redemption_id": "([^"]+)"')


class WatchedLog(Layer):
    """Knows which pages of the log are synced, by what SQLite writes and syncs in this process.

    A page counts once its transaction is committed: once the last frame of it, which says so, was written before the
    sync began. There is one writer at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._page = 0
        self._is_last = False
        self._written: dict[int, bytes] = {}
        self._committed: dict[int, bytes] = {}
        self._under_sync: dict[int, dict[int, bytes]] = {}
        self._synced: dict[int, bytes] = {}
        self.commits = 0
        """How many transactions were written to the log."""

    @property
    def is_synced(self) -> bool:
        """Whether there is nothing in the log that was not synced."""
        with self._lock:
            return not self._written and not self._committed

    def take_synced(self) -> list[bytes]:
        """Return the pages that are synced at this moment."""
        with self._lock:
            return list(self._synced.values())

    def answer(self, call: str, path: str, arguments: tuple[Any, ...]) -> int:
        """Remember what was committed when a sync begins: what comes later is not part of it."""
        if call == "xSync" and path.endswith("-wal"):
            with self._lock:
                self._under_sync[threading.get_ident()] = dict(self._committed)
        return apsw.SQLITE_OK

    def note(self, call: str, path: str, arguments: tuple[Any, ...]) -> None:
        """Follow the log."""
        if not path.endswith("-wal"):
            return
        with self._lock:
            if call == "xWrite":
                data, amount, _ = arguments
                self._follow_write(ctypes.string_at(data, amount))
            elif call == "xSync":
                for page, content in self._under_sync.pop(threading.get_ident()).items():
                    self._synced[page] = content
                    if self._committed.get(page) is content:
                        del self._committed[page]

    def _follow_write(self, data: bytes) -> None:
        if len(data) == _FRAME_HEADER:
            self._page = int.from_bytes(data[:4], "big")
            # The size of the database after the commit, in the last frame of a transaction; else 0.
            self._is_last = data[4:8] != bytes(4)
        elif len(data) > 32:
            self._written[self._page] = data
            if self._is_last:
                self._committed |= self._written
                self._written = {}
                self.commits += 1


class _Answers:
    """Looks at what is sent, before it is."""

    def __init__(self, log: WatchedLog, journal: Path) -> None:
        self._log, self._journal = log, journal
        self._of_thread = threading.local()

    def install(self) -> None:
        """Stand before every socket of this process, whichever way it sends."""
        for name in ("send", "sendall"):
            setattr(socket.socket, name, self._watch(getattr(socket.socket, name)))

    def _watch(self, send: Callable[..., Any]) -> Callable[..., Any]:
        def look_and_send(sock: socket.socket, data: bytes, *arguments: Any) -> Any:
            self.look(bytes(data))
            sent = send(sock, data, *arguments)
            self.do_late()
            return sent

        return look_and_send

    def look(self, data: bytes) -> None:
        """Write to the journal what a piece of an answer acknowledges."""
        if data.startswith(_NEW_ANSWER):
            # A thread sends one answer at a time; its head can go out before its body.
            self._of_thread.synced = self._log.take_synced()
        synced = getattr(self._of_thread, "synced", [])
        for found in _ACKNOWLEDGED.finditer(data):
            what = found[1] or found[2]
            word = "synced" if any(what in page for page in synced) else "early"
            with self._journal.with_suffix(f".{os.getpid()}").open("a") as opened:
                opened.write(f"{what.decode()} {word}\n")

    def do_late(self) -> None:
        """Do what this thread has put off until its answer is out."""
        while _put_off.calls:
            _put_off.calls.pop()()


class _PutOff(threading.local):
    """What a thread has still to do."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []


_put_off: Final = _PutOff()


def count_journal(journal: Path) -> tuple[set[str], Counter[str]]:
    """Return what was acknowledged, and how often ``synced`` and ``early``, over all workers."""
    lines = [
        line.split()
        for file in journal.parent.glob(f"{journal.stem}.*")
        for line in file.read_text("utf-8").splitlines()
    ]
    return {what for what, _ in lines}, Counter(word for _, word in lines)


def set_synchronous(mode: str) -> None:
    """Let every connection have another mode than FULL."""
    set_up = SqliteDatabase._set_up

    def set_up_carelessly(self: SqliteDatabase, connection: apsw.Connection) -> None:
        set_up(self, connection)
        connection.execute(f"PRAGMA synchronous = {mode}").fetchall()

    SqliteDatabase._set_up = set_up_carelessly  # type: ignore[method-assign]  # what must never be done


def answer_first() -> None:
    """Let creations be answered before they are written."""
    add_granted = SqliteStore.add_granted

    def add_later(self: SqliteStore, grant: Grant, invites: Sequence[Invite]) -> GrantTaken:
        _put_off.calls.append(lambda: add_granted(self, grant, invites))
        return GrantTaken(outcome="taken", tokens=grant.tokens, created_at=grant.now)

    SqliteStore.add_granted = add_later  # type: ignore[method-assign]  # what must never be done


TAMPERINGS: Final[dict[str, Callable[[], None]]] = {
    "none": lambda: None,
    "synchronous=OFF": lambda: set_synchronous("OFF"),
    "synchronous=NORMAL": lambda: set_synchronous("NORMAL"),
    "answer-first": answer_first,
}
"""What can be done to the service before it starts."""


def main() -> None:
    """Be ``invites-api``, watched; the first argument says what is done to it."""
    from invites_wsgi.cli import main as run_command

    TAMPERINGS[sys.argv.pop(1)]()
    log = WatchedLog()
    log.install()
    _Answers(log, Path(os.environ[JOURNAL_VARIABLE])).install()
    run_command()


if __name__ == "__main__":
    main()
