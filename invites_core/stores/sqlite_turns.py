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

from invites_core.errors import StorageBusy

__all__ = ["FileTurn"]


class _Wait:
    """One wait for the lock, in a thread that stands in the kernel's queue.

    The kernel serves those who block in the order in which they came, and at once; who asks again and again is served
    by chance. It knows no time limit, so a thread blocks, and whoever waits too long leaves it behind: what it gets
    after that it lets go of.
    """

    def __init__(self, descriptor: int) -> None:
        # Of its own: the other may be closed, and its number be another file's, before this wait is over.
        self._descriptor = os.dup(descriptor)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._is_ours = False
        self._is_left = False
        threading.Thread(target=self._run, name="invites-turn", daemon=True).start()

    def ends_before(self, deadline: float) -> bool:
        """Wait until the lock is held, and tell whether it came to that before a time in ``time.monotonic``."""
        self._ended.wait(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._is_left = not self._is_ours
            return self._is_ours

    def _run(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            with self._lock:
                self._is_ours = not self._is_left
                if self._is_left:
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)
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
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not _Wait(descriptor).ends_before(deadline):
                raise StorageBusy(f"the database {self._database} is busy") from None
        except OSError:
            # A file system without such locks: SQLite's own lock decides alone.
            self.close()
            yield
            return
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock file."""
        self._usable = False
        self.release()

    def release(self) -> None:
        """Close the lock file until the next turn: a child that inherited it would keep its parent's lock alive."""
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
