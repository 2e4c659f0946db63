"""Fixtures for the tests with a Prosody and clients of XMPP: one of each for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from invites_core import Invites
from invites_core.stores.agent import AgentStore
from invites_core.stores.prosody import ProsodyStore
from tests.helpers import PATIENCE
from tests.prosody import STORAGES, ConsoleProsody, running_on
from tests.stores.agents import serving

SETTINGS: Final = f"""
plugin_paths = {{ "/usr/lib/prosody/modules", "{Path(__file__).parent / "modules"}" }}
modules_enabled = {{
  "roster", "saslauth", "disco", "admin_shell", "http", "register", "invites", "invites_register", "invites_api",
  "invites_adhoc", "invites_page", "invites_register_web",
}}
invites_page_external = false; invites_page = "https://example.com/invite?{{invite.token}}"
"""
"""All of Prosody's modules that have to do with invites."""


@pytest.fixture(scope="session", params=STORAGES)
def prosody(request: pytest.FixtureRequest) -> Iterator[ConsoleProsody]:
    """A Prosody with example.com, on each storage in turn; its accounts and invites are those of all tests."""
    with running_on(request.param, request, hosts=["example.com"], extra=SETTINGS) as running:
        yield running


@pytest.fixture
def agent_store(prosody: ConsoleProsody, tmp_path: Path) -> Iterator[AgentStore]:
    """Its invites as the web process has them, behind an agent."""
    behind = ProsodyStore(prosody.socket, timeout=PATIENCE)
    with serving(behind, tmp_path / "agent.sock", hosts=frozenset({"example.com"})):
        store = AgentStore(tmp_path / "agent.sock", timeout=PATIENCE)
        yield store
        store.close()
    behind.close()


@pytest.fixture
def invites(agent_store: AgentStore) -> Invites:
    """The invites of the Prosody, by its own clock."""
    return Invites(agent_store)
