"""What an error of PostgreSQL means to a caller: the codes of SQLSTATE, in sets.

The codes are those of PostgreSQL's documentation, appendix A; engines that speak its protocol use the same.
"""

from __future__ import annotations

from typing import Final

import psycopg

from invites_core.errors import CorruptRecord, InvitesError, OutcomeUnknown, StorageBusy, StorageError

__all__ = ["AWAY", "Duplicate", "is_lost", "is_retried", "translate"]

RETRIED: Final = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: the server has undone the whole transaction, and asks for it again."""

UNKNOWN: Final = frozenset({"40003", "08007"})
"""The server itself does not know whether the transaction was kept."""

AWAY: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03", "25P04", "53300"})
"""The server ends this connection, or takes none: it is stopped or started, failed over, or has too many."""

BUSY: Final = frozenset({"57014", "55P03"})
"""A statement was ended at its time limit, or a lock could not be had in it."""

READ_ONLY: Final = frozenset({"25006"})
"""The server takes no writes: a standby, or a primary that was failed over."""

FULL: Final = frozenset({"53000", "53100", "53200", "53400"})
"""The server has run out of disk, memory or another resource."""

DAMAGED: Final = frozenset({"XX001", "XX002"})
"""A page or an index of the database is damaged."""

MISSING: Final = frozenset({"42P01", "42703", "3F000", "0A000"})
"""A table or a column is not there or is not what it was: the schema was changed under this program."""


class Duplicate(StorageError):
    """A row was refused by a unique constraint; nothing was changed. Stays inside the store.

    Attributes:
        constraint: The constraint's name.
    """

    def __init__(self, constraint: str | None) -> None:
        super().__init__("a row of this identity is there already")
        self.constraint = constraint


def is_retried(error: psycopg.Error) -> bool:
    """Tell whether the server has undone the transaction and wants it again."""
    return error.sqlstate in RETRIED


def is_lost(error: psycopg.Error) -> bool:
    """Tell whether the connection is gone, so that nothing more is known than what was answered before."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state in AWAY or state.startswith("08")


def translate(error: psycopg.Error, *, location: str, committing: bool) -> InvitesError:
    """Return the error of ours for one of the driver's.

    Args:
        error: What was raised.
        location: The database, for people.
        committing: Whether the transaction may have been committed when it was raised.
    """
    state = error.sqlstate
    told: InvitesError
    if state in UNKNOWN or (committing and is_lost(error)):
        told = OutcomeUnknown(
            f"the connection to the database {location} was lost; whether the change was kept is not known"
        )
    elif state == "23505":
        told = Duplicate(error.diag.constraint_name)
    elif state in BUSY or state in RETRIED:
        told = StorageBusy(f"the database {location} is busy")
    elif is_lost(error):
        told = StorageError(f"cannot reach the database {location}: {first_line(error)}")
    elif state in READ_ONLY:
        told = StorageError(f"the database {location} is read-only")
    elif state in FULL:
        told = StorageError(f"the database {location} is full: {first_line(error)}")
    elif state in DAMAGED:
        told = CorruptRecord(f"the database {location} is damaged: {first_line(error)}")
    elif state in MISSING:
        told = StorageError(f"the database {location} has not the tables that this program knows: {first_line(error)}")
    else:
        told = StorageError(f"the database {location} failed: {first_line(error)}")
    told.__cause__ = error
    return told


def first_line(error: psycopg.Error) -> str:
    """Return the first line of an error's message; the lines after it can quote values of a row."""
    message = (error.diag.message_primary or str(error)).removeprefix("connection failed: ")
    return message.strip().partition("\n")[0] or type(error).__name__
