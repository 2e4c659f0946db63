"""Time, as the services read it: aware UTC, cut to whole seconds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

__all__ = ["Clock", "read_clock", "system_clock"]

Clock = Callable[[], datetime]
"""Returns the present as an aware UTC datetime."""


def system_clock() -> datetime:
    """Return the present by the system's clock."""
    return datetime.now(UTC)


def read_clock(clock: Clock) -> datetime:
    """Return the present in whole seconds, as everything here compares and stores it."""
    return clock().replace(microsecond=0)
