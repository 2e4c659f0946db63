"""Durations as people write them: a whole number with a unit, such as ``90d``."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from invites_core.errors import InvalidRequest

__all__ = ["MAX_DURATION", "format_duration", "parse_duration"]

MAX_DURATION: Final = timedelta(days=36_500)
"""The longest duration that is taken: about a century. More is a slip of the hand; what has no end says so."""

_UNITS: Final = {"w": 604_800, "d": 86_400, "h": 3_600, "min": 60, "s": 1}
_FORM: Final = re.compile(r"([0-9]{1,12})(s|min|h|d|w)", re.ASCII)


def parse_duration(text: str, *, field: str) -> timedelta:
    """Read a duration: a whole number with ``s``, ``min``, ``h``, ``d`` or ``w``, never a bare number.

    Args:
        text: What was written, such as ``90d``.
        field: What to call it in the error.

    Returns:
        The duration, from one second to `MAX_DURATION`.

    Raises:
        InvalidRequest: It is not of that form, or not in that range.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise InvalidRequest(field, f"must be a number with s, min, h, d or w, such as 7d, not {text[:40]!r}")
    seconds = int(found[1]) * _UNITS[found[2]]
    if not 1 <= seconds <= MAX_DURATION.total_seconds():
        raise InvalidRequest(field, f"must be from 1s to {format_duration(MAX_DURATION)}, not {text[:40]!r}")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """Write a duration so that `parse_duration` reads the same again, in the largest unit that fits exactly.

    Weeks are written as days: ``7d`` is what people say.
    """
    seconds = int(duration.total_seconds())
    unit = next(unit for unit, size in _UNITS.items() if unit != "w" and seconds % size == 0)
    return f"{seconds // _UNITS[unit]}{unit}"
