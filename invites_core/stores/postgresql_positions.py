"""Places of invites in lists, where many nodes add them and none may hand out numbers for all."""

from __future__ import annotations

import re
import secrets
import time
import uuid
from typing import Final

from invites_core.errors import InvalidRequest

__all__ = ["FIRST", "LAST", "format_position", "make_positions", "parse_position"]

FIRST: Final = uuid.UUID(int=0)
"""A place before all others."""
LAST: Final = uuid.UUID(int=2**128 - 1)
"""A place after all others."""

_STEP_NANOSECONDS: Final = 250
"""A little more than 2**-12 of a millisecond: one step of what a place can tell apart."""


def make_positions(count: int) -> list[uuid.UUID]:
    """Return places for invites that are added now, in their order.

    They are UUIDs of version 7 (RFC 9562, 5.7) with a finer clock in ``rand_a`` (6.2, method 3): by the clock of the
    node that adds them, then by chance, so that no two nodes need to agree, and no counter is waited for.
    """
    now = time.time_ns()
    return [_make_position(now + number * _STEP_NANOSECONDS) for number in range(count)]


def _make_position(nanoseconds: int) -> uuid.UUID:
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    fraction = (rest << 12) // 1_000_000
    return uuid.UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | secrets.randbits(62))


def format_position(position: uuid.UUID) -> str:
    """Return a place as a cursor."""
    return position.hex


def parse_position(cursor: str) -> uuid.UUID:
    """Return the place that a cursor holds.

    Raises:
        InvalidRequest: No list has given such a cursor.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", cursor, re.ASCII):
        raise InvalidRequest("cursor", "is not one that a list has given")
    return uuid.UUID(hex=cursor)
