"""How the writing processes of one machine take turns.

SQLite's own busy handler sleeps in growing steps, so that whoever waits longest is asked least. A lock on a file
beside the database makes the processes queue; it only orders them, and SQLite's own lock decides.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from invites_core.errors import StorageBusy

__all__ = ["FileTurn"]

LEAST_SECONDS: Final = 0.02
"""How long a wait lasts at least: a thread that is just getting the lock needs a moment to say so."""


class _Wait:
    """A wait for the lock, in a thread that stands in the kernel's queue.

    The kernel serves those who block in the order in which they came, and at once; who asks again and again is served
    by chance. It knows no time limit, so a thread blocks, and whoever waits for too long leaves it behind. The next to
    wait takes it over; what it gets while nobody does, it lets go of.
    """

    def __init__(self, descriptor: int) -> None:
        # Of its own: the other may be closed, and its number be another file's, before this wait is over.
        self._descriptor = os.dup(descriptor)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._is_held = False
        self._is_wanted = False
        try:
            threading.Thread(target=self._run, name="invites-turn", daemon=True).start()
        except RuntimeError:
            os.close(self._descriptor)
            raise

    def ends_before(self, deadline: float) -> bool | None:
        """Wait until the lock is held, and tell whether it came to that before a time in ``time.monotonic``.

        Returns:
            None where the wait was over before anybody took it over.
        """
        with self._lock:
            if self._ended.is_set():
                return None
            self._is_wanted = True
        self._ended.wait(max(LEAST_SECONDS, deadline - time.monotonic()))
        with self._lock:
            self._is_wanted = False
            return self._is_held

    def _run(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            with self._lock:
                self._is_held = self._is_wanted
                if not self._is_held:
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)
                self._ended.set()
        except OSError:
            # No lock, which only orders the writers: whoever waits is told that it took too long.
            pass
        finally:
            os.close(self._descriptor)
            self._ended.set()


class FileTurn:
    """The lock file of one process. A child opens its own after a fork: an inherited descriptor excludes nobody."""

    def __init__(self, database: Path) -> None:
        """Take the path of the database; the lock file is made at the first turn, with the database's owner."""
        self._database = database
        self._descriptor: int | None = None
        self._usable = True
        self._wait: _Wait | None = None

    @contextlib.contextmanager
    def take(self, deadline: float) -> Iterator[None]:
        """Hold the lock inside.

        Raises:
            StorageBusy: Others held it until the deadline, in ``time.monotonic``.
        """
        descriptor = self._open()
        if descriptor is None:
            yield
            return
        try:
            self._lock(descriptor, deadline)
        except StorageBusy:
            # Which is an OSError as well.
            raise
        except (OSError, RuntimeError):
            # A file system without such locks, or no thread to be had: SQLite's own lock decides alone.
            self.close()
            yield
            return
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _lock(self, descriptor: int, deadline: float) -> None:
        # While a thread of an earlier turn is in the queue nobody else asks: the lock belongs to the open file, and
        # what one gets all have.
        held = None if self._wait is None else self._wait.ends_before(deadline)
        while held is None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                self._wait = _Wait(descriptor)
                held = self._wait.ends_before(deadline)
        if not held:
            raise StorageBusy(f"the database {self._database} is busy")
        self._wait = None

    def close(self) -> None:
        """Close the lock file."""
        self._usable = False
        self.release()

    def release(self) -> None:
        """Close the lock file until the next turn: a child that inherited it would keep its parent's lock alive."""
        self._wait = None
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _open(self) -> int | None:
        """Return the open lock file, or None where there can be none: it is no condition for being right."""
        if self._descriptor is None and self._usable:
            try:
                self._descriptor = self._make()
            except OSError:
                self._usable = False
        return self._descriptor

    def _make(self) -> int:
        path = f"{self._database}-lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            owner = self._database.stat()
            # Only root can give it away, and must: the service's user could not open it otherwise.
            if os.geteuid() == 0:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            if os.fstat(descriptor).st_uid == os.geteuid():
                os.fchmod(descriptor, 0o600)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
