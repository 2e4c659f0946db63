"""API keys as another program keeps them, with their secrets, and what can be asked of where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

__all__ = ["ForeignKey", "KeySource", "UnreadableKey"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignKey:
    """A key of another program, as it stands there: nothing of it was checked.

    Attributes:
        id: The public half.
        secret: The secret, in clear text.
        name: What its owner calls it, or None.
        created_at: When it was made (aware UTC, whole seconds); None where that is not known.
    """

    id: str
    secret: str = field(repr=False)
    name: str | None
    created_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableKey:
    """What stands where a key should be, and is none that could be used.

    Attributes:
        id: What it is filed under.
        reason: What is wrong with it, without any of its content.
    """

    id: str
    reason: str


class KeySource(Protocol):
    """Where keys of another program are. Bytes that are no UTF-8 come as lone surrogates (``surrogateescape``)."""

    def list_keys(self, host: str) -> Sequence[ForeignKey | UnreadableKey]:
        """Return all keys of a normalised host, each id once, in no order.

        Raises:
            InvalidHost: There is no such host.
            CorruptRecord: What is there cannot be read at all.
            StorageError: It did not answer, or could not be opened.
        """
        ...

    def remove_key(self, host: str, key_id: str, secret: str) -> bool:
        """Take a key away, if it still has this secret. Twice is once.

        Returns:
            Whether this call took it away.

        Raises:
            Unsupported: Nothing can be taken away from there.
            OutcomeUnknown: It may or may not have been taken away.
            StorageError: Nothing was taken away.
        """
        ...
