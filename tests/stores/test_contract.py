"""The stores of this library keep the contract, and the suites hold a store to what it says that it can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from invites_core.errors import Unsupported
from invites_core.invites import Invite, Redemption
from invites_core.keys import ApiKey, KeyPolicy
from invites_core.store import InviteStore, KeyStore, Store
from invites_core.stores import open_store
from invites_core.stores.memory import MemoryStore
from invites_core.testing import InviteStoreSuite, KeyStoreSuite, StoreSuite
from tests.helpers import invites_of_any_kind, keys_of_any_kind, make_key, policies

# The examples of one test share its store: each has ids of its own.
on_one_store = settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
)


class KeyTests(KeyStoreSuite):
    """The shipped suite, and what holds for every record."""

    @on_one_store
    @given(key=keys_of_any_kind)
    def test_any_key_comes_back(self, store: KeyStore, key: ApiKey) -> None:
        """Whatever is in the fields of a key, it is found as it was added."""
        store.add_key(key)
        assert store.find_key(key.id) == key

    @on_one_store
    @given(policy=policies)
    def test_any_policy_comes_back(self, store: KeyStore, policy: KeyPolicy) -> None:
        """A store neither widens nor narrows a policy."""
        key = make_key(policy=policy)
        store.add_key(key)
        found = store.find_key(key.id)
        assert found is not None
        assert found.policy == policy

    @on_one_store
    @given(key=keys_of_any_kind, changed=keys_of_any_kind)
    def test_any_update_is_made(self, store: KeyStore, key: ApiKey, changed: ApiKey) -> None:
        """Whatever a key is changed to, it is so afterwards, and only from what it was."""
        store.add_key(key)
        assert store.update_key(key, changed) is True
        found = store.find_key(key.id)
        assert found is not None
        assert (found.name, found.policy, found.expires_at) == (changed.name, changed.policy, changed.expires_at)
        same = (key.name, key.policy, key.expires_at) == (changed.name, changed.policy, changed.expires_at)
        assert store.update_key(key, key) is same

    @on_one_store
    @given(key_id=st.text(max_size=300))
    def test_any_text_can_be_looked_for(self, store: KeyStore, key_id: str) -> None:
        """A text that cannot be an id finds nothing, and is no error."""
        assert store.find_key(key_id) is None


class InviteTests(InviteStoreSuite):
    """The shipped suite, and what holds for every record."""

    @on_one_store
    @given(invite=invites_of_any_kind)
    def test_any_invite_comes_back(self, store: InviteStore, invite: Invite) -> None:
        """Whatever is in the fields of an invite, it is found as it was added, and in the list of its host."""
        store.add_invites([invite])
        assert store.find_invite(invite.token) == invite
        found: list[Invite] = []
        cursor = None
        while invite not in found:
            page = store.list_invites(invite.host, now=invite.created_at, limit=20, cursor=cursor)
            found.extend(page.invites)
            assert page.next is not None or invite in found
            cursor = page.next

    @on_one_store
    @given(token=st.text(max_size=300))
    def test_any_text_can_be_looked_for(self, store: InviteStore, token: str) -> None:
        """A text that cannot be a token finds nothing, and is no error."""
        assert store.find_invite(token) is None


class InMemory:
    """In memory."""

    @pytest.fixture
    def store(self) -> Store:
        """Give an empty store in memory."""
        return open_store("memory:")


class InSqlite:
    """In SQLite."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        """Give an empty database, closed in the end."""
        store = open_store(f"sqlite:///{tmp_path}/invites.db")
        yield store
        store.close()


class InPostgresql:
    """In PostgreSQL."""

    @pytest.fixture
    def store(self, postgresql_url: str) -> Iterator[Store]:
        """Give a database with empty tables, closed in the end."""
        store = open_store(postgresql_url)
        yield store
        store.close()


class TestMemoryKeys(InMemory, KeyTests):
    """Keys in memory."""


class TestMemoryInvites(InMemory, InviteTests):
    """Invites in memory."""


class TestMemory(InMemory, StoreSuite):
    """Both in memory."""


class TestSqliteKeys(InSqlite, KeyTests):
    """Keys in SQLite."""


class TestSqliteInvites(InSqlite, InviteTests):
    """Invites in SQLite."""


class TestSqlite(InSqlite, StoreSuite):
    """Both in SQLite."""


@pytest.mark.real_server
class TestPostgresqlKeys(InPostgresql, KeyTests):
    """Keys in PostgreSQL."""


@pytest.mark.real_server
class TestPostgresqlInvites(InPostgresql, InviteTests):
    """Invites in PostgreSQL."""


@pytest.mark.real_server
class TestPostgresql(InPostgresql, StoreSuite):
    """Both in PostgreSQL."""


class PlainStore(MemoryStore):
    """A store without features, as one over another system's data may be."""

    features = frozenset()

    def add_invites(self, invites: Sequence[Invite], **options: Any) -> None:
        if any(invite.max_uses not in (None, 1) for invite in invites):
            raise Unsupported
        super().add_invites(invites, **options)

    def list_redemptions(self, token: str) -> Sequence[Redemption]:
        raise Unsupported


class TestPlainInvites(InviteStoreSuite):
    """A store that can do no more than it must passes the suite, if it says so."""

    @pytest.fixture
    def store(self) -> InviteStore:
        """Give a store without features."""
        return PlainStore()
