"""Which version of its tables a SQL store has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["HasSchema", "SchemaVersion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaVersion:
    """The version of the tables in a database.

    Attributes:
        present: The version that is there, from 1.
        newest: The version that this program makes.
        is_new: Whether the tables were made when the store was opened.
    """

    present: int
    newest: int
    is_new: bool


@runtime_checkable
class HasSchema(Protocol):
    """A store with tables of a version."""

    @property
    def schema(self) -> SchemaVersion:
        """The version of the tables.

        Raises:
            StorageError: The database cannot be reached, or its tables cannot be used.
        """
        ...
