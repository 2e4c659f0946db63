"""A connection to PostgreSQL that waits no longer than it may, and knows how far it is."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.waiting import Ready, Wait

from invites_core.waiting import Waiting, get_waiting

__all__ = ["GRACE_SECONDS", "Connection", "Overdue", "Row"]

T = TypeVar("T")
Row = tuple[Any, ...]

CHECKED_AFTER_SECONDS: Final = 5.0
"""A connection that was idle for longer is asked before it is used."""
GRACE_SECONDS: Final = 1.0
"""How much longer than the server's own time limit an answer is waited for."""

# Whoever turned the wait for the disk off for a whole server did not mean what is acknowledged here. What waits for
# more than the disk of one server (remote_apply and the like) stays.
_SET_UP: Final = (
    "SELECT set_config('statement_timeout', %(limit)s, false), set_config('lock_timeout', %(lock)s, false),"
    # What is written here about who waits for whom, and sees what after that, holds at this level.
    " set_config('default_transaction_isolation', 'read committed', false),"
    " set_config('idle_in_transaction_session_timeout', %(idle)s, false), set_config('synchronous_commit',"
    " CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END,"
    " false)"
)


class Connection(psycopg.Connection[Row]):
    """A connection that knows how far it is, and that waits no longer than it may.

    Attributes:
        deadline: When to give up waiting for an answer, in ``time.monotonic``; None: never.
        is_committing: Whether what is under way would be kept if it came to its end.
        used_at: When it was last known to work, in ``time.monotonic``.
    """

    deadline: float | None = None
    is_committing: bool = False
    used_at: float = 0.0

    def wait(self, gen: PQGen[T], *args: Any, **options: Any) -> T:
        """Wait for an answer until the deadline."""
        waiting = get_waiting()
        if self.deadline is None:
            return super().wait(gen, *args, **options)
        if waiting.shares_thread:
            return self._wait_among_others(waiting, _limited(gen, self.deadline), self.deadline)
        return super().wait(_limited(gen, self.deadline), *args, **options)

    def _wait_among_others(self, waiting: Waiting, gen: PQGen[T], deadline: float) -> T:
        """Do what the driver's own wait does, and let others go on in this thread."""
        try:
            awaited = next(gen)
            while True:
                reads, writes = bool(awaited & Wait.R), bool(awaited & Wait.W)
                try:
                    is_ready = waiting.wait_for(
                        self.fileno(), reads=reads, writes=writes, timeout=deadline - time.monotonic()
                    )
                except OSError as error:
                    raise psycopg.OperationalError(f"cannot wait for the server: {error}") from error
                # What is not ready after all does no harm: nothing that the driver tries then holds it up.
                awaited = gen.send(Ready(awaited) if is_ready else Ready.NONE)
        except StopIteration as end:
            result: T = end.value
            return result

    def run(self, statement: str, bindings: Mapping[str, Any] | None = None) -> list[Row]:
        """Run one statement and return its rows, none for one that returns no rows."""
        cursor = self.execute(statement.encode(), bindings)
        # By the number of columns: the cursor's description is made anew for every statement, and costs more than it.
        return cursor.fetchall() if cursor.pgresult is not None and cursor.pgresult.nfields else []

    def set_up(self, timeout: float, *, is_limited: bool = True) -> None:
        """Tell a server that was just connected to what holds for this connection.

        Args:
            timeout: How long a statement may take, and wait for a lock, in seconds.
            is_limited: Whether that holds for statements, and not for locks alone.
        """
        limit = round(timeout * 1000)
        self.deadline = time.monotonic() + timeout + GRACE_SECONDS
        self.run(_SET_UP, {"limit": str(limit if is_limited else 0), "lock": str(limit), "idle": str(2 * limit)})
        self.used_at = time.monotonic()
        if not is_limited:
            self.deadline = None

    def roll_back(self) -> None:
        """Undo the transaction, where the server still listens; where not, the error that led here tells."""
        if self.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            with contextlib.suppress(psycopg.Error):
                self.execute(b"ROLLBACK")

    def works(self) -> bool:
        """Tell whether it can be used: at once if it was in use just now, else by asking the server."""
        if time.monotonic() - self.used_at < CHECKED_AFTER_SECONDS and not self._has_news():
            return True
        self.deadline = time.monotonic() + GRACE_SECONDS
        try:
            self.execute(b"")
        except psycopg.Error:
            return False
        return True

    def _has_news(self) -> bool:
        """Tell whether the server said something unasked, as it does when it ends a connection."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN | select.POLLERR | select.POLLHUP)
        return bool(poll.poll(0))


class Overdue(psycopg.OperationalError):
    """The server did not answer in time."""


def _limited(gen: PQGen[T], deadline: float) -> PQGen[T]:
    """Pass on what a generator of the driver waits for, and end it when the time is over."""
    try:
        awaited = next(gen)
        while True:
            ready = yield awaited
            if not ready and time.monotonic() >= deadline:
                raise Overdue("the server did not answer in time")
            awaited = gen.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result
