"""A SQLite database file: how it comes to be, how each thread opens it, and the one seam that all writes pass.

What decides here is written down at sqlite.org: wal.html, howtocorrupt.html, lockingv3.html.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from invites_core.errors import CorruptRecord, StorageBusy, StorageError
from invites_core.process import PerProcess
from invites_core.stores.sqlite_file import explain_os_error, make_file
from invites_core.stores.sqlite_turns import FileTurn
from invites_core.stores.sqlite_writers import WriteQueue

__all__ = ["SqliteDatabase"]

T = TypeVar("T")
Row = tuple[Any, ...]
Bindings = Sequence[Any] | Mapping[str, Any]

APPLICATION_ID: Final = int.from_bytes(b"invt")
"""Written into the file's header, so that another program's database is never taken for ours."""

CACHED_STATEMENTS: Final = 64
CACHE_KIB: Final = 512
"""How much of the file a connection keeps in memory. Each thread has one, and others' writes empty it all the time."""
LARGEST_LOG: Final = 8 * 1024 * 1024
"""What a log that had grown beyond it is cut to, in bytes, once all of it is in the file."""


class _Process:
    """What one process holds: a connection for each of its threads, and what its writers queue for."""

    __slots__ = ("connections", "local", "opening", "paused", "turns", "writers", "writing")

    def __init__(self, turns: FileTurn, writers: WriteQueue) -> None:
        self.turns = turns
        self.writers = writers
        self.local = threading.local()
        self.connections: weakref.WeakSet[apsw.Connection] = weakref.WeakSet()
        # Held while a connection is opened, while a transaction is under way, and both during a fork, in this order:
        # writing, opening.
        self.opening = threading.Lock()
        self.writing = threading.RLock()
        # Whether somebody who holds `opening` waits for the other threads to come to rest.
        self.paused = False


class SqliteDatabase:
    """One file in WAL mode with ``synchronous=FULL``: a commit that returned survives a power cut.

    Safe to share among threads and to carry across a fork: every process and every thread has its own connection.
    """

    def __init__(self, path: Path, *, schema: str, version: int, create: bool, timeout: float = 5.0) -> None:
        """Open the file, making it if asked to.

        Args:
            path: Where the file is.
            schema: The statements that make an empty database of this version.
            version: The schema's version (``user_version``).
            create: Whether to make a file that is not there.
            timeout: How long a writer waits for its turn, in seconds.

        Raises:
            StorageError: It is not there, not ours, newer, or cannot be opened.
        """
        # Absolute from now on: a service may change its folder later.
        self.path = Path(os.path.abspath(path))
        self._schema = schema
        self._version = version
        self._timeout = timeout
        self._closed = False
        self._was_open_at_fork = False
        self._process = PerProcess(
            lambda: _Process(FileTurn(self.path), WriteQueue(turn=self._turn, translate=self._translate)),
            prepare_fork=self._close_all,
        )
        self.is_new = create and not self._exists()
        if self.is_new:
            make_file(self.path, self._build)
        # Opened once here, so that what is wrong shows at the start, and closed again: nothing is open at a fork.
        self._open().close()

    def read(self, statement: str, bindings: Bindings = ()) -> list[Row]:
        """Run one reading statement and return its rows. Readers wait for nobody.

        Raises:
            StorageError: It could not be read.
        """
        return self._use(lambda connection: connection.execute(statement, bindings).fetchall())

    def write(self, change: Callable[[apsw.Connection], T]) -> T:
        """Run a change in a transaction, and return what it returned once the commit is on the disk.

        Args:
            change: Called with a connection that holds the write lock, in a transaction that it may share with
                changes of other threads. It steps every statement to its end. What it raises undoes what it did, and
                that alone, and is raised again.

        Raises:
            StorageBusy: Others wrote for longer than the time limit; nothing was changed.
            StorageError: The change failed; nothing was changed.
            OutcomeUnknown: The commit failed, and may yet come true after a crash.
        """
        return self._process.get().writers.write(change, timeout=self._timeout)

    @contextlib.contextmanager
    def _turn(self, deadline: float) -> Iterator[apsw.Connection]:
        """Open a transaction that holds the write lock, and roll back what is not committed in the end."""
        process = self._process.get()
        with process.writing:
            connection = self._use(self._check_still_there)
            with process.turns.take(deadline):
                with self._translated():
                    # IMMEDIATE, because a deferred transaction that writes after it has read can fail at once with
                    # SQLITE_BUSY_SNAPSHOT, whatever the time limit (sqlite.org/isolation.html).
                    connection.set_busy_timeout(max(1, int((deadline - time.monotonic()) * 1000)))
                    connection.execute("BEGIN IMMEDIATE")
                    connection.set_busy_timeout(int(self._timeout * 1000))
                try:
                    yield connection
                finally:
                    self._roll_back(connection)

    def _roll_back(self, connection: apsw.Connection) -> None:
        """End a transaction that was not committed; a connection that cannot even do that is thrown away."""
        if not connection.in_transaction:
            return
        try:
            connection.execute("ROLLBACK")
        except apsw.Error:
            self._discard_connection()

    @contextlib.contextmanager
    def open_apart(self) -> Iterator[apsw.Connection]:
        """Open a connection for one long reading, beside the one of this thread, and close it in the end.

        Raises:
            StorageError: It cannot be opened, or what is done with it fails.
        """
        with self._translated():
            connection = self._open()
            try:
                yield connection
            finally:
                connection.close(True)

    def ping(self) -> None:
        """Read something from the file.

        Raises:
            StorageError: It cannot be read, or the file was moved away.
        """
        self._use(self._check_still_there)
        self.read("SELECT count(*) FROM (SELECT 1 FROM sqlite_schema LIMIT 1)")

    def find_problems(self) -> list[str]:
        """Run SQLite's quick check over the whole file.

        Returns:
            What is wrong, in SQLite's words; empty for nothing.
        """
        try:
            found = [line for row in self.read("PRAGMA quick_check(10)") for line in str(row[0]).splitlines()]
        except CorruptRecord as error:
            # So damaged that the check itself comes to no end.
            return [str(error)]
        return [] if found == ["ok"] else [f"the database {self.path} is damaged: {line}" for line in found]

    def close(self) -> None:
        """Close the connections of this process; nothing is read or written after that."""
        self._closed = True
        process = self._process.peek()
        if process is not None:
            # What is under way in other threads comes to its end first.
            self._close_all(process)()
            process.turns.close()

    def _exists(self) -> bool:
        # By path alone: opening and closing the file would drop the locks that this process holds on it
        # (howtocorrupt.html, 2.2).
        try:
            self.path.stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(f"cannot open the database {self.path}: {explain_os_error(error)}") from error
        return True

    def _build(self, path: Path) -> None:
        """Make an empty database of this version in an empty file."""
        with self._translated():
            connection = self._connect(path)
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchall()
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(
                    f"BEGIN IMMEDIATE; {self._schema}; PRAGMA application_id = {APPLICATION_ID};"
                    f"PRAGMA user_version = {self._version}; COMMIT"
                ).fetchall()
                # Closing does this too, and tells nobody if it fails: all would still be in the log, which goes.
                [(is_busy, _, _)] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                if is_busy:
                    raise apsw.BusyError
            finally:
                connection.close()

    def _connection(self) -> apsw.Connection:
        """Return this thread's connection, opening it at first use."""
        process = self._process.get()
        if process.paused:
            with process.opening:
                pass
        connection: apsw.Connection | None = getattr(process.local, "connection", None)
        if connection is None:
            connection = process.local.connection = self._open()
        return connection

    def _use(self, use: Callable[[apsw.Connection], T]) -> T:
        """Call something that only reads with this thread's connection, again if that was closed meanwhile.

        Another thread closes it for a fork, or because the store is closed for good: opening tells which.
        """
        with self._translated():
            while True:
                connection = self._connection()
                try:
                    return use(connection)
                except (apsw.ConnectionClosedError, apsw.CursorClosedError, apsw.ThreadingViolationError):
                    self._discard_connection()

    def _close_all(self, process: _Process) -> Callable[[], None]:
        """Close all connections, as before a fork, and let none be opened until what this returns is called.

        SQLite remembers which locks a process holds in memory that a child inherits, by file and not by connection. A
        child that opens a file which its parent had open at the fork therefore takes no locks of its own: others then
        remove the log under it, and what it committed is lost. Connections of its own are not enough.

        Returns:
            What ends the pause; after a fork the parent calls it.
        """
        deadline = time.monotonic() + self._timeout
        is_ours = process.writing.acquire(timeout=self._timeout)
        process.opening.acquire()
        process.paused = True
        all_closed = True
        for connection in list(process.connections):
            all_closed &= is_ours and self._close_idle(connection, deadline)
        if all_closed and is_ours:
            process.turns.release()
        self._was_open_at_fork = not all_closed

        def resume() -> None:
            self._was_open_at_fork = process.paused = False
            process.opening.release()
            if is_ours:
                process.writing.release()

        return resume

    def _close_idle(self, connection: apsw.Connection, deadline: float) -> bool:
        """Close a connection as soon as its thread does not use it, and tell whether it came to that."""
        while True:
            try:
                if connection.in_transaction:
                    return False
                connection.close()
            except apsw.ConnectionClosedError:
                return True
            except apsw.Error:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.0005)
            else:
                return True

    def _discard_connection(self) -> None:
        local = self._process.get().local
        connection: apsw.Connection | None = getattr(local, "connection", None)
        if connection is not None:
            local.connection = None
            with contextlib.suppress(apsw.Error):
                connection.close(True)

    def _open(self) -> apsw.Connection:
        process = self._process.get()
        with process.opening:
            if self._closed:
                raise StorageError("the store is closed")
            if self._was_open_at_fork:
                raise StorageError(f"the database {self.path} was in use while this process was forked")
            if not self._exists():
                raise StorageError(f"no database at {self.path}")
            self._mend_permissions()
            with self._translated():
                connection = self._connect(self.path)
                try:
                    self._set_up(connection)
                except BaseException:
                    connection.close(True)
                    raise
            process.connections.add(connection)
        return connection

    def _mend_permissions(self) -> None:
        """Give a log and an index that are read-only the permissions of the file, as SQLite does when it makes them.

        Who reads a file that is read-only leaves them read-only too, and with them the database would stay so after
        its own permissions were put right.
        """
        mode = stat.S_IMODE(self.path.stat().st_mode)
        for beside in (f"{self.path}-wal", f"{self.path}-shm"):
            with contextlib.suppress(OSError):
                if mode & stat.S_IWUSR and not os.stat(beside).st_mode & stat.S_IWUSR:
                    os.chmod(beside, mode)

    def _connect(self, path: Path) -> apsw.Connection:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=CACHED_STATEMENTS)
        connection.set_busy_timeout(int(self._timeout * 1000))
        return connection

    def _set_up(self, connection: apsw.Connection) -> None:
        """Check that the file is ours, and set what holds for a connection alone.

        Raises:
            StorageError: It is another program's file, a newer version's, or not in the mode that we set.
        """
        if connection.execute("PRAGMA application_id").fetchall() != [(APPLICATION_ID,)]:
            raise StorageError(f"{self.path} is not a database of invites-api")
        [(version,)] = connection.execute("PRAGMA user_version").fetchall()
        if version != self._version:
            raise StorageError(
                f"the database {self.path} has schema version {version}; this program knows version {self._version}"
            )
        connection.execute("PRAGMA synchronous = FULL").fetchall()
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}").fetchall()
        connection.execute(f"PRAGMA journal_size_limit = {LARGEST_LOG}").fetchall()
        connection.execute("PRAGMA foreign_keys = ON").fetchall()
        connection.execute("PRAGMA trusted_schema = OFF").fetchall()
        if connection.execute("PRAGMA journal_mode").fetchall() != [("wal",)]:
            # A copy made by VACUUM INTO is not in WAL mode until it is set again.
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
        modes = (
            connection.execute("PRAGMA journal_mode").fetchall() + connection.execute("PRAGMA synchronous").fetchall()
        )
        if modes != [("wal",), (2,)]:
            raise StorageError(f"the database {self.path} is not in WAL mode with synchronous=FULL")

    def _check_still_there(self, connection: apsw.Connection) -> apsw.Connection:
        """Refuse to write to a file that is no longer at its path: what is acknowledged there would be lost."""
        moved = ctypes.c_int(0)
        connection.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(moved))
        if moved.value:
            raise StorageError(f"the database {self.path} was moved or deleted while it was open; restart the service")
        return connection

    def _why_not_open(self) -> str:
        """Say in words what SQLite does not: by path alone, because the file may be open here."""
        if self.path.is_dir():
            return "it is a folder"
        return (
            "permission denied"
            if not os.access(self.path, os.R_OK | os.W_OK, effective_ids=True)
            else "unable to open the file"
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the driver's errors into ours, in this one place."""
        try:
            yield
        except apsw.Error as error:
            raise self._translate(error) from error

    def _translate(self, error: apsw.Error) -> StorageError:
        match error:
            case apsw.BusyError() | apsw.LockedError():
                return StorageBusy(f"the database {self.path} is busy")
            case apsw.NotADBError():
                return StorageError(f"{self.path} is not a SQLite database")
            case apsw.ReadOnlyError():
                return StorageError(f"the database {self.path} is read-only")
            case apsw.FullError():
                return StorageError(f"no space left for the database {self.path}")
            case apsw.CorruptError():
                return CorruptRecord(f"the database {self.path} is damaged")
            case apsw.CantOpenError():
                return StorageError(f"cannot open the database {self.path}: {self._why_not_open()}")
            case _:
                return StorageError(f"the database {self.path} failed ({type(error).__name__})")
