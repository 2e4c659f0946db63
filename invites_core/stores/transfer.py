"""Copying all of one SQL store into another, and what a store must be able to do for that.

An unfinished copy must never be taken for a store, nor a store for an unfinished copy. Three things see to it:

- While a copy is under way its target holds a mark (`MARK`). A target that holds rows and no mark is written to by
  nobody here: it may have been in use since, and what was used up and purged there would be pending again.
- What an unfinished copy holds must be the beginning of every table, row for row. A row is never changed, so what was
  used in the target stays used.
- Keys come last. Should a service be started on an unfinished copy, it lets nobody in; and no invite is there before
  its redemptions are, nor a key before the marks of those that were deleted.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from invites_core.errors import InvalidRequest, Unsupported
from invites_core.stores.rows import INVITE_COLUMNS, KEY_COLUMNS, REDEMPTION_COLUMNS

__all__ = [
    "INVITES",
    "MARK",
    "TABLES",
    "BackedUp",
    "CopyRefused",
    "Progress",
    "Row",
    "Snapshot",
    "Table",
    "Transferable",
    "copy_store",
    "describe_difference",
]

Row = tuple[Any, ...]

BATCH_ROWS: Final = 1000
"""How many rows are in memory, and in one transaction of the target. It bounds how long other writers wait."""

MARK: Final = "unfinished copy"
"""Stands among the marks of deleted keys while a copy is under way; the space keeps it from being any key's id.

It may be moved into a table of its own with the next version of the schema; until then copies that were cut short by
an older version are known by it.
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that every SQL store has, by its names there.

    Attributes:
        name: The table.
        columns: Those that are copied: all but what a store assigns or computes itself.
        identity: The columns that no two rows have alike.
        order: The columns by which rows are read. For invites that is their place in lists, which every store assigns
            itself, in the order in which it gets them.
        key_id: The column with the id of a key, which may be shown; None where there is none.
    """

    name: str
    columns: tuple[str, ...]
    identity: tuple[str, ...]
    order: tuple[str, ...]
    key_id: str | None

    def get_identity(self, row: Row) -> Row:
        """Return the values of the identity's columns."""
        return tuple(row[self.columns.index(column)] for column in self.identity)

    def describe(self, row: Row) -> str:
        """Say in words which row it is, as far as that may be shown: never a token or a hash."""
        return self.name if self.key_id is None else f"{self.name} (key {row[self.columns.index(self.key_id)]})"


def _table(name: str, columns: str, identity: str, *, order: str | None = None, key_id: str | None = None) -> Table:
    names = tuple(identity.split(", "))
    return Table(name, tuple(columns.split(", ")), names, names if order is None else tuple(order.split(", ")), key_id)


DELETED_KEYS: Final = _table("deleted_keys", "id, deleted_at", "id", key_id="id")
INVITES: Final = _table("invites", INVITE_COLUMNS, "token", order="position")
TABLES: Final = (
    DELETED_KEYS,
    _table("quotas", "key_id, window_start, taken", "key_id", key_id="key_id"),
    _table("creations", "key_id, digest, fingerprint, tokens, created_at, done_at", "key_id, digest", key_id="key_id"),
    _table("redemptions", REDEMPTION_COLUMNS, "token, redemption_id"),
    INVITES,
    _table("keys", KEY_COLUMNS, "id", key_id="id"),
)
"""All tables, in the order in which they are copied, which is a part of what is promised (see above)."""


class Snapshot(Protocol):
    """One state of a store, whatever others write meanwhile."""

    def count(self, table: Table) -> int:
        """Return how many rows a table has."""
        ...

    def rows(self, table: Table) -> Iterator[Row]:
        """Read the rows of a table, a few at a time, as the values of its columns: text, int, bytes or None.

        They come in the table's order, with texts by their bytes in UTF-8. Two tables can be read at the same time.
        """
        ...


@runtime_checkable
class Transferable(Protocol):
    """A store that can be copied, and copied into. Errors of the driver come out as `StorageError`, as ever."""

    @property
    def location(self) -> str:
        """Where the data is, for people."""
        ...

    def get_identity(self) -> Hashable:
        """Return what is equal for two stores that are the same data, whatever they were opened by."""
        ...

    def open_snapshot(self) -> AbstractContextManager[Snapshot]:
        """Hold the state of this moment for reading. Writers are not kept waiting."""
        ...

    def add_rows(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows in one transaction, so that they are read in the order in which they are given here.

        Those that are there and equal are left alone.

        Raises:
            CopyRefused: One is there and differs (see `describe_difference`); nothing was written.
        """
        ...

    def remove_row(self, table: Table, identity: Row) -> None:
        """Remove a row if it is there."""
        ...


@runtime_checkable
class BackedUp(Protocol):
    """A store that can make a backup of itself."""

    def back_up(self, file: Path) -> None:
        """Write all of the store into a file that is not there yet, private to its owner, while others write.

        Raises:
            StorageError: It cannot be made; nothing is left behind.
        """
        ...


class CopyRefused(Unsupported):
    """The target is not, or has not become, a copy of the source."""


Progress = Callable[[str, int, int], None]
"""Is told what is being done (``compared``, ``copied``, ``verified``), with how many rows, and with how many in all."""


def copy_store(source: Transferable, target: Transferable, *, progress: Progress | None = None) -> Mapping[str, int]:
    """Copy all of a store into an empty one, or go on with a copy that was cut short, and verify it.

    Both should be out of use. That is not taken on trust: in the end both are read once more, and a copy that is not
    equal to its source at that time is an error.

    Args:
        source: What is copied; nothing is changed in it.
        target: An empty store, an unfinished copy of this source, or a finished one, which is verified again.
        progress: Told after each batch; None: nobody is.

    Returns:
        How many rows each table has, by its name.

    Raises:
        InvalidRequest: Source and target are the same data.
        CopyRefused: The target holds something else, and nothing was written; or one of both was changed meanwhile.
        StorageError: One of both failed. The same call goes on from there.
    """
    if source.get_identity() == target.get_identity():
        raise InvalidRequest("target", f"is the same database as the source, {source.location}")
    copying = _Copying(source, target, progress or (lambda _what, _done, _total: None))
    with source.open_snapshot() as snapshot:
        there = copying.compare(snapshot)
        digests = copying.add_missing(snapshot, there)
    copying.verify(digests)
    target.remove_row(DELETED_KEYS, (MARK,))
    return {table.name: digest.rows for table, digest in digests.items()}


def describe_difference(table: Table, row: Row) -> str:
    """Say that a row of the target is not that of the source, without anything secret."""
    return f"the target holds another row of {table.describe(row)} than the source; nothing of it was changed"


class _Digest:
    """The number of rows of a table, and what they are, in their order."""

    def __init__(self) -> None:
        self.rows = 0
        self._hash = hashlib.sha256()

    def add(self, row: Row) -> None:
        self.rows += 1
        # Compared within one run of one Python only, so its own way to write values is exact enough: 1 is not "1".
        self._hash.update(repr(row).encode("utf-8", "surrogatepass"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Digest) and (self.rows, self._hash.digest()) == (other.rows, other._hash.digest())

    __hash__ = None  # type: ignore[assignment]  # it changes


class _Copying:
    """One run of a copy."""

    def __init__(self, source: Transferable, target: Transferable, progress: Progress) -> None:
        self._source = source
        self._target = target
        self._progress = progress

    def compare(self, snapshot: Snapshot) -> Mapping[Table, int]:
        """Return how many rows of each table are in the target already, which are the first ones.

        Raises:
            CopyRefused: The target holds something else than an unfinished or a finished copy.
        """
        if _is_marked(snapshot):
            raise CopyRefused(f"{self._source.location} is itself an unfinished copy; finish that first")
        with self._target.open_snapshot() as held:
            total = sum(held.count(table) for table in TABLES)
            done = itertools.count(1)
            there = {table: self._compare_table(table, snapshot, held, done, total) for table in TABLES}
            is_whole = all(there[table] == snapshot.count(table) for table in TABLES)
            if any(there.values()) and not is_whole and not _is_marked(held):
                raise self._refused("it lacks rows, and no copy into it was cut short; it may have been in use")
        return there

    def _compare_table(self, table: Table, snapshot: Snapshot, held: Snapshot, done: Iterator[int], total: int) -> int:
        number = 0
        ours: Row | None
        for theirs, ours in _zip_first(_read(held, table), snapshot.rows(table)):
            if ours is None or table.get_identity(ours) != table.get_identity(theirs):
                raise self._refused(f"its rows of {table.describe(theirs)} are others")
            if ours != theirs:
                raise self._refused(f"its row of {table.describe(theirs)} differs")
            number += 1
            if (seen := next(done)) % BATCH_ROWS == 0:
                self._progress("compared", seen, total)
        return number

    def _refused(self, reason: str) -> CopyRefused:
        return CopyRefused(
            f"{self._target.location} is not empty and not a copy of {self._source.location} as that is now: {reason}"
        )

    def add_missing(self, snapshot: Snapshot, there: Mapping[Table, int]) -> Mapping[Table, _Digest]:
        """Add the rows that the target lacks, and return what the source holds."""
        digests = {table: _Digest() for table in TABLES}
        total = sum(snapshot.count(table) for table in TABLES)
        is_marked = False
        done = 0
        for table, digest in digests.items():
            for batch in _batches(snapshot.rows(table)):
                missing = batch[max(0, there[table] - digest.rows) :]
                for row in batch:
                    digest.add(row)
                if missing:
                    if not is_marked:
                        # In a transaction before the first row: no row of an unfinished copy is ever there without it.
                        self._target.add_rows(DELETED_KEYS, [(MARK, 0)])
                        is_marked = True
                    self._target.add_rows(table, missing)
                done += len(batch)
                self._progress("copied", done, total)
        return digests

    def verify(self, copied: Mapping[Table, _Digest]) -> None:
        """Read both once more.

        Raises:
            CopyRefused: One of both does not hold what was copied.
        """
        total = 2 * sum(digest.rows for digest in copied.values())
        done = itertools.count(1)
        for store, hint in (
            (self._target, "something else writes to it; give an empty database"),
            (self._source, "stop what uses it, and copy it again into an empty database"),
        ):
            with store.open_snapshot() as snapshot:
                for table, expected in copied.items():
                    found = _Digest()
                    for row in _read(snapshot, table):
                        found.add(row)
                        if (seen := next(done)) % BATCH_ROWS == 0:
                            self._progress("verified", seen, total)
                    if found != expected:
                        raise CopyRefused(f"{table.name} of {store.location} changed while it was copied: {hint}")


def _is_marked(snapshot: Snapshot) -> bool:
    return any(row[0] == MARK for row in snapshot.rows(DELETED_KEYS))


def _read(snapshot: Snapshot, table: Table) -> Iterator[Row]:
    """Read a table without the mark of a copy that is under way."""
    return (row for row in snapshot.rows(table) if table is not DELETED_KEYS or row[0] != MARK)


def _zip_first(first: Iterable[Row], second: Iterable[Row]) -> Iterator[tuple[Row, Row | None]]:
    """Pair every row of the first with one of the second, or None where that has no more."""
    return zip(first, itertools.chain(second, itertools.repeat(None)), strict=False)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, BATCH_ROWS)):
        yield batch
