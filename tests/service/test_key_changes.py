"""ApiKeys.update and rotate, and when a key was last used."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import apsw
import pytest

from invites_core.durations import MAX_DURATION
from invites_core.errors import InvalidHost, InvalidKey, InvalidRequest, KeyUnknown, OutcomeUnknown, PolicyRefused
from invites_core.hashing import SecretHasher
from invites_core.keys import DEFAULT_POLICY, NEVER, ApiKey, IssuedKey, KeyPolicy, Quota
from invites_core.service import ApiKeys, usage
from invites_core.stores.memory import MemoryStore
from tests.helpers import FULL_POLICY, NOON, SECOND, run_at_once, wait_until
from tests.processes import Fork
from tests.service.conftest import OpenWorld
from tests.service.worlds import HOST, Faulty, World

MINUTE = timedelta(minutes=1)


class TestUpdating:
    """ApiKeys.update."""

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            pytest.param({}, {}, id="nothing"),
            pytest.param({"name": "new"}, {"name": "new"}, id="name"),
            pytest.param({"name": ""}, {"name": None}, id="no-name"),
            pytest.param({"policy": FULL_POLICY}, {"policy": FULL_POLICY}, id="policy"),
            pytest.param({"expires_in": MINUTE}, {"expires_at": NOON + MINUTE}, id="expiry"),
            pytest.param({"expires_in": NEVER}, {"expires_at": None}, id="never"),
        ],
    )
    def test_what_is_given_is_changed_alone(
        self, world: World, change: dict[str, Any], expected: dict[str, Any]
    ) -> None:
        """An update changes what it names, at once, and leaves the rest; the secret stays."""
        issued = world.keys.create(HOST, name="old", expires_in=timedelta(days=1))
        updated = world.keys.update("EXAMPLE.com", issued.key.id, **change)
        assert updated == replace(issued.key, **expected)
        assert world.keys.verify(issued.combined) == updated

    def test_narrower_policy_holds_from_the_next_request_on(self, world: World) -> None:
        """A key that is verified after an update is bounded by it, and its quota counts what was made before."""
        issued = world.keys.create(HOST, policy=KeyPolicy(max_uses=5, quota=Quota(9, timedelta(days=1))))
        world.invites.create_many(world.keys.verify(issued.combined), 4, max_uses=5)
        narrow = KeyPolicy(quota=Quota(5, timedelta(days=1)))
        world.keys.update(HOST, issued.key.id, policy=narrow)
        key = world.keys.verify(issued.combined)
        with pytest.raises(PolicyRefused):
            world.invites.create(key, max_uses=2)
        world.invites.create(key)
        left = world.keys.find_quota_left(key)
        assert left is not None
        assert left[0] == 0

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"name": "x" * 256}, "name"),
            ({"name": "a\0"}, "name"),
            ({"expires_in": timedelta(0)}, "expires_in"),
            ({"expires_in": MAX_DURATION + SECOND}, "expires_in"),
            ({"policy": KeyPolicy(scopes=frozenset())}, "scopes"),
            ({"policy": KeyPolicy(kinds=frozenset({"other"}))}, "kinds"),
            ({"policy": KeyPolicy(max_uses=2**31)}, "max_uses"),
            ({"policy": KeyPolicy(max_expiry=MAX_DURATION + SECOND)}, "max_expiry"),
            ({"policy": KeyPolicy(quota=Quota(10**9 + 1, MINUTE))}, "quota"),
            ({"policy": KeyPolicy(quota=Quota(2**70, MINUTE))}, "quota"),
            ({"policy": KeyPolicy(quota=Quota(1, MAX_DURATION + SECOND))}, "quota"),
        ],
    )
    def test_bad_value_changes_nothing(self, world: World, change: dict[str, Any], field: str) -> None:
        """A value out of range is InvalidRequest with its field."""
        key = world.make_key()
        with pytest.raises(InvalidRequest) as caught:
            world.keys.update(HOST, key.id, **change)
        assert caught.value.field == field
        assert world.keys.find(key.id) == key

    @pytest.mark.parametrize("key_id", ["HTwALnKL", "", "a/b", "\0"])
    def test_unknown_key_is_told(self, world: World, key_id: str) -> None:
        """What is no key of this host can be neither updated nor rotated."""
        key = world.make_key()
        for host, wrong in ((HOST, key_id), ("example.org", key.id)):
            with pytest.raises(KeyUnknown):
                world.keys.update(host, wrong, name="x")
            with pytest.raises(KeyUnknown):
                world.keys.rotate(host, wrong)
        with pytest.raises(InvalidHost):
            world.keys.update("not a host", key.id, name="x")
        assert world.keys.find(key.id) == key

    def test_threads_lose_no_change(self, world: World) -> None:
        """Changes of different things at the same time are all made: none is written over by an older state."""
        for _ in range(5):
            key = world.make_key()
            changes: list[dict[str, Any]] = [
                {"name": "new"},
                {"policy": FULL_POLICY},
                {"expires_in": MINUTE},
            ]
            outcomes = run_at_once([partial(world.keys.update, HOST, key.id, **change) for change in changes])
            assert all(isinstance(outcome, ApiKey) for outcome in outcomes)
            assert world.keys.find(key.id) == replace(key, name="new", policy=FULL_POLICY, expires_at=NOON + MINUTE)

    def test_quota_beyond_its_bounds_makes_no_key(self, world: World) -> None:
        """A quota too large to be counted is InvalidRequest with its field, and the largest one is kept."""
        for quota in (Quota(10**9 + 1, MINUTE), Quota(2**70, MINUTE), Quota(1, MAX_DURATION + SECOND)):
            with pytest.raises(InvalidRequest) as caught:
                world.keys.create(HOST, policy=KeyPolicy(quota=quota))
            assert caught.value.field == "quota"
        assert list(world.keys.list()) == []
        largest = KeyPolicy(quota=Quota(10**9, MAX_DURATION))
        key = world.make_key(largest)
        assert world.keys.find(key.id) == key
        world.invites.create(key)
        left = world.keys.find_quota_left(key)
        assert left is not None
        assert left[0] == 10**9 - 1

    def test_policy_is_made_from_the_one_that_is_there(self, world: World) -> None:
        """A change of the policy that is made while another one is under way is kept by that other one."""
        key = world.make_key()
        read: list[KeyPolicy] = []

        def bound(policy: KeyPolicy) -> KeyPolicy:
            if not read:
                world.keys.update(HOST, key.id, policy=lambda policy: replace(policy, header_only=True))
            read.append(policy)
            return replace(policy, quota=Quota(5, MINUTE))

        updated = world.keys.update(HOST, key.id, policy=bound)
        both = replace(DEFAULT_POLICY, header_only=True, quota=Quota(5, MINUTE))
        assert read == [DEFAULT_POLICY, replace(DEFAULT_POLICY, header_only=True)]
        assert updated == world.keys.find(key.id) == replace(key, policy=both)

    def test_threads_lose_no_change_within_the_policy(self, world: World) -> None:
        """Changes of different fields of a policy at the same time are all made."""
        fields: list[dict[str, Any]] = [{"header_only": True}, {"allow_username": True}, {"max_uses": 7}]

        def change(field: dict[str, Any]) -> ApiKey:
            return world.keys.update(HOST, key.id, policy=lambda policy: replace(policy, **field))

        for _ in range(5):
            key = world.make_key()
            outcomes = run_at_once([partial(change, field) for field in fields])
            assert all(isinstance(outcome, ApiKey) for outcome in outcomes)
            policy = replace(DEFAULT_POLICY, header_only=True, allow_username=True, max_uses=7)
            assert world.keys.find(key.id) == replace(key, policy=policy)

    def test_policy_that_is_written_otherwise_can_be_updated(self, open_world: OpenWorld) -> None:
        """A row that lacks a field, as one of an older version may, is compared by what it means."""
        world = open_world("sqlite")
        key = world.make_key()
        connection = apsw.Connection(world.key_store.location)
        connection.execute('UPDATE keys SET policy = \'{"kinds": ["register"]}\'').fetchall()
        connection.close()
        assert world.keys.find(key.id) == key
        assert world.keys.update(HOST, key.id, name="new") == replace(key, name="new")
        assert world.keys.find(key.id) == replace(key, name="new", policy=DEFAULT_POLICY)


class TestRotating:
    """ApiKeys.rotate."""

    def test_both_secrets_are_taken_for_the_grace(self, world: World) -> None:
        """The old secret is taken to the last second of the grace, the new one from now on."""
        old = world.keys.create(HOST, name="My test key", policy=FULL_POLICY)
        world.keys.verify(old.combined)
        new = world.keys.rotate("EXAMPLE.com", old.key.id, grace=MINUTE)
        assert (new.key.id, new.key.policy, new.secret != old.secret) == (old.key.id, FULL_POLICY, True)
        world.clock.advance(MINUTE)
        assert world.keys.verify(old.combined).id == world.keys.verify(new.combined).id
        world.clock.advance(1)
        with pytest.raises(InvalidKey) as caught:
            world.keys.verify(old.combined)
        assert caught.value.reason == "wrong secret"
        assert world.keys.verify(new.combined).id == old.key.id

    def test_default_grace_is_a_day(self, world: World) -> None:
        """Where nothing is said the old secret is taken for 24 hours."""
        new = world.keys.rotate(HOST, world.make_key().id)
        assert new.key.previous is not None
        assert new.key.previous.valid_until == NOON + timedelta(hours=24)

    def test_without_grace_the_old_secret_is_refused_at_once(self, world: World) -> None:
        """A leaked secret can be replaced with immediate effect, also where it is in the cache."""
        old = world.keys.create(HOST)
        world.keys.verify(old.combined)
        new = world.keys.rotate(HOST, old.key.id, grace=timedelta(0))
        with pytest.raises(InvalidKey):
            world.keys.verify(old.combined)
        assert world.keys.verify(new.combined) == new.key

    def test_the_secret_before_the_last_is_refused(self, world: World) -> None:
        """A key has two secrets at most."""
        first = world.keys.create(HOST)
        second = world.keys.rotate(HOST, first.key.id)
        third = world.keys.rotate(HOST, first.key.id)
        with pytest.raises(InvalidKey):
            world.keys.verify(first.combined)
        assert world.keys.verify(second.combined) == world.keys.verify(third.combined) == third.key

    @pytest.mark.parametrize("grace", [-SECOND, timedelta(milliseconds=1), MAX_DURATION + SECOND])
    def test_bad_grace_changes_nothing(self, world: World, grace: timedelta) -> None:
        """A grace is none, or from a second to a century."""
        key = world.make_key()
        with pytest.raises(InvalidRequest) as caught:
            world.keys.rotate(HOST, key.id, grace=grace)
        assert caught.value.field == "grace"
        assert world.keys.find(key.id) == key

    def test_threads_rotate_one_after_the_other(self, world: World) -> None:
        """Of secrets that were made at once the last two are taken, and no other."""
        first = world.keys.create(HOST)
        outcomes = run_at_once([partial(world.keys.rotate, HOST, first.key.id)] * 4)
        issued = [outcome for outcome in outcomes if isinstance(outcome, IssuedKey)]
        assert len(issued) == 4

        def is_taken(one: IssuedKey) -> bool:
            try:
                world.keys.verify(one.combined)
            except InvalidKey:
                return False
            return True

        assert sum(map(is_taken, issued)) == 2
        assert not is_taken(first)


class TestUsage:
    """When a key was last used."""

    def test_use_is_written_later(self, world: World) -> None:
        """A verification writes nothing itself; what it noted is written afterwards, in one call."""
        issued, other = world.keys.create(HOST), world.keys.create(HOST)
        store = Faulty(world.key_store)
        keys = world.through(store, world.invite_store).keys
        for _ in range(3):
            keys.verify(issued.combined)
            keys.verify(other.combined)
        assert set(store.calls) == {"find_key"}
        keys.flush_usage()
        keys.flush_usage()
        assert store.calls.count("record_key_uses") == 1
        for one in (issued, other):
            assert keys.find(one.key.id) == replace(one.key, last_used_at=NOON)

    def test_use_is_coarse(self, world: World) -> None:
        """Within a minute of the last use that was written no other is noted, and after it one is."""
        issued = world.keys.create(HOST)
        store = Faulty(world.key_store)
        keys = world.through(store, world.invite_store).keys
        for seconds in (0, 59, 1):
            world.clock.advance(seconds)
            keys.verify(issued.combined)
            keys.flush_usage()
        assert store.calls.count("record_key_uses") == 2
        assert world.keys.verify(issued.combined).last_used_at == NOON + MINUTE

    def test_refused_key_is_not_used(self, world: World) -> None:
        """A wrong secret leaves no use."""
        key = world.make_key()
        with pytest.raises(InvalidKey):
            world.keys.verify(f"{key.id}/{'x' * 32}")
        world.keys.flush_usage()
        assert world.keys.find(key.id) == key

    def test_use_is_written_by_itself(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody has to ask for it: a thread of its own writes what was noted."""
        monkeypatch.setattr(usage, "WRITE_AFTER_SECONDS", 0.01)
        issued = world.keys.create(HOST)
        world.keys.verify(issued.combined)
        wait_until(lambda: world.keys.find(issued.key.id) == replace(issued.key, last_used_at=NOON))

    def test_thread_that_cannot_be_had_refuses_no_key(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no thread can be started keys are verified all the same, and uses are written once one can be."""

        def fail(timer: threading.Timer) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(usage, "WRITE_AFTER_SECONDS", 0.01)
        issued = world.keys.create(HOST)
        with monkeypatch.context() as without_threads:
            without_threads.setattr(threading.Timer, "start", fail)
            for _ in range(2):
                assert world.keys.verify(issued.combined) == issued.key
        world.clock.advance(SECOND)
        world.keys.verify(issued.combined)
        wait_until(lambda: world.keys.find(issued.key.id) == replace(issued.key, last_used_at=NOON + SECOND))

    def test_store_that_cannot_take_it_loses_it(self, world: World) -> None:
        """A use that could not be written is no error, and the next use is noted again."""
        issued = world.keys.create(HOST)
        store = Faulty(world.key_store)
        keys = world.through(store, world.invite_store).keys
        store.fail("record_key_uses", "before")
        keys.verify(issued.combined)
        keys.flush_usage()
        assert keys.find(issued.key.id) == issued.key
        keys.verify(issued.combined)
        keys.flush_usage()
        assert keys.find(issued.key.id) == replace(issued.key, last_used_at=NOON)

    def test_child_notes_its_own_uses(self, open_world: OpenWorld, fork: Fork) -> None:
        """What a parent has noted is the parent's to write, and a child notes and writes for itself."""
        world = open_world("sqlite")
        parents, childs = world.keys.create(HOST), world.keys.create(HOST)
        world.keys.verify(parents.combined)

        def run() -> list[object]:
            world.keys.verify(childs.combined)
            world.keys.flush_usage()
            found = [world.keys.find(one.key.id) for one in (parents, childs)]
            return [one and one.last_used_at for one in found]

        assert fork(run).result() == [None, NOON]
        world.keys.flush_usage()
        found = world.keys.find(parents.key.id)
        assert found is not None
        assert found.last_used_at == NOON


def test_rotation_whose_outcome_is_unknown_is_repeated_with_the_same_secret(hasher: SecretHasher) -> None:
    """When the answer of a rotation is lost the secret that the key's users have is still taken in the grace period."""

    class LosesOneAnswer(MemoryStore):
        answers = 0

        def rotate_key(self, key_id: str, **options: Any) -> ApiKey | None:
            rotated = super().rotate_key(key_id, **options)
            self.answers += 1
            if self.answers == 1:
                raise OutcomeUnknown("the connection was lost")
            return rotated

    keys = ApiKeys(LosesOneAnswer(), hasher=hasher)
    before = keys.create("example.com")
    after = keys.rotate("example.com", before.key.id)
    assert keys.verify(before.combined).id == keys.verify(after.combined).id
