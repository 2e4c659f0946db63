"""How the writers of one process share commits, so that a machine goes as fast as its disk can sync in batches.

Whoever finds nobody leading leads: it begins a transaction, runs the changes of all who wait, each in a savepoint of
its own, and commits once for all of them. Those who come meanwhile wait for the next batch, which the first of them
leads. Nothing runs in the background, and a process that is killed loses only what it had not acknowledged.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, TypeVar

import apsw

from invites_core.errors import InvitesError, OutcomeUnknown, StorageError
from invites_core.waiting import Signal, get_waiting

__all__ = ["WriteQueue"]

T = TypeVar("T")

LARGEST_BATCH: Final = 64
"""How many changes share a commit at most; it bounds how long one transaction holds the write lock."""

Change = Callable[[apsw.Connection], Any]
Turn = Callable[[float], AbstractContextManager[apsw.Connection]]


class _Waiter:
    """One change on its way: in the queue, taken into a batch, or done."""

    __slots__ = ("change", "error", "leads", "result", "taken", "wake")

    def __init__(self, change: Change, wake: Signal) -> None:
        self.change = change
        self.result: Any = None
        self.error: BaseException | None = None
        self.taken = False
        self.leads = False
        # Given when there is news.
        self.wake = wake


class WriteQueue:
    """The queue of one process. A child makes its own after a fork."""

    def __init__(self, *, turn: Turn, translate: Callable[[apsw.Error], StorageError]) -> None:
        """Take what the database does for it.

        Args:
            turn: Opens a transaction that holds the write lock, by a deadline of ``time.monotonic``, and gives its
                connection; leaving it rolls back what is not committed.
            translate: Turns the driver's error into ours.
        """
        self._turn = turn
        self._translate = translate
        self._lock = threading.Lock()
        self._waiting: deque[_Waiter] = deque()
        self._led = False

    def write(self, change: Callable[[apsw.Connection], T], *, timeout: float) -> T:
        """Run a change in a batch, and return what it returned once the batch's commit is on the disk.

        Raises:
            StorageBusy: No transaction could begin within ``timeout`` seconds; nothing was changed.
            StorageError: The change, or the whole batch, failed; nothing was changed.
            OutcomeUnknown: The commit failed, and may yet come true after a crash.
        """
        deadline = time.monotonic() + timeout
        waiting = get_waiting()
        me = _Waiter(change, waiting.make_signal())
        with self._lock:
            self._waiting.append(me)
            me.leads, self._led = not self._led, True
        if not me.leads:
            try:
                self._wait(me, deadline)
            except BaseException:
                self._leave(me)
                raise
        if me.leads:
            try:
                waiting.run(partial(self._lead, me, deadline))
            except RuntimeError as error:
                self._leave(me)
                raise StorageError("no thread to write with") from error
        if me.error is not None:
            raise me.error
        result: T = me.result
        return result

    def _wait(self, me: _Waiter, deadline: float) -> None:
        """Wait until the change is done, or until it is this thread's turn to lead."""
        if me.wake.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return
        with self._lock:
            if me.leads:
                return
            if not me.taken:
                self._waiting.remove(me)
                me.error = self._translate(apsw.BusyError())
                return
        # Once taken, the change may be in the commit that is under way: only its outcome tells.
        me.wake.acquire()

    def _leave(self, me: _Waiter) -> None:
        """Take a thread out that a signal interrupted while it waited: nobody else would do what it was chosen for."""
        with self._lock:
            leads, me.leads = me.leads, False
            if not leads:
                # It may have withdrawn, or been taken, just before.
                if me in self._waiting:
                    self._waiting.remove(me)
                return
        self._hand_over(me, [])

    def _lead(self, me: _Waiter, deadline: float) -> None:
        """Commit for all who wait; whatever ends this, everybody in the batch is told an outcome."""
        batch: list[_Waiter] = []
        committing = committed = False
        try:
            with self._turn(deadline) as connection:
                self._take_batch(batch)
                for waiter in batch:
                    self._run(connection, waiter, alone=len(batch) == 1)
                if any(waiter.error is None for waiter in batch):
                    committing = True
                    connection.execute("COMMIT")
                    committed = True
        except BaseException as error:
            for waiter in batch or [me]:
                # Who failed before has failed for a reason of its own.
                if waiter.error is None:
                    waiter.error = self._explain(error, committing=committing)
            if not isinstance(error, Exception):
                raise
        finally:
            if not committed:
                for waiter in batch or [me]:
                    # Nobody is told of a success that there was not, whatever went wrong on the way here.
                    if waiter.error is None:
                        waiter.error = OutcomeUnknown("the write was interrupted; whether it was kept is not known")
            self._hand_over(me, batch)

    def _take_batch(self, batch: list[_Waiter]) -> None:
        """Take the leader and those behind it, as late as possible, so that the batch is as large as it can be."""
        with self._lock:
            # The leader is the first in the queue, or came to an empty one.
            for _ in range(min(LARGEST_BATCH, len(self._waiting))):
                batch.append(self._waiting[0])
                self._waiting.popleft().taken = True

    def _run(self, connection: apsw.Connection, waiter: _Waiter, *, alone: bool) -> None:
        """Run one change so that its failure is its own."""
        if not alone:
            connection.execute("SAVEPOINT one")
        try:
            waiter.result = waiter.change(connection)
        except Exception as error:
            if not connection.in_transaction:
                # SQLite has rolled back everything, as it may on a full disk: nobody's change is there any more.
                raise
            waiter.error = self._translated(error)
            if not alone:
                connection.execute("ROLLBACK TO one")
        if not alone:
            connection.execute("RELEASE one")

    def _hand_over(self, me: _Waiter, batch: list[_Waiter]) -> None:
        """Let the next in the queue lead, and tell the batch that it is done."""
        with self._lock:
            if not me.taken:
                self._waiting.remove(me)
            following = self._waiting[0] if self._waiting else None
            if following is None:
                self._led = False
            else:
                following.leads = True
        # First, so that the disk does not rest while the others are woken.
        if following is not None:
            following.wake.release()
        for waiter in batch:
            if waiter is not me:
                waiter.wake.release()

    def _explain(self, error: BaseException, *, committing: bool) -> InvitesError:
        """Return what a failure of the whole batch means to one who waits; each gets an error of its own."""
        if committing and not isinstance(error, apsw.BusyError):
            # A commit whose sync failed is rolled back in every view, and its frames can still be found in the log
            # when the database is opened after a crash: such an error means "unknown", not "no".
            reason = self._translate(error) if isinstance(error, apsw.Error) else "the commit was interrupted"
            explained: InvitesError = OutcomeUnknown(f"{reason}; whether the change was kept is not known")
        elif isinstance(error, apsw.Error):
            explained = self._translate(error)
        elif isinstance(error, InvitesError):
            explained = type(error)(str(error))
        else:
            explained = StorageError("the write was interrupted")
        explained.__cause__ = error
        return explained

    def _translated(self, error: Exception) -> Exception:
        if not isinstance(error, apsw.Error):
            return error
        translated = self._translate(error)
        translated.__cause__ = error
        return translated
