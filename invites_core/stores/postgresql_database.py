"""A PostgreSQL database: its connections, and the few ways in which statements are run on them."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import psycopg

from invites_core.errors import InvitesError, StorageBusy, StorageError
from invites_core.process import PerProcess
from invites_core.stores.pool_stats import PoolStats
from invites_core.stores.postgresql_connection import GRACE_SECONDS, Connection, Overdue, Row
from invites_core.stores.postgresql_errors import first_line, is_lost, is_retried, translate
from invites_core.stores.postgresql_pool import PostgresqlPool
from invites_core.stores.postgresql_schema import MIGRATIONS, find_version, migrate
from invites_core.stores.postgresql_url import parse_postgresql_url
from invites_core.stores.schema import SchemaVersion
from invites_core.waiting import get_waiting

__all__ = ["PostgresqlDatabase"]

T = TypeVar("T")
Bindings = Mapping[str, Any]

RETRIES: Final = 20
"""How often a transaction is run again that the server has undone."""


class PostgresqlDatabase:
    """One database for any number of machines, processes and threads.

    Each process has a pool of its own, opened at first use, so that nothing is carried across a fork.
    """

    def __init__(
        self,
        url: str,
        *,
        create: bool,
        migrate: bool = True,
        timeout: float = 5.0,
        migrations: Sequence[str] = MIGRATIONS,
    ) -> None:
        """Connect once, and look at the tables.

        A database that cannot be reached at this moment is no error unless it is to be made: a service that starts
        before its database, or again while that is away, works as soon as it is there. The first call tells.

        Args:
            url: ``postgresql://…``.
            create: Whether to make the tables where there are none.
            migrate: Whether to bring tables of an older version up to date.
            timeout: How long a call waits for the database, in seconds.
            migrations: The list of migrations.

        Raises:
            InvalidRequest: The URL cannot be read.
            StorageError: The database cannot be used, or has no tables and is not to get any.
        """
        self._url = parse_postgresql_url(url)
        self._timeout = timeout
        self._migrations = migrations
        self._migrates = migrate
        self._schema: SchemaVersion | None = None
        self._preparing = PerProcess(threading.Lock)
        # When the last look failed, in time.monotonic, and how.
        self._failure: tuple[float, StorageError | None] = (0.0, None)
        self._pool = PostgresqlPool(
            self._connect_options(),
            max_connections=self._url.max_connections,
            timeout=timeout,
            location=self.location,
        )
        try:
            self._schema = self._prepare(create=create)
        except _Unreachable:
            if create:
                raise

    @property
    def location(self) -> str:
        """The database's URL without user, password and parameters."""
        return self._url.location

    @property
    def schema(self) -> SchemaVersion:
        """The version of the tables.

        Raises:
            StorageError: The database cannot be reached, or its tables cannot be used.
        """
        if self._schema is not None:
            return self._schema
        return get_waiting().run(partial(self._look, time.monotonic()))

    def _look(self, asked: float) -> SchemaVersion:
        """Look which version it is; one does, and the others wait for what it finds, be it a failure."""
        lock = self._preparing.get()
        if not lock.acquire(timeout=max(0.0, asked + self._timeout - time.monotonic())):
            raise StorageBusy(f"the database {self.location} did not answer in time")
        try:
            if self._schema is None:
                failed_at, failure = self._failure
                if failure is not None and failed_at >= asked:
                    raise type(failure)(str(failure)) from failure
                try:
                    self._schema = self._prepare(create=False)
                except StorageError as error:
                    self._failure = time.monotonic(), error
                    raise
            return self._schema
        finally:
            lock.release()

    def read(self, statement: str, bindings: Bindings) -> list[Row]:
        """Run one reading statement and return its rows.

        Raises:
            StorageError: It could not be read.
        """
        try:
            return self._run(lambda connection: connection.run(statement, bindings))
        except _Unstorable:
            # A text that the database cannot hold is in no row.
            return []

    def change(self, statement: str, bindings: Bindings) -> list[Row]:
        """Run one statement that is a transaction of its own, in one round trip, and return its rows.

        Raises:
            Duplicate: A unique constraint refused it; nothing was changed.
            StorageError: It failed; nothing was changed.
            OutcomeUnknown: The connection was lost, and the change may have been kept.
        """

        def attempt(connection: Connection) -> list[Row]:
            connection.is_committing = True
            return connection.run(statement, bindings)

        return self._run(attempt)

    def write(self, change: Callable[[Connection], T]) -> T:
        """Run a change of several statements in one transaction, and return what it returned once that is kept.

        Args:
            change: Called with a connection, again if the server has undone the transaction or the connection was
                lost before its end. What it raises undoes what it did, and is raised again.

        Raises:
            Duplicate: A unique constraint refused a row; nothing was changed.
            StorageError: It failed; nothing was changed.
            OutcomeUnknown: The connection was lost during the commit, and the change may have been kept.
        """

        def attempt(connection: Connection) -> T:
            connection.execute(b"BEGIN")
            try:
                result = change(connection)
            except BaseException:
                connection.roll_back()
                raise
            connection.is_committing = True
            if connection.execute(b"COMMIT").statusmessage != "COMMIT":
                raise StorageError(f"the database {self.location} has undone the change")
            return result

        return self._run(attempt)

    @contextlib.contextmanager
    def own_connection(self, *, is_limited: bool = False) -> Iterator[Connection]:
        """Give a connection of its own, and close it in the end.

        Args:
            is_limited: Whether its statements have the time limit of all others; without it they may take as long as
                they take, as a look at everything does, and wait for locks for no longer than others.

        Raises:
            StorageError: The database cannot be reached, or a statement failed.
        """
        try:
            connection = Connection.connect(**self._connect_options())
        except psycopg.Error as error:
            raise _Unreachable(f"cannot reach the database {self.location}: {first_line(error)}") from error
        try:
            with contextlib.closing(connection):
                connection.set_up(self._timeout, is_limited=is_limited)
                yield connection
        except psycopg.Error as error:
            raise self._explain(error, committing=False) from error

    def close(self) -> None:
        """Close the connections of this process; nothing is read or written after that."""
        self._pool.close()

    def _prepare(self, *, create: bool) -> SchemaVersion:
        newest = len(self._migrations)
        with self.own_connection(is_limited=True) as connection:
            present = find_version(connection)
        is_new = present is None
        if is_new and not create:
            raise StorageError(f"no database at {self.location}: it has no tables of invites-api")
        if present is None or (present < newest and self._migrates):
            with self.own_connection() as connection:
                migrate(connection, self._migrations)
                present = find_version(connection)
        if present is None or present > newest:
            raise StorageError(
                f"the database {self.location} has schema version {present}; this program knows version {newest}"
            )
        return SchemaVersion(present=present, newest=newest, is_new=is_new)

    def _connect_options(self) -> dict[str, Any]:
        # What the URL says comes first; names that begin with "fallback" give way to the environment as well.
        return {
            "fallback_application_name": "invites-api",
            # For each of the hosts; two seconds is the least that libpq knows.
            "connect_timeout": max(2, round(self._timeout / self._url.hosts)),
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "tcp_user_timeout": round((self._timeout + GRACE_SECONDS) * 1000),
            **self._url.conninfo,
            "client_encoding": "UTF8",
            "autocommit": True,
        }

    def find_pool_stats(self) -> PoolStats | None:
        """Return what the pool of this process is doing, or None where it has none yet."""
        return self._pool.find_stats()

    def _run(self, attempt: Callable[[Connection], T]) -> T:
        """Run a transaction, again where that is known to be right."""
        deadline = time.monotonic() + self._timeout
        _ = self.schema
        retries = 0
        was_lost = False
        while True:
            try:
                with self._pool.borrow(deadline) as connection:
                    return attempt(connection)
            except psycopg.Error as error:
                committing = connection.is_committing
                if isinstance(error, psycopg.DataError) and error.sqlstate is None:
                    raise _Unstorable(f"the database {self.location} cannot hold such a text") from error
                if is_retried(error) and retries < RETRIES and time.monotonic() < deadline:
                    retries += 1
                    self._pool.count_retry()
                    # Those that met each other once do not meet again in step.
                    pause = random.uniform(0, min(0.1, 0.001 * 2**retries))  # noqa: S311 (nothing secret)
                    get_waiting().make_signal().acquire(timeout=pause)
                    continue
                can_try = not committing and not was_lost and time.monotonic() < deadline
                if can_try and is_lost(error) and not isinstance(error, Overdue):
                    was_lost = True
                    self._pool.count_retry()
                    continue
                raise self._explain(error, committing=committing) from error

    def _explain(self, error: psycopg.Error, *, committing: bool) -> InvitesError:
        if isinstance(error, Overdue) and not committing:
            return StorageBusy(f"the database {self.location} did not answer in time")
        return translate(error, location=self.location, committing=committing)


class _Unreachable(StorageError):
    """No connection could be made."""


class _Unstorable(StorageError):
    """A value that the database cannot hold, such as a text with a NUL in it."""
