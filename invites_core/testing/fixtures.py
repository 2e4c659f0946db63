"""Fixtures for the tests of programs: a pytest plugin, to be named in ``pytest_plugins``."""

from __future__ import annotations

import pytest

from invites_core import testing
from invites_core.hashing import SecretHasher

__all__ = ["cheap_hasher", "fake_clock"]


@pytest.fixture
def fake_clock() -> testing.FakeClock:
    """A clock that stands still until it is advanced."""
    return testing.FakeClock()


@pytest.fixture
def cheap_hasher() -> SecretHasher:
    """A hasher as in the product, whose hashes cost next to nothing."""
    return testing.cheap_hasher()
