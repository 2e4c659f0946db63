"""Keys and invites in one SQLite file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import apsw

from invites_core.invites import Invite
from invites_core.store import COUNTED_USES, HISTORY, LARGE_LISTS, Grant, GrantTaken
from invites_core.stores.schema import SchemaVersion
from invites_core.stores.sqlite_backup import back_up
from invites_core.stores.sqlite_database import SqliteDatabase
from invites_core.stores.sqlite_invites import SqliteInvites, add_invites
from invites_core.stores.sqlite_keys import SqliteKeys, finish_grant, take_grant
from invites_core.stores.sqlite_schema import SCHEMA, SCHEMA_VERSION
from invites_core.stores.sqlite_transfer import SqliteTransfer
from invites_core.stores.transfer import MARK

__all__ = ["SqliteStore"]


class SqliteStore(SqliteKeys, SqliteInvites, SqliteTransfer):
    """Keys and invites in one file, for one machine and any number of its processes and threads."""

    features = frozenset({COUNTED_USES, HISTORY, LARGE_LISTS})

    def __init__(self, path: Path, *, create: bool = True, timeout: float = 5.0) -> None:
        """Open the database.

        Args:
            path: The file.
            create: Whether to make it if it is not there.
            timeout: How long a writer waits for its turn, in seconds.

        Raises:
            StorageError: It cannot be opened; the message says why.
        """
        self._database = SqliteDatabase(path, schema=SCHEMA, version=SCHEMA_VERSION, create=create, timeout=timeout)

    @property
    def location(self) -> str:
        """The path of the file."""
        return str(self._database.path)

    @property
    def schema(self) -> SchemaVersion:
        """The version of the tables."""
        return SchemaVersion(present=SCHEMA_VERSION, newest=SCHEMA_VERSION, is_new=self._database.is_new)

    def ping(self) -> None:
        """Read something from the file.

        Raises:
            StorageError: It cannot be read, or the file was moved away.
        """
        self._database.ping()

    def find_problems(self) -> Sequence[str]:
        """Run SQLite's quick check, which reads the whole file, and look whether it is an unfinished copy."""
        problems = self._database.find_problems()
        if not problems and self.find_deletion(MARK) is not None:
            problems.append(f"{self.location} holds an unfinished copy: run `invites-api copy` again to its end")
        return problems

    def back_up(self, file: Path) -> None:
        """Write all of the database into a new file by `VACUUM INTO`, while others write.

        Raises:
            StorageError: It cannot be made; nothing is left behind.
        """
        back_up(self._database, file)

    def close(self) -> None:
        """Close the connections of this process."""
        self._database.close()

    def add_granted(self, grant: Grant, invites: Sequence[Invite]) -> GrantTaken:
        """Take a grant and add the invites of its tokens in one transaction, as the protocol says."""

        def change(connection: apsw.Connection) -> GrantTaken:
            taken = take_grant(connection, grant)
            if taken.outcome == "taken":
                add_invites(connection, invites)
                finish_grant(connection, grant)
            return taken

        return self._database.write(change)
