"""ApiKeys and Invites: the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from invites_core.clock import system_clock
from invites_core.durations import MAX_DURATION
from invites_core.errors import (
    CorruptRecord,
    InvalidHost,
    InvalidKey,
    InvalidRequest,
    InvitesError,
    KeyExists,
    KeyUnknown,
    StorageError,
)
from invites_core.hashing import SecretHasher, compute_tag
from invites_core.hosts import Hosts, HostSettings
from invites_core.invites import Invite, is_token
from invites_core.keys import DEFAULT_POLICY, ApiKey, IssuedKey, KeyPolicy, PreviousSecret, Quota, generate_secret
from invites_core.service import ApiKeys, Invites
from invites_core.store import Grant, GrantTaken, Store
from invites_core.stores import open_store
from invites_core.stores.memory import MemoryStore
from tests.helpers import FULL_POLICY, NOON, STORE_KINDS, FakeClock, count_argon2, make_invite, make_key, texts

SECOND = timedelta(seconds=1)


class BrokenStore(MemoryStore):
    """A store that fails whenever it is asked."""

    def find_key(self, key_id: str) -> ApiKey | None:
        raise StorageError("broken")

    def add_key(self, key: ApiKey) -> None:
        raise StorageError("broken")

    def add_invites(self, invites: Sequence[Invite], *, if_absent: bool = False) -> None:
        raise StorageError("broken")

    def add_granted(self, grant: Grant, invites: Sequence[Invite]) -> GrantTaken:
        raise StorageError("broken")


class CountingStore(MemoryStore):
    """A store that counts how often a key is looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_for: list[str] = []

    def find_key(self, key_id: str) -> ApiKey | None:
        self.looked_for.append(key_id)
        return super().find_key(key_id)


@pytest.fixture(params=STORE_KINDS)
def store(request: pytest.FixtureRequest, store_url: Callable[[str], str]) -> Iterator[Store]:
    """An empty store of each kind."""
    opened = open_store(store_url(request.param))
    yield opened
    opened.close()


def get_refusal(verify: Callable[[], object]) -> InvalidKey:
    """Return the InvalidKey that a call raises."""
    with pytest.raises(InvalidKey) as caught:
        verify()
    assert str(caught.value) == "the API key is not valid"
    return caught.value


class TestCreatingKeys:
    """ApiKeys.create."""

    def test_key_is_stored_without_its_secret(self, api_keys: ApiKeys, memory_store: MemoryStore) -> None:
        """A new key is in the store with hash and tag, and its secret is nowhere in it."""
        issued = api_keys.create("example.com", name="My test key")
        [stored] = memory_store.list_keys()
        assert stored == issued.key
        assert issued.combined == f"{stored.id}/{issued.secret}"
        assert stored.tag == compute_tag(stored.id, issued.secret)
        assert stored.secret_hash.startswith("$argon2id$")
        assert issued.secret not in stored.secret_hash
        assert stored.created_at == NOON
        assert (stored.name, stored.host, stored.expires_at) == ("My test key", "example.com", None)
        assert (stored.previous, stored.last_used_at, stored.policy) == (None, None, DEFAULT_POLICY)

    def test_host_is_normalised(self, api_keys: ApiKeys) -> None:
        """A key is stored under the one spelling of its host."""
        assert api_keys.create("XN--BCHER-KVA.example.").key.host == "bücher.example"

    @pytest.mark.parametrize("host", ["", "not a host", "-", "example.com/x", "a..b"])
    def test_bad_host_is_refused(self, api_keys: ApiKeys, memory_store: MemoryStore, host: str) -> None:
        """For what is no host name no key is made."""
        with pytest.raises(InvalidHost, match="please supply a valid host"):
            api_keys.create(host)
        assert memory_store.list_keys() == []

    def test_host_that_is_not_served_is_refused(self, memory_store: MemoryStore, hasher: SecretHasher) -> None:
        """For a host that is not in the settings no key is made."""
        keys = ApiKeys(memory_store, hasher=hasher, hosts=Hosts({"example.com": HostSettings()}))
        keys.create("example.com")
        with pytest.raises(InvalidHost, match="please supply a valid host"):
            keys.create("example.org")

    @pytest.mark.parametrize("name", [None, ""])
    def test_no_name_is_none(self, api_keys: ApiKeys, name: str | None) -> None:
        """An empty name is no name."""
        assert api_keys.create("example.com", name=name).key.name is None

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=texts.filter(bool))
    def test_name_is_kept_to_the_letter(self, api_keys: ApiKeys, name: str) -> None:
        """Any text is a name, with its spaces and newlines."""
        assert api_keys.create("example.com", name=name).key.name == name

    @pytest.mark.parametrize("name", ["x" * 256, "a\0b", "a\ud800"])
    def test_bad_name_is_refused(self, api_keys: ApiKeys, name: str) -> None:
        """A name that is too long, or could not be stored everywhere, is an InvalidRequest."""
        with pytest.raises(InvalidRequest) as caught:
            api_keys.create("example.com", name=name)
        assert caught.value.field == "name"

    @pytest.mark.parametrize(
        "lifetime",
        [
            pytest.param(timedelta(0), id="none"),
            pytest.param(timedelta(seconds=-1), id="negative"),
            pytest.param(timedelta(milliseconds=999), id="less-than-a-second"),
            pytest.param(MAX_DURATION + SECOND, id="over-a-century"),
            pytest.param(timedelta.max, id="beyond-every-calendar"),
        ],
    )
    def test_bad_lifetime_is_refused(self, api_keys: ApiKeys, lifetime: timedelta) -> None:
        """A lifetime is from a second to a century."""
        with pytest.raises(InvalidRequest) as caught:
            api_keys.create("example.com", expires_in=lifetime)
        assert caught.value.field == "expires_in"

    def test_times_are_whole_seconds(self, memory_store: MemoryStore, hasher: SecretHasher) -> None:
        """The clock is cut to seconds once, and the lifetime too."""
        clock = FakeClock(NOON.replace(microsecond=999_999))
        key = ApiKeys(memory_store, hasher=hasher, clock=clock).create("example.com", expires_in=1.9 * SECOND).key
        assert key.created_at == NOON
        assert key.expires_at == NOON + SECOND

    def test_id_that_is_taken_is_drawn_again(
        self, api_keys: ApiKeys, memory_store: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where chance gives an id that is there, or was deleted, another is drawn, and nothing is overwritten."""
        taken, deleted = make_key(id="taken000"), make_key(id="deleted0")
        memory_store.add_key(taken)
        memory_store.add_key(deleted)
        memory_store.delete_key(deleted.id, host=deleted.host, now=NOON)
        ids = iter(["taken000", "deleted0", "fresh000"])
        monkeypatch.setattr("invites_core.service.keys.generate_key_id", lambda: next(ids))
        issued = api_keys.create("example.com")
        assert issued.key.id == "fresh000"
        assert api_keys.verify(issued.combined) == issued.key
        assert memory_store.find_key("taken000") == taken

    @pytest.mark.parametrize(
        "policy",
        [
            pytest.param(DEFAULT_POLICY, id="default"),
            pytest.param(FULL_POLICY, id="full"),
        ],
    )
    def test_policy_is_kept(self, store: Store, hasher: SecretHasher, policy: KeyPolicy) -> None:
        """A key may what it was granted, after it was read back."""
        keys = ApiKeys(store, hasher=hasher)
        assert keys.verify(keys.create("example.com", policy=policy).combined).policy == policy

    @pytest.mark.parametrize(
        "make_policy",
        [
            pytest.param(lambda: KeyPolicy(max_uses=0), id="no-use"),
            pytest.param(lambda: KeyPolicy(max_uses=-1), id="negative-uses"),
            pytest.param(lambda: KeyPolicy(max_expiry=timedelta(0)), id="no-time"),
            pytest.param(lambda: KeyPolicy(max_expiry=timedelta(milliseconds=5)), id="less-than-a-second"),
            pytest.param(lambda: KeyPolicy(max_expiry=-SECOND), id="negative-time"),
            pytest.param(lambda: KeyPolicy(quota=Quota(0, timedelta(days=1))), id="quota-of-none"),
            pytest.param(lambda: KeyPolicy(quota=Quota(1, timedelta(0))), id="quota-without-a-period"),
        ],
    )
    def test_policy_that_cannot_be_stored_is_refused(
        self, store: Store, hasher: SecretHasher, make_policy: Callable[[], KeyPolicy]
    ) -> None:
        """A policy that a store could not read back is an InvalidRequest, and the keys can still be listed."""
        keys = ApiKeys(store, hasher=hasher)
        with pytest.raises(InvalidRequest):
            keys.create("example.com", policy=make_policy())
        assert list(keys.list()) == []

    def test_failure_of_the_store_is_told(self, hasher: SecretHasher) -> None:
        """A key that could not be stored is not handed out."""
        with pytest.raises(StorageError):
            ApiKeys(BrokenStore(), hasher=hasher).create("example.com")


class TestVerifying:
    """ApiKeys.verify: cheapest test first, each refusal the same from outside."""

    def test_issued_key_is_accepted(self, store: Store, hasher: SecretHasher) -> None:
        """What was handed out is accepted, and gives the record."""
        keys = ApiKeys(store, hasher=hasher)
        issued = keys.create("example.com", name="My test key")
        assert keys.verify(issued.combined) == issued.key
        assert keys.verify(issued.combined) == issued.key

    def test_malformed_key_asks_no_store(self, hasher: SecretHasher) -> None:
        """What has not the shape of a key is refused before anything is read."""
        store = CountingStore()
        refusal = get_refusal(lambda: ApiKeys(store, hasher=hasher).verify("no-slash"))
        assert (refusal.reason, refusal.key_id) == ("malformed", None)
        assert store.looked_for == []

    def test_unknown_key_is_refused(self, api_keys: ApiKeys) -> None:
        """An id that is not there is refused, and named for the log alone."""
        refusal = get_refusal(lambda: api_keys.verify("HTwALnKL/73UUylA-2ZJbu9x1XMATuIbjWpip8ow1"))
        assert (refusal.reason, refusal.key_id) == ("unknown", "HTwALnKL")

    def test_wrong_secret_is_refused(self, api_keys: ApiKeys) -> None:
        """Another secret of the same form is refused."""
        issued = api_keys.create("example.com")
        refusal = get_refusal(lambda: api_keys.verify(f"{issued.key.id}/{generate_secret()}"))
        assert (refusal.reason, refusal.key_id) == ("wrong secret", issued.key.id)

    def test_secret_of_another_key_is_refused(self, api_keys: ApiKeys) -> None:
        """A secret opens its own key alone."""
        one, other = api_keys.create("example.com"), api_keys.create("example.com")
        api_keys.verify(one.combined)
        api_keys.verify(other.combined)
        get_refusal(lambda: api_keys.verify(f"{one.key.id}/{other.secret}"))

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_changed_key_is_refused(self, api_keys: ApiKeys, data: st.DataObject) -> None:
        """A key with one character changed, added or left out is refused."""
        issued = api_keys.create("example.com")
        combined = issued.combined
        start = data.draw(st.integers(0, len(combined)))
        changed = combined[:start] + data.draw(st.text("Az09_-/= é", max_size=1)) + combined[start + 1 :]
        if changed != combined:
            get_refusal(lambda: api_keys.verify(changed))
        assert api_keys.verify(combined) == issued.key

    def test_tag_alone_opens_nothing(self, api_keys: ApiKeys, memory_store: MemoryStore, hasher: SecretHasher) -> None:
        """A secret whose tag matches and whose hash does not is refused: the tag is no proof."""
        secret = generate_secret()
        key = make_key(tag=compute_tag("HTwALnKL", secret), id="HTwALnKL", secret_hash=hasher.hash(generate_secret()))
        memory_store.add_key(key)
        refusal = get_refusal(lambda: api_keys.verify(f"HTwALnKL/{secret}"))
        assert (refusal.reason, refusal.key_id) == ("wrong secret", "HTwALnKL")

    def test_hash_alone_opens_nothing(self, api_keys: ApiKeys, memory_store: MemoryStore, hasher: SecretHasher) -> None:
        """A secret whose hash matches and whose tag does not is refused, warm or cold, and is not hashed."""
        secret = generate_secret()
        key = make_key(tag=b"\0" * 8, secret_hash=hasher.hash(secret))
        memory_store.add_key(key)
        hasher.verify(secret, key.secret_hash)
        counted = count_argon2(hasher)
        get_refusal(lambda: api_keys.verify(f"{key.id}/{secret}"))
        assert counted.calls == 0

    def test_key_is_valid_to_its_last_second(self, api_keys: ApiKeys, clock: FakeClock) -> None:
        """A key is taken in the second `expires_at`, and not in the next."""
        issued = api_keys.create("example.com", expires_in=timedelta(seconds=60))
        clock.advance(60.999)
        assert api_keys.verify(issued.combined) == issued.key
        clock.advance(0.001)
        refusal = get_refusal(lambda: api_keys.verify(issued.combined))
        assert (refusal.reason, refusal.key_id) == ("expired", issued.key.id)

    def test_expired_key_tells_nothing_of_its_secret(self, api_keys: ApiKeys, clock: FakeClock) -> None:
        """Of an expired key right and wrong secrets are refused for the same reason."""
        issued = api_keys.create("example.com", expires_in=SECOND)
        clock.advance(2)
        right = get_refusal(lambda: api_keys.verify(issued.combined))
        wrong = get_refusal(lambda: api_keys.verify(f"{issued.key.id}/{generate_secret()}"))
        assert right.reason == wrong.reason == "expired"

    def test_key_of_a_host_that_is_not_served_is_refused(self, memory_store: MemoryStore, hasher: SecretHasher) -> None:
        """When a host leaves the settings its keys are InvalidKey, and valid again when it comes back."""
        issued = ApiKeys(memory_store, hasher=hasher).create("example.org")
        without = ApiKeys(memory_store, hasher=hasher, hosts=Hosts({"example.com": HostSettings()}))
        refusal = get_refusal(lambda: without.verify(issued.combined))
        assert (refusal.reason, refusal.key_id) == ("host not served", issued.key.id)
        both = Hosts({"example.com": HostSettings(), "example.org": HostSettings()})
        assert ApiKeys(memory_store, hasher=hasher, hosts=both).verify(issued.combined) == issued.key

    def test_deleted_key_is_refused_at_once(self, store: Store, hasher: SecretHasher) -> None:
        """A key that is in the cache is refused as soon as it is deleted, by every user of the store."""
        keys, others = ApiKeys(store, hasher=hasher), ApiKeys(store, hasher=SecretHasher(time_cost=1, memory_kib=8))
        issued = keys.create("example.com")
        for one in (keys, others):
            one.verify(issued.combined)
        keys.delete("example.com", issued.key.id)
        for one in (keys, others):
            assert get_refusal(partial(one.verify, issued.combined)).reason == "unknown"

    def test_row_is_read_for_every_check(self, hasher: SecretHasher, clock: FakeClock) -> None:
        """The cache never stands in for the row: a warm key is looked for each time, and its expiry is asked for."""
        store = CountingStore()
        keys = ApiKeys(store, hasher=hasher, clock=clock)
        issued = keys.create("example.com", expires_in=timedelta(hours=1))
        for _ in range(5):
            keys.verify(issued.combined)
        assert store.looked_for == [issued.key.id] * 5
        store._keys[issued.key.id] = replace(issued.key, expires_at=NOON - SECOND)
        assert get_refusal(lambda: keys.verify(issued.combined)).reason == "expired"

    def test_warm_key_costs_no_hash(self, api_keys: ApiKeys, hasher: SecretHasher) -> None:
        """A key that was checked before is checked without argon2."""
        counted = count_argon2(hasher)
        issued = api_keys.create("example.com")
        for _ in range(10):
            api_keys.verify(issued.combined)
        assert counted.calls == 1

    def test_new_secret_under_the_same_id_is_checked_anew(
        self, api_keys: ApiKeys, memory_store: MemoryStore, hasher: SecretHasher
    ) -> None:
        """What is known of an old hash of a key says nothing of a new one."""
        issued = api_keys.create("example.com")
        api_keys.verify(issued.combined)
        secret = generate_secret()
        memory_store._keys[issued.key.id] = replace(
            issued.key, tag=compute_tag(issued.key.id, secret), secret_hash=hasher.hash(secret)
        )
        get_refusal(lambda: api_keys.verify(issued.combined))
        assert api_keys.verify(f"{issued.key.id}/{secret}").id == issued.key.id

    @pytest.mark.parametrize(
        "broken",
        [
            pytest.param({"secret_hash": "garbage"}, id="hash-that-cannot-be-read"),
            pytest.param({"secret_hash": "$argon2id$v=19$m=4194304,t=9,p=1$c29tZXNhbHQ$" + "A" * 43}, id="much-work"),
        ],
    )
    def test_corrupt_row_is_no_wrong_key(
        self, api_keys: ApiKeys, memory_store: MemoryStore, broken: dict[str, Any]
    ) -> None:
        """Where the right secret meets a row that cannot be used the answer is CorruptRecord, not InvalidKey."""
        secret = generate_secret()
        memory_store.add_key(make_key(id="HTwALnKL", tag=compute_tag("HTwALnKL", secret), **broken))
        with pytest.raises(CorruptRecord):
            api_keys.verify(f"HTwALnKL/{secret}")

    def test_store_that_fails_is_no_wrong_key(self, hasher: SecretHasher) -> None:
        """Where the row cannot be read the answer is StorageError, not InvalidKey."""
        with pytest.raises(StorageError):
            ApiKeys(BrokenStore(), hasher=hasher).verify("HTwALnKL/73UUylA-2ZJbu9x1XMATuIbjWpip8ow1")

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(text=st.text() | st.builds("{}/{}".format, st.text(), st.text()))
    def test_no_text_is_another_error(self, api_keys: ApiKeys, text: str) -> None:
        """Whatever is shown as a key, the answer is InvalidKey."""
        get_refusal(lambda: api_keys.verify(text))

    def test_no_error_shows_a_secret(self, api_keys: ApiKeys) -> None:
        """Neither text nor repr of a refusal holds what was shown as the secret."""
        issued = api_keys.create("example.com")
        for combined in (f"{issued.key.id}/secret-canary", "malformed secret-canary", "unknown0/secret-canary"):
            refusal = get_refusal(partial(api_keys.verify, combined))
            assert "canary" not in f"{refusal} {refusal!r} {vars(refusal)}"


class TestRotatedKeys:
    """A key that has two secrets for a while."""

    @pytest.fixture
    def rotated(self, memory_store: MemoryStore, hasher: SecretHasher) -> tuple[ApiKey, str, str]:
        """Give a key whose old secret is taken for another minute, the old secret and the new one."""
        old, new = generate_secret(), generate_secret()
        previous = PreviousSecret(
            secret_hash=hasher.hash(old), tag=compute_tag("HTwALnKL", old), valid_until=NOON + timedelta(minutes=1)
        )
        key = make_key(id="HTwALnKL", secret_hash=hasher.hash(new), tag=compute_tag("HTwALnKL", new), previous=previous)
        memory_store.add_key(key)
        return key, old, new

    def test_old_secret_is_taken_to_its_last_second(
        self, api_keys: ApiKeys, clock: FakeClock, rotated: tuple[ApiKey, str, str]
    ) -> None:
        """Both secrets are taken in the second `valid_until`, and only the new one in the next."""
        key, old, new = rotated
        clock.advance(60)
        assert api_keys.verify(f"{key.id}/{old}") == key
        assert api_keys.verify(f"{key.id}/{new}") == key
        clock.advance(1)
        assert get_refusal(lambda: api_keys.verify(f"{key.id}/{old}")).reason == "wrong secret"
        assert api_keys.verify(f"{key.id}/{new}") == key

    def test_wrong_secret_matches_neither(
        self, api_keys: ApiKeys, hasher: SecretHasher, rotated: tuple[ApiKey, str, str]
    ) -> None:
        """A third secret is refused without a hash."""
        counted = count_argon2(hasher)
        get_refusal(lambda: api_keys.verify(f"{rotated[0].id}/{generate_secret()}"))
        assert counted.calls == 0


class TestFindingKeys:
    """ApiKeys.find, list and delete."""

    def test_key_is_found_by_its_id(self, api_keys: ApiKeys) -> None:
        """A key is found by id, whatever its host; an unknown id finds nothing."""
        issued = api_keys.create("example.com")
        assert api_keys.find(issued.key.id) == issued.key
        assert api_keys.find("HTwALnKL") is None

    def test_list_takes_any_spelling_of_a_host(self, api_keys: ApiKeys, clock: FakeClock) -> None:
        """Keys are listed by host, oldest first, however the host is spelled; without a host all of them."""
        issued: list[IssuedKey] = []
        for host in ("bücher.example", "example.com", "bücher.example"):
            issued.append(api_keys.create(host))
            clock.advance(1)
        first, second, third = (one.key for one in issued)
        assert list(api_keys.list("XN--BCHER-KVA.EXAMPLE")) == [first, third]
        assert list(api_keys.list("example.org")) == []
        assert list(api_keys.list()) == [first, second, third]

    def test_list_of_a_bad_host_is_refused(self, api_keys: ApiKeys) -> None:
        """What is no host name has no list."""
        with pytest.raises(InvalidHost):
            api_keys.list("not a host")

    def test_key_of_a_host_that_is_not_served_can_be_deleted(
        self, memory_store: MemoryStore, hasher: SecretHasher
    ) -> None:
        """What is left of a host that was given up can be listed and removed."""
        issued = ApiKeys(memory_store, hasher=hasher).create("example.org")
        keys = ApiKeys(memory_store, hasher=hasher, hosts=Hosts({"example.com": HostSettings()}))
        assert list(keys.list("example.org")) == [issued.key]
        keys.delete("example.org", issued.key.id)
        assert list(keys.list("example.org")) == []

    def test_key_is_deleted_by_any_spelling_of_its_host(self, api_keys: ApiKeys) -> None:
        """A deletion names the host as the creation did, however spelled."""
        issued = api_keys.create("bücher.example")
        api_keys.delete("xn--bcher-kva.example", issued.key.id)
        assert api_keys.find(issued.key.id) is None

    @pytest.mark.parametrize("key_id", ["HTwALnKL", "", "a/b", "-", "x" * 10_000, "\0", "caf\udce9"])
    def test_unknown_key_cannot_be_deleted(self, store: Store, hasher: SecretHasher, key_id: str) -> None:
        """An id that is not there, or can be none, is KeyUnknown, in the words that the command prints."""
        keys = ApiKeys(store, hasher=hasher)
        assert keys.find(key_id) is None
        with pytest.raises(KeyUnknown, match="^key not found$"):
            keys.delete("example.com", key_id)

    def test_key_of_another_host_cannot_be_deleted(self, api_keys: ApiKeys) -> None:
        """For another host the key is unknown, and stays valid."""
        issued = api_keys.create("example.com")
        with pytest.raises(KeyUnknown):
            api_keys.delete("example.org", issued.key.id)
        assert api_keys.verify(issued.combined) == issued.key

    def test_second_deletion_is_of_an_unknown_key(self, api_keys: ApiKeys) -> None:
        """A key that was deleted is unknown."""
        issued = api_keys.create("example.com")
        api_keys.delete("example.com", issued.key.id)
        with pytest.raises(KeyUnknown):
            api_keys.delete("example.com", issued.key.id)

    def test_deleted_id_is_not_imported_again(self, api_keys: ApiKeys, memory_store: MemoryStore) -> None:
        """A store keeps the mark of a key that was deleted here."""
        issued = api_keys.create("example.com")
        api_keys.delete("example.com", issued.key.id)
        with pytest.raises(KeyExists):
            memory_store.add_key(issued.key)


class TestCreatingInvites:
    """Invites.create and create_for."""

    def test_key_makes_a_plain_invite(self, store: Store, hasher: SecretHasher, clock: FakeClock) -> None:
        """An invite of a key is for the key's host, single-use, valid for 7 days, and found again as it was given."""
        key = ApiKeys(store, hasher=hasher, clock=clock).create("example.com").key
        invites = Invites(store, clock=clock)
        invite = invites.create(key)
        assert is_token(invite.token)
        assert len(invite.token) == 24
        assert invite == make_invite(
            token=invite.token,
            source=f"api/token/{key.id}",
            landing_page=f"https://example.com/invite?{invite.token}",
        )
        assert invite.state_at(NOON) == "pending"
        assert invites.find(invite.token) == invite

    def test_key_that_is_deleted_meanwhile_is_invalid(self, store: Store, hasher: SecretHasher) -> None:
        """Between the check of a key and its invite the key can be deleted: then nothing is made."""
        keys, invites = ApiKeys(store, hasher=hasher), Invites(store)
        issued = keys.create("example.com")
        key = keys.verify(issued.combined)
        keys.delete("example.com", key.id)
        refusal = get_refusal(lambda: invites.create(key))
        assert (refusal.reason, refusal.key_id) == ("unknown", key.id)

    def test_failure_of_the_store_is_told(self) -> None:
        """An invite that could not be stored is not handed out."""
        with pytest.raises(StorageError):
            Invites(BrokenStore()).create(make_key())

    def test_caller_makes_invites_without_a_key(self, store: Store, clock: FakeClock) -> None:
        """On the caller's own authority an invite needs no key, and says who made it."""
        invites = Invites(store, clock=clock)
        invite = invites.create_for("BÜCHER.example", source="command")
        assert (invite.host, invite.source) == ("bücher.example", "command")
        assert invite.landing_page == f"https://xn--bcher-kva.example/invite?{invite.token}"
        assert invites.find(invite.token) == invite

    def test_bad_host_is_refused(self, memory_store: MemoryStore) -> None:
        """For what is no host name, or not served, no invite is made."""
        invites = Invites(memory_store, hosts=Hosts({"example.com": HostSettings()}))
        for host in ("not a host", "example.org"):
            with pytest.raises(InvalidHost):
                invites.create_for(host, source="command")

    def test_settings_of_the_host_are_used(self, memory_store: MemoryStore, clock: FakeClock) -> None:
        """Lifetime and link are as the host is set to."""
        settings = HostSettings(landing_page="https://x.example/join/{token}", invite_expiry=timedelta(days=30))
        invite = Invites(memory_store, hosts=Hosts({"example.com": settings}), clock=clock).create_for(
            "example.com", source="command"
        )
        assert invite.expires_at == NOON + timedelta(days=30)
        assert invite.landing_page == f"https://x.example/join/{invite.token}"

    def test_host_without_a_page_has_the_uri_as_its_link(self, memory_store: MemoryStore) -> None:
        """Where there is no landing page the link is the xmpp: URI."""
        hosts = Hosts({"example.com": HostSettings(landing_page="")})
        invite = Invites(memory_store, hosts=hosts).create_for("example.com", source="command")
        assert invite.landing_page == invite.uri

    def test_times_are_whole_seconds(self, memory_store: MemoryStore) -> None:
        """The clock is cut to seconds once a call."""
        invites = Invites(memory_store, clock=FakeClock(NOON.replace(microsecond=999_999)))
        invite = invites.create_for("example.com", source="command")
        assert invite.created_at == NOON
        assert invite.expires_at == NOON + timedelta(days=7)

    def test_tokens_differ(self, memory_store: MemoryStore) -> None:
        """No two invites share a token."""
        invites = Invites(memory_store)
        assert len({invites.create_for("example.com", source="command").token for _ in range(1_000)}) == 1_000


class TestFindingInvites:
    """Invites.find."""

    def test_link_follows_the_settings_of_the_day(self, memory_store: MemoryStore) -> None:
        """When a host's landing page changes the links of its old invites change too."""
        invite = Invites(memory_store).create_for("example.com", source="command")
        moved = Hosts({"example.com": HostSettings(landing_page="https://new.example/{token}")})
        found = Invites(memory_store, hosts=moved).find(invite.token)
        assert found is not None
        assert found.landing_page == f"https://new.example/{invite.token}"

    @pytest.mark.parametrize("token", ["", "short", "x" * 24, "x" * 256, "a/b" * 8, "\0" * 24, "é" * 24, "\udce9" * 24])
    def test_unknown_token_finds_nothing(self, store: Store, token: str) -> None:
        """A token that is not there, or can be none, finds nothing."""
        assert Invites(store).find(token) is None

    def test_invite_is_of_its_own_host(self, invites: Invites) -> None:
        """Where a host is given the invite of another is not found; any spelling of its own finds it."""
        invite = invites.create_for("bücher.example", source="command")
        assert invites.find(invite.token, host="XN--BCHER-KVA.example.") == invite
        assert invites.find(invite.token, host="example.com") is None

    def test_invite_of_a_host_that_is_not_served_is_not_found(self, memory_store: MemoryStore) -> None:
        """When a host leaves the settings its invites are not shown."""
        invite = Invites(memory_store).create_for("example.org", source="command")
        assert Invites(memory_store, hosts=Hosts({"example.com": HostSettings()})).find(invite.token) is None

    def test_invite_in_any_state_is_found(self, memory_store: MemoryStore, invites: Invites, clock: FakeClock) -> None:
        """An invite is found when it is over as well: its state says so."""
        invite = invites.create_for("example.com", source="command")
        clock.advance(timedelta(days=7))
        found = invites.find(invite.token)
        assert found is not None
        assert found.state_at(clock.now) == "pending"
        clock.advance(1)
        assert found.state_at(clock.now) == "expired"
        assert invites.find(invite.token) == invite


def test_system_clock_is_aware() -> None:
    """The clock that is used where none is given tells UTC."""
    before = datetime.now(UTC)
    now = system_clock()
    assert now.tzinfo is UTC
    assert before <= now <= datetime.now(UTC)


def test_every_refusal_has_the_one_root(api_keys: ApiKeys) -> None:
    """A caller that catches InvitesError misses nothing."""
    calls: list[Callable[[], object]] = [
        lambda: api_keys.verify("x"),
        lambda: api_keys.delete("example.com", "HTwALnKL"),
        lambda: api_keys.create("-"),
        lambda: api_keys.list("-"),
    ]
    for call in calls:
        with pytest.raises(InvitesError):
            call()
