"""How the connections of a store are used in this process at this moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["HasPool", "PoolStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """What a pool of connections is doing in this process.

    Attributes:
        size: The connections that there are.
        idle: Those of them that nobody uses.
        waiting: The calls that wait for one.
        retries: The transactions that were run again since the process began.
    """

    size: int
    idle: int
    waiting: int
    retries: int


@runtime_checkable
class HasPool(Protocol):
    """A store with a pool of connections."""

    def find_pool_stats(self) -> PoolStats | None:
        """Return what the pool of this process is doing, or None where it has none yet. Asks no database."""
        ...
