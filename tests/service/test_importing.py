"""Bringing keys over from another program: what is taken, what is refused, and that a repeat only finishes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from invites_core.errors import InvalidHost, InvalidKey, KeyExists, StorageError
from invites_core.foreign_keys import ForeignKey, UnreadableKey
from invites_core.hashing import compute_tag
from invites_core.hosts import Hosts, HostSettings
from invites_core.keys import DEFAULT_POLICY, ApiKey, KeyPolicy
from invites_core.service import ApiKeys
from invites_core.service.importing import KeyImport, RefusedKey, import_keys
from invites_core.stores.memory import MemoryStore
from invites_core.testing import cheap_hasher
from tests.helpers import FakeClock, make_key
from tests.service.importing import SECRET, Bring, Source, get_key, make_foreign, make_many
from tests.service.worlds import HOST, Faulty

# What is brought over


@pytest.mark.parametrize("key_id", ["6sKjFybZPGnx", "-LihiCNf28-X", "HTwALnKL", "_"])
def test_a_key_works_as_it_was(bring: Bring, memory_store: MemoryStore, api_keys: ApiKeys, key_id: str) -> None:
    """A key that was brought over verifies with the id and secret that it has, and can do what a plain key can."""
    foreign = make_foreign(key_id)
    report = bring(Source(foreign))
    assert report == KeyImport(imported=(key_id,), present=(), deleted=(), refused=(), removed=())
    key = api_keys.verify(f"{key_id}/{SECRET}")
    assert (key.id, key.host, key.name, key.created_at) == (key_id, HOST, "A bot", foreign.created_at)
    assert (key.policy, key.expires_at, key.previous) == (DEFAULT_POLICY, None, None)
    assert SECRET not in repr(memory_store.find_key(key_id)) + key.secret_hash + repr(foreign) + repr(report)
    with pytest.raises(InvalidKey):
        api_keys.verify(f"{key_id}/{SECRET[:-1]}X")


def test_hosts_are_normalised_and_must_be_served(bring: Bring, memory_store: MemoryStore) -> None:
    """The source is asked for the host's one spelling; a host that is not in the settings is refused before."""
    source = Source(make_foreign())
    served = Hosts({"bücher.example": HostSettings()})
    with pytest.raises(InvalidHost):
        bring(source, HOST, hosts=served)
    assert source.asked == []
    bring(source, "XN--bcher-kva.example", hosts=served)
    assert source.asked == ["bücher.example"]
    assert get_key(memory_store, "6sKjFybZPGnx").host == "bücher.example"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        pytest.param(None, None, id="none"),
        pytest.param("", None, id="empty"),
        pytest.param("x" * 300, "x" * 255, id="long"),
        pytest.param("a\0b\udcff\udcfec", "a\ufffdb\ufffdc", id="bytes-that-are-no-text"),
    ],
)
def test_names_are_kept_as_far_as_they_can_be(
    bring: Bring, memory_store: MemoryStore, name: str | None, kept: str | None
) -> None:
    """No key is refused for its name: what cannot be stored of one is replaced, and what is too long is cut."""
    bring(Source(make_foreign(name=name)))
    assert get_key(memory_store, "6sKjFybZPGnx").name == kept


def test_a_key_of_unknown_age_was_made_now(bring: Bring, memory_store: MemoryStore, clock: FakeClock) -> None:
    """Where the source does not know when a key was made, the time of the import stands for it."""
    bring(Source(make_foreign(created_at=None)))
    assert get_key(memory_store, "6sKjFybZPGnx").created_at == clock()


@pytest.mark.parametrize(
    ("foreign", "reason"),
    [
        pytest.param(make_foreign(secret="x" * 21), "shorter than 22", id="short-secret"),
        pytest.param(make_foreign(secret=""), "its secret is not base64url", id="empty-secret"),
        pytest.param(make_foreign(secret="x" * 22 + "+/=="), "its secret is not base64url", id="base64"),
        pytest.param(make_foreign(secret="ü" * 30), "its secret is not base64url", id="not-ascii"),
        pytest.param(make_foreign(secret="x" * 30 + "\n"), "its secret is not base64url", id="newline"),
        pytest.param(make_foreign(secret="x" * 243), "or too long", id="long-secret"),
        pytest.param(make_foreign("a b"), "its id is not base64url", id="space-in-the-id"),
        pytest.param(make_foreign("\udcff"), "its id is not base64url", id="bytes-in-the-id"),
        pytest.param(make_foreign(""), "its id is not base64url", id="empty-id"),
        pytest.param(make_foreign("i" * 254), "or too long", id="long-id"),
        pytest.param(UnreadableKey(id="x", reason="has no secret"), "has no secret", id="unreadable"),
    ],
)
def test_what_could_be_no_key_here_is_refused_by_name(
    bring: Bring, memory_store: MemoryStore, foreign: ForeignKey | UnreadableKey, reason: str
) -> None:
    """It is named by its id, without its secret; the others are brought over, and it stays where it is."""
    source = Source(foreign, make_foreign("good"))
    report = bring(source, remove=True)
    [refused] = report.refused
    assert refused.id == foreign.id
    assert reason in refused.reason
    assert getattr(foreign, "secret", "") in ("", None) or getattr(foreign, "secret", "") not in repr(report)
    assert (report.imported, report.removed) == (("good",), ("good",))
    assert [key.id for key in memory_store.list_keys()] == ["good"]
    assert list(source.keys) == [foreign.id]


def test_the_shortest_and_the_longest_are_taken(bring: Bring, api_keys: ApiKeys) -> None:
    """22 characters of secret are enough, and 255 in all are not too many."""
    keys = [make_foreign("short", secret="x" * 22), make_foreign("l" * 100, secret="y" * 154)]
    assert bring(Source(*keys)).refused == ()
    for key in keys:
        api_keys.verify(f"{key.id}/{key.secret}")


@given(st.dictionaries(st.text("aZ09_-/ü ", max_size=12), st.text("aZ09_-/= \n", max_size=40), min_size=1, max_size=5))
def test_a_key_works_or_is_refused(keys: dict[str, str]) -> None:
    """Whatever ids and secrets are: each is a key that verifies, or was refused."""
    store, hasher = MemoryStore(), cheap_hasher()
    foreign = [make_foreign(key_id, secret=secret) for key_id, secret in keys.items()]
    report = import_keys(store, Source(*foreign), HOST, hasher=hasher)
    assert {*report.imported, *(one.id for one in report.refused)} == keys.keys()
    for key_id in report.imported:
        assert ApiKeys(store, hasher=hasher).verify(f"{key_id}/{keys[key_id]}").id == key_id
        assert len(keys[key_id]) >= 22


# Again


def test_again_changes_nothing(bring: Bring, memory_store: MemoryStore, api_keys: ApiKeys) -> None:
    """What was changed here since stays: names, policies, ends; and nothing is hashed."""
    source = Source(*make_many(3))
    first = bring(source)
    api_keys.update(HOST, first.imported[0], name="Mine", policy=KeyPolicy(scopes=frozenset({"read"})))
    before = memory_store.list_keys()
    second = bring(source)
    assert second == KeyImport(imported=(), present=first.imported, deleted=(), refused=(), removed=())
    assert memory_store.list_keys() == before


def test_what_was_deleted_here_stays_deleted(bring: Bring, memory_store: MemoryStore, api_keys: ApiKeys) -> None:
    """No run brings a deleted key back, and none takes it away where it came from: no copy of it is left."""
    source = Source(make_foreign(), make_foreign("other"))
    bring(source)
    api_keys.delete(HOST, "6sKjFybZPGnx")
    report = bring(source, remove=True)
    assert (report.deleted, report.present, report.removed) == (("6sKjFybZPGnx",), ("other",), ("other",))
    assert memory_store.find_key("6sKjFybZPGnx") is None
    assert list(source.keys) == ["6sKjFybZPGnx"]


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        pytest.param({"host": "other.example"}, "a key of other.example has this id here", id="another-host"),
        pytest.param({}, "is here with another secret", id="another-secret"),
    ],
)
def test_a_key_that_is_another_one_here_is_refused(
    bring: Bring, memory_store: MemoryStore, here: dict[str, str], reason: str
) -> None:
    """An id that is taken here by another host or with another secret is refused by name, and nothing changes."""
    fields = {"tag": compute_tag("6sKjFybZPGnx", SECRET)} if here else {}
    key = make_key(id="6sKjFybZPGnx", **fields, **here)
    memory_store.add_key(key)
    source = Source(make_foreign())
    report = bring(source, remove=True)
    assert report == KeyImport(
        imported=(), present=(), deleted=(), refused=(RefusedKey("6sKjFybZPGnx", reason),), removed=()
    )
    assert memory_store.list_keys() == [key]
    assert list(source.keys) == ["6sKjFybZPGnx"]


@pytest.mark.parametrize("grace", [timedelta(hours=1), timedelta(0)], ids=["grace", "no-grace"])
def test_a_key_that_was_rotated_here_stays_rotated(
    bring: Bring, memory_store: MemoryStore, api_keys: ApiKeys, clock: FakeClock, grace: timedelta
) -> None:
    """The secret that a key had before is no mistake while it is known, and does not come back."""
    bring(Source(make_foreign()))
    api_keys.rotate(HOST, "6sKjFybZPGnx", grace=grace)
    clock.advance(timedelta(days=2))
    before = memory_store.list_keys()
    report = bring(Source(make_foreign()))
    if grace:
        assert report.present == ("6sKjFybZPGnx",)
    else:
        assert report.refused == (RefusedKey("6sKjFybZPGnx", "is here with another secret"),)
    assert memory_store.list_keys() == before
    with pytest.raises(InvalidKey):
        api_keys.verify(f"6sKjFybZPGnx/{SECRET}")


class Overtaken(Faulty):
    """A store in which another process does something between a look and the addition that follows."""

    def __init__(self, store: MemoryStore, other: Callable[[], object]) -> None:
        super().__init__(store)
        self._other: Callable[[], object] | None = other

    def add_key(self, key: ApiKey) -> None:
        other, self._other = self._other, None
        if other is not None:
            other()
        self._store.add_key(key)  # type: ignore[union-attr]  # it holds keys


def test_another_import_beside_it_is_no_failure(bring: Bring, memory_store: MemoryStore) -> None:
    """Where two imports run at once, each key is there once, and the later one finds it."""
    source = Source(make_foreign())
    store = Overtaken(memory_store, lambda: bring(source))
    assert bring(source, store=store).present == ("6sKjFybZPGnx",)
    assert len(memory_store.list_keys()) == 1


def test_a_deletion_beside_it_counts(bring: Bring, memory_store: MemoryStore, api_keys: ApiKeys) -> None:
    """A key that another process adds and deletes meanwhile stays deleted."""

    def add_and_delete() -> None:
        bring(Source(make_foreign()))
        api_keys.delete(HOST, "6sKjFybZPGnx")

    assert bring(Source(make_foreign()), store=Overtaken(memory_store, add_and_delete)).deleted == ("6sKjFybZPGnx",)
    assert memory_store.list_keys() == []


def test_a_store_that_contradicts_itself_ends_it(bring: Bring, memory_store: MemoryStore) -> None:
    """A store that says of a key that it is there and shows none is an error, and no endless loop."""

    class Broken(Faulty):
        def add_key(self, key: ApiKey) -> None:
            raise KeyExists

    with pytest.raises(StorageError, match="is not there"):
        bring(Source(make_foreign()), store=Broken(memory_store))
