"""A clock that a test holds in its hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["NOON", "FakeClock"]

NOON: Final = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
"""Where a fake clock stands at first, and when the records of these tests were made."""


class FakeClock:
    """A clock that stands still until a test moves it; give it to a service as its ``clock``."""

    def __init__(self, now: datetime = NOON) -> None:
        """Stand at a time, aware UTC."""
        self.now = now

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now

    def advance(self, by: timedelta | float) -> None:
        """Move on, by a duration or a number of seconds."""
        self.now += by if isinstance(by, timedelta) else timedelta(seconds=by)
