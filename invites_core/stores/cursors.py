"""Cursors of lists: a position in the order of creation, and nothing that could be used for anything else."""

from __future__ import annotations

import re
from typing import Final

from invites_core.errors import InvalidRequest

__all__ = ["parse_position"]

MAX_POSITION: Final = 2**63 - 1


def parse_position(cursor: str) -> int:
    """Return the position that a cursor holds.

    Raises:
        InvalidRequest: No list has given such a cursor.
    """
    if not re.fullmatch(r"[0-9]{1,19}", cursor, re.ASCII) or int(cursor) > MAX_POSITION:
        raise InvalidRequest("cursor", "is not one that a list has given")
    return int(cursor)
