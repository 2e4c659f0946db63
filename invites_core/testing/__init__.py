"""For tests: what every store is held to, and things that the tests of a program with this library want.

The author of a store subclasses the suites and overrides one fixture, which gives a new and empty store each time::

    class TestMyInvites(InviteStoreSuite):
        @pytest.fixture
        def store(self) -> Iterator[InviteStore]:
            ...

What a store is missing in its ``features`` has to be refused by it as `Unsupported`; the suites check that too.

For a program's own tests there are `FakeClock` and `cheap_hasher`, and both as fixtures: a ``conftest.py`` that says
``pytest_plugins = ["invites_core.testing.fixtures"]`` has ``fake_clock`` and ``cheap_hasher``.

This needs pytest, which the rest of the library does not.
"""

import pytest

pytest.register_assert_rewrite(
    *(f"invites_core.testing.{name}" for name in ("base", "both", "grants", "invites", "keys", "lists", "redemptions"))
)

from invites_core.testing.both import StoreSuite  # noqa: E402 (the rewriting comes before what it is for)
from invites_core.testing.clock import FakeClock  # noqa: E402
from invites_core.testing.hashing import cheap_hasher  # noqa: E402
from invites_core.testing.invites import InviteStoreSuite  # noqa: E402
from invites_core.testing.keys import KeyStoreSuite  # noqa: E402
from invites_core.testing.records import make_grant, make_invite, make_key  # noqa: E402

__all__ = [
    "FakeClock",
    "InviteStoreSuite",
    "KeyStoreSuite",
    "StoreSuite",
    "cheap_hasher",
    "make_grant",
    "make_invite",
    "make_key",
]
