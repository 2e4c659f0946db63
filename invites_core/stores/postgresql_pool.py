"""The connections of each process to a PostgreSQL database: how many there are, and how one is taken that works."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final, Self

import psycopg
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from invites_core.errors import InvitesError, StorageBusy, StorageError
from invites_core.process import PerProcess
from invites_core.stores.permits import Permits
from invites_core.stores.pool_stats import PoolStats
from invites_core.stores.postgresql_connection import GRACE_SECONDS, Connection, Overdue
from invites_core.stores.postgresql_errors import READ_ONLY, first_line, is_lost
from invites_core.waiting import get_waiting

__all__ = ["PostgresqlPool"]

SLICE_SECONDS: Final = 0.1
"""How often whoever waits for a new connection looks whether it could not be made."""


class _Process:
    """What one process holds.

    Attributes:
        pool: The driver's pool.
        free: As many as there may be connections: who waits for one that others use waits here, in order.
        lock: Held while the pool is opened.
        opened: Whether it was.
        failure: How the last attempt to connect failed that did.
        failed_at: When, in ``time.monotonic``.
        doubted_at: When a connection was last found that did not answer.
        hung_at: When the server was last asked in vain to stop what it does.
        waiting: How many wait for one that others use.
        retries: How many transactions were run again.
    """

    __slots__ = (
        "doubted_at",
        "failed_at",
        "failure",
        "free",
        "hung_at",
        "lock",
        "opened",
        "pool",
        "retries",
        "waiting",
    )

    def __init__(self, pool: ConnectionPool[Connection]) -> None:
        self.pool = pool
        self.free = Permits(pool.max_size)
        self.lock = threading.Lock()
        self.opened = False
        self.failure: psycopg.Error | None = None
        self.failed_at = 0.0
        self.doubted_at = 0.0
        self.hung_at = float("-inf")
        self.waiting = 0
        self.retries = 0


class PostgresqlPool:
    """A pool in each process, opened at first use, so that nothing is carried across a fork."""

    def __init__(self, options: Mapping[str, Any], *, max_connections: int, timeout: float, location: str) -> None:
        """Take what connections are made from; none is made yet.

        Args:
            options: The arguments of ``psycopg.connect``.
            max_connections: How many a process opens at most.
            timeout: How long a statement on them may take, in seconds.
            location: The database, for people.
        """
        self._options = dict(options)
        self._max_connections = max_connections
        self._timeout = timeout
        self._location = location
        self._closed = False
        self._process = PerProcess(self._make_process)

    @contextlib.contextmanager
    def borrow(self, deadline: float) -> Iterator[Connection]:
        """Take a connection that works, and put it back in the end, or throw it away.

        Raises:
            StorageBusy: All were in use until the deadline, in ``time.monotonic``.
            StorageError: None can be made, or the pool is closed.
        """
        process = self._open()
        if not process.free.take_at_once():
            self._wait(process, deadline)
        try:
            connection = self._take(process, deadline)
            connection.is_committing = False
            connection.deadline = max(deadline, time.monotonic()) + GRACE_SECONDS
            try:
                yield connection
            except BaseException as error:
                _throw_away_if_spoiled(process, connection, error)
                raise
            finally:
                connection.used_at = time.monotonic()
                process.pool.putconn(connection)
        finally:
            process.free.give_back()

    def _wait(self, process: _Process, deadline: float) -> None:
        with process.lock:
            process.waiting += 1
        try:
            if not process.free.take(timeout=deadline - time.monotonic()):
                raise StorageBusy(f"the database {self._location} is busy: no connection is free")
        finally:
            with process.lock:
                process.waiting -= 1

    def count_retry(self) -> None:
        """Note that a transaction is run again."""
        process = self._process.get()
        with process.lock:
            process.retries += 1

    def find_stats(self) -> PoolStats | None:
        """Return what the pool of this process is doing, or None if it was not opened yet."""
        process = self._process.peek()
        if process is None or not process.opened:
            return None
        found = process.pool.get_stats()
        return PoolStats(
            size=found.get("pool_size", 0),
            idle=found.get("pool_available", 0),
            waiting=process.waiting,
            retries=process.retries,
        )

    def close(self) -> None:
        """Close the connections of this process; none is given after that."""
        self._closed = True
        process = self._process.peek()
        if process is not None and process.opened:
            process.pool.close()

    def _open(self) -> _Process:
        process = self._process.get()
        if self._closed:
            raise StorageError("the store is closed")
        if not process.opened:
            with process.lock:
                if not process.opened:
                    process.pool.open()
                    process.opened = True
        return process

    def _take(self, process: _Process, deadline: float) -> Connection:
        began = time.monotonic()
        while True:
            remaining = deadline - time.monotonic()
            try:
                get = partial(process.pool.getconn, timeout=max(0.001, min(SLICE_SECONDS, remaining)))
                # One that is there is had at once, and one that has to be made is waited for.
                connection = get() if process.pool.get_stats().get("pool_available") else get_waiting().run(get)
            except PoolClosed as error:
                raise StorageError("the store is closed") from error
            except PoolTimeout as error:
                failure = process.failure
                if failure is not None and process.failed_at >= began:
                    raise StorageError(
                        f"cannot reach the database {self._location}: {first_line(failure)}"
                    ) from failure
                if remaining <= 0:
                    raise StorageBusy(f"the database {self._location} did not answer in time") from error
                continue
            if self._works(process, connection):
                return connection
            if remaining <= 0:
                raise StorageBusy(f"the database {self._location} did not answer in time")

    def _works(self, process: _Process, connection: Connection) -> bool:
        """Tell whether a connection works; one that does not goes back, to be replaced."""
        works = False
        try:
            # After one that did not answer the others that were idle meanwhile are not waited for, one by one.
            works = connection.used_at > process.doubted_at and connection.works()
            if not works and connection.used_at > process.doubted_at:
                process.doubted_at = time.monotonic()
        finally:
            if not works:
                connection.close()
                process.pool.putconn(connection)
        return works

    def _make_process(self) -> _Process:
        owner = self

        class Pooled(Connection):
            """A connection whose failures to be made are remembered, for those who wait for one."""

            @classmethod
            def connect(cls, *args: Any, **options: Any) -> Self:
                process = owner._process.get()
                try:
                    return super().connect(*args, **options)
                except psycopg.Error as error:
                    process.failure, process.failed_at = error, time.monotonic()
                    raise

        return _Process(
            ConnectionPool(
                connection_class=Pooled,
                kwargs=self._options,
                min_size=0,
                max_size=self._max_connections,
                open=False,
                configure=lambda connection: connection.set_up(self._timeout),
                # Who cannot connect is told at once, and whoever comes next tries again: see _take.
                reconnect_timeout=0,
                num_workers=2,
                name="invites-api",
            )
        )


def _throw_away_if_spoiled(process: _Process, connection: Connection, error: BaseException) -> None:
    """Close a connection that is not to be used again.

    A server that ended it, or takes no writes, is not asked again on the same connection: behind the same name there
    may be another by now.
    """
    if isinstance(error, InvitesError):
        return
    if isinstance(error, psycopg.Error) and not is_lost(error) and error.sqlstate not in READ_ONLY:
        return
    if isinstance(error, Overdue):
        # Not left behind at work: a commit that waits for a standby has no time limit, and would keep its connection
        # from all others for as long as the standby is away.
        get_waiting().run(partial(_cancel, process, connection))
    connection.close()


def _cancel(process: _Process, connection: Connection) -> None:
    """Let the server stop what it does, unless it was just asked that in vain: then those who wait are told sooner."""
    if time.monotonic() - process.hung_at < GRACE_SECONDS:
        return
    try:
        connection.cancel_safe(timeout=GRACE_SECONDS)
    except psycopg.Error:
        process.hung_at = time.monotonic()
