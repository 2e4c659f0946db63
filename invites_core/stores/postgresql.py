"""Keys and invites in one PostgreSQL database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from invites_core.errors import StorageError
from invites_core.store import COUNTED_USES, HISTORY, LARGE_LISTS
from invites_core.stores.pool_stats import PoolStats
from invites_core.stores.postgresql_database import PostgresqlDatabase
from invites_core.stores.postgresql_grants import PostgresqlGrants
from invites_core.stores.postgresql_invites import PostgresqlInvites
from invites_core.stores.postgresql_keys import PostgresqlKeys
from invites_core.stores.postgresql_lists import PostgresqlLists
from invites_core.stores.postgresql_transfer import PostgresqlTransfer
from invites_core.stores.schema import SchemaVersion
from invites_core.stores.transfer import MARK

__all__ = ["PostgresqlStore"]

_PING: Final = "SELECT current_setting('transaction_read_only'), (SELECT count(*) FROM invites_schema)"
_INVALID_INDEXES: Final = (
    "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid AND indrelid IN"
    " ('keys'::regclass, 'creations'::regclass, 'invites'::regclass, 'redemptions'::regclass)"
)
_MISCOUNTED: Final = (
    "SELECT count(*) FROM invites LEFT JOIN (SELECT token, count(*) AS active FROM redemptions"
    " WHERE released_at IS NULL GROUP BY token) AS counted USING (token) WHERE uses <> coalesce(active, 0)"
)
_UNFINISHED: Final = "SELECT 1 FROM deleted_keys WHERE id = %(mark)s"


class PostgresqlStore(PostgresqlKeys, PostgresqlGrants, PostgresqlInvites, PostgresqlLists, PostgresqlTransfer):
    """Keys and invites in one database, for any number of machines and their processes and threads."""

    features = frozenset({COUNTED_USES, HISTORY, LARGE_LISTS})

    def __init__(self, url: str, *, create: bool = True, migrate: bool = True, timeout: float = 5.0) -> None:
        """Connect to the database; one that cannot be reached at this moment is no error unless it is to be made.

        Args:
            url: ``postgresql://…``.
            create: Whether to make the tables where there are none.
            migrate: Whether to bring tables of an older version up to date.
            timeout: How long a call waits for the database, in seconds.

        Raises:
            InvalidRequest: The URL cannot be read.
            StorageError: The database cannot be used; the message says why.
        """
        self._database = PostgresqlDatabase(url, create=create, migrate=migrate, timeout=timeout)

    @property
    def location(self) -> str:
        """The database's URL without user, password and parameters."""
        return self._database.location

    @property
    def schema(self) -> SchemaVersion:
        """The version of the tables."""
        return self._database.schema

    def find_pool_stats(self) -> PoolStats | None:
        """Return what the pool of this process is doing, or None where it has none yet."""
        return self._database.find_pool_stats()

    def ping(self) -> None:
        """Read something from the database.

        Raises:
            StorageError: It cannot be read, or takes no writes.
        """
        [(is_read_only, _)] = self._database.read(_PING, {})
        if is_read_only == "on":
            raise StorageError(f"the database {self.location} is read-only")

    def find_problems(self) -> Sequence[str]:
        """Look for indexes that are not valid, and for invites whose uses are not those of their redemptions."""
        problems = []
        with self._database.own_connection() as connection:
            for (index,) in connection.run(_INVALID_INDEXES):
                problems.append(f"the index {index} of {self.location} is not valid: REINDEX INDEX {index}")
            [(miscounted,)] = connection.run(_MISCOUNTED)
            unfinished = connection.run(_UNFINISHED, {"mark": MARK})
        if unfinished:
            problems.append(f"{self.location} holds an unfinished copy: run `invites-api copy` again to its end")
        if miscounted:
            problems.append(f"{miscounted} invites in {self.location} have not as many uses as redemptions")
        return problems

    def close(self) -> None:
        """Close the connections of this process."""
        self._database.close()
