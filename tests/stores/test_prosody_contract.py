"""The store in a running Prosody keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from invites_core.store import InviteStore
from invites_core.stores.prosody import ProsodyStore
from invites_core.testing import InviteStoreSuite
from tests.helpers import PATIENCE
from tests.prosody import ConsoleProsody

pytestmark = pytest.mark.real_server


class TestProsodyInvites(InviteStoreSuite):
    """Invites in a running Prosody."""

    @pytest.fixture
    def store(self, prosody: ConsoleProsody) -> Iterator[InviteStore]:
        """Give a store in a Prosody without invites."""
        store = ProsodyStore(prosody.socket, timeout=PATIENCE)
        yield store
        store.close()
