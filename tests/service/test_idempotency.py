"""Idempotent creation: the same request again makes nothing twice, whatever failed in between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from invites_core.errors import IdempotencyConflict, InvalidRequest, InvitesError, OutcomeUnknown, QuotaSpent
from invites_core.hosts import Hosts, HostSettings
from invites_core.invites import Invite
from invites_core.keys import ApiKey, KeyPolicy
from tests.helpers import NOON, SECOND, run_at_once
from tests.service.conftest import OpenWorld
from tests.service.worlds import DAILY, HOST, Faulty, World, make_world

POLICY = KeyPolicy(quota=DAILY)
WEEK = timedelta(days=7)


@pytest.fixture
def key(world: World) -> ApiKey:
    """A key that may make five invites a day."""
    return world.make_key(POLICY)


def find_left(world: World, key: ApiKey) -> int:
    left = world.keys.find_quota_left(key)
    assert left is not None
    return left[0]


class TestRepeats:
    """A request that is sent twice."""

    def test_repeat_gives_the_same_invite(self, world: World, key: ApiKey) -> None:
        """A repeated request is answered as the first was, makes nothing, and takes nothing."""
        first = world.invites.create(key, idempotency_key="a", note="for Bob")
        world.clock.advance(3600)
        assert world.invites.create(key, idempotency_key="a", note="for Bob") == first
        assert world.count_invites() == 1
        assert find_left(world, key) == 4

    def test_repeat_of_several_gives_the_same(self, world: World, key: ApiKey) -> None:
        """All invites of a request are in its repeat, in their order."""
        first = world.invites.create_many(key, 3, idempotency_key="a")
        assert world.invites.create_many(key, 3, idempotency_key="a") == first
        assert find_left(world, key) == 2

    def test_repeat_is_answered_whatever_has_become_of_the_invite(self, world: World, key: ApiKey) -> None:
        """An invite that was redeemed, or purged, since then is given again as it was made, and not made again."""
        first = world.invites.create(key, idempotency_key="a")
        world.invites.redeem(first.token)
        assert world.invites.create(key, idempotency_key="a") == first
        world.clock.advance(SECOND)
        assert world.invites.purge(older_than=timedelta(0)) == 1
        assert world.invites.create(key, idempotency_key="a") == first
        assert world.invites.find(first.token) is None

    @pytest.mark.parametrize("days", [1, 30])
    def test_repeat_ends_when_the_first_was_said_to(self, world: World, key: ApiKey, days: int) -> None:
        """A repeat is answered the expiry of the invite that there is, whatever the host's default has become."""
        first = world.invites.create_many(key, 2, idempotency_key="a")
        hosts = Hosts({HOST: HostSettings(invite_expiry=timedelta(days=days))})
        later = make_world(world.key_store, world.invite_store, hasher=world.hasher, clock=world.clock, hosts=hosts)
        repeated = later.invites.create_many(key, 2, idempotency_key="a")
        assert [invite.expires_at for invite in repeated] == [NOON + WEEK] * 2
        assert repeated == first

    def test_repeat_is_answered_when_the_quota_is_spent(self, world: World, key: ApiKey) -> None:
        """A repeat takes none of a quota that has none left."""
        first = world.invites.create(key, idempotency_key="a")
        world.invites.create_many(key, 4)
        with pytest.raises(QuotaSpent):
            world.invites.create(key, idempotency_key="b")
        assert world.invites.create(key, idempotency_key="a") == first

    @pytest.mark.parametrize(
        ("count", "fields"),
        [
            pytest.param(2, {}, id="count"),
            pytest.param(1, {"note": "x"}, id="note"),
            pytest.param(1, {"expires_in": timedelta(seconds=1)}, id="expiry"),
            pytest.param(1, {"groups": ["b", "a"]}, id="groups"),
            pytest.param(1, {"max_uses": 2}, id="uses"),
            pytest.param(1, {"username": "alice"}, id="username"),
        ],
    )
    def test_other_request_conflicts(self, world: World, count: int, fields: dict[str, Any]) -> None:
        """The same identity for another request is refused, and makes and takes nothing."""
        wide = KeyPolicy(quota=DAILY, groups=frozenset("ab"), max_uses=5, allow_username=True)
        key = world.make_key(wide)
        first = world.invites.create(key, idempotency_key="a")
        with pytest.raises(IdempotencyConflict):
            world.invites.create_many(key, count, idempotency_key="a", **fields)
        assert world.count_invites() == 1
        assert find_left(world, key) == 4
        assert world.invites.create(key, idempotency_key="a") == first

    def test_same_request_in_other_words_is_the_same(self, world: World) -> None:
        """What means the same after normalising is the same request."""
        key = world.make_key(KeyPolicy(quota=DAILY, groups=frozenset("ab"), allow_username=True))
        first = world.invites.create(key, idempotency_key="a", username="Alice", groups=["a"], registration=True)
        assert world.invites.create(key, idempotency_key="a", username="alice", groups=("a",)) == first

    def test_identities_belong_to_their_keys(self, world: World, key: ApiKey) -> None:
        """Two keys can use the same identity."""
        other = world.make_key(POLICY)
        first = world.invites.create(key, idempotency_key="a")
        assert world.invites.create(other, idempotency_key="a").token != first.token

    def test_identity_is_kept_for_a_week(self, world: World, key: ApiKey) -> None:
        """In the last second of 7 days a request is a repeat, and in the next it is a new one."""
        first = world.invites.create(key, idempotency_key="a")
        world.clock.advance(WEEK)
        world.invites.purge(older_than=timedelta(days=365))
        assert world.invites.create(key, idempotency_key="a") == first
        world.clock.advance(SECOND)
        second = world.invites.create(key, idempotency_key="a")
        assert (second.token != first.token, second.created_at) == (True, NOON + WEEK + SECOND)

    def test_purge_drops_identities_that_no_longer_count(self, world: World, key: ApiKey) -> None:
        """With a purge goes what is kept of creations older than 7 days."""
        world.invites.create(key, idempotency_key="a")
        world.clock.advance(WEEK + SECOND)
        world.invites.purge(older_than=timedelta(days=365))
        assert world.key_store.purge_grants(before=world.clock.now) == 0

    @pytest.mark.parametrize("identity", ["", "x" * 256, "a b", "é", "a\n", 7])
    def test_bad_identity_is_refused(self, world: World, key: ApiKey, identity: Any) -> None:
        """An identity is 1 to 255 printable ASCII characters."""
        with pytest.raises(InvalidRequest) as caught:
            world.invites.create(key, idempotency_key=identity)
        assert caught.value.field == "idempotency_key"
        assert world.count_invites() == 0

    def test_threads_with_one_identity_make_one_invite(self, world: World, key: ApiKey) -> None:
        """Many threads that send the same request are given the same invite."""
        outcomes = run_at_once([lambda: world.invites.create(key, idempotency_key="a")] * 12)
        [token] = {outcome.token if isinstance(outcome, Invite) else outcome for outcome in outcomes}
        assert world.invites.find(str(token)) is not None
        assert world.count_invites() == 1
        assert find_left(world, key) == 4


FAULTS_IN_TWO = [
    pytest.param("take_grant", "before", id="nothing-taken"),
    pytest.param("take_grant", "after", id="taken-and-not-told"),
    pytest.param("add_invites", "before", id="taken-and-not-added"),
    pytest.param("add_invites", "after", id="added-and-not-told"),
    pytest.param("finish_grant", "before", id="added-and-not-finished"),
    pytest.param("finish_grant", "after", id="finished-and-not-told"),
]


class TestFaults:
    """A request that failed halfway, and is sent again."""

    @pytest.mark.parametrize("kind", ["memory", "sqlite"])
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_repeat_in_one_store_finishes(self, open_world: OpenWorld, kind: str, when: str) -> None:
        """In one store a repeat makes what was not made, and finds what was, and one unit is taken."""
        plain = open_world(kind)
        key = plain.make_key(POLICY)
        store: Any = Faulty(plain.invite_store)
        world = plain.through(store, store)
        store.fail("add_granted", when)
        with pytest.raises(InvitesError):
            world.invites.create(key, idempotency_key="a")
        invite = world.invites.create(key, idempotency_key="a")
        assert world.count_invites() == 1
        assert world.invites.find(invite.token) == invite
        assert find_left(world, key) == 4
        assert world.invites.create(key, idempotency_key="a") == invite

    @pytest.mark.parametrize(("verb", "when"), FAULTS_IN_TWO)
    def test_repeat_in_two_stores_finishes(self, open_world: OpenWorld, verb: str, when: str) -> None:
        """In two stores a repeat goes on from where the first attempt ended: one invite, one unit, nothing twice."""
        plain = open_world("two")
        key = plain.make_key(POLICY)
        key_store: Any = Faulty(plain.key_store)
        invite_store: Any = Faulty(plain.invite_store)
        world = plain.through(key_store, invite_store)
        (invite_store if verb == "add_invites" else key_store).fail(verb, when)
        # Once the invite is there the first attempt has succeeded, whether its row could be marked or not.
        succeeds = verb == "finish_grant"
        with contextlib.nullcontext() if succeeds else pytest.raises(InvitesError):
            world.invites.create(key, idempotency_key="a")
        world.clock.advance(60)
        invite = world.invites.create(key, idempotency_key="a")
        assert world.invites.find(invite.token) == invite
        assert world.count_invites() == 1
        assert find_left(world, key) == 4
        key_store.calls.clear()
        invite_store.calls.clear()
        assert world.invites.create(key, idempotency_key="a") == invite
        assert (key_store.calls, invite_store.calls) == (["take_grant"], ["find_invite"])

    @pytest.mark.parametrize(("verb", "when"), FAULTS_IN_TWO)
    def test_repeats_that_fail_again_make_one_invite(self, open_world: OpenWorld, verb: str, when: str) -> None:
        """However often the same step fails, what is made in the end is made once."""
        plain = open_world("two")
        key = plain.make_key(POLICY)
        key_store: Any = Faulty(plain.key_store)
        invite_store: Any = Faulty(plain.invite_store)
        world = plain.through(key_store, invite_store)
        for _ in range(3):
            (invite_store if verb == "add_invites" else key_store).fail(verb, when)
        failed = 0
        while True:
            try:
                world.invites.create(key, idempotency_key="a")
            except InvitesError:
                failed += 1
                continue
            break
        assert failed == (0 if verb == "finish_grant" else 3)
        assert world.count_invites() == 1
        assert find_left(world, key) == 4

    @pytest.mark.parametrize("count", [1, 3])
    def test_key_side_is_first_and_a_crash_costs_units_at_most(self, open_world: OpenWorld, count: int) -> None:
        """Without an identity a fault between two stores costs what was taken, and makes no invite that was not."""
        plain = open_world("two")
        key = plain.make_key(POLICY)
        key_store: Any = Faulty(plain.key_store)
        invite_store: Any = Faulty(plain.invite_store)
        world = plain.through(key_store, invite_store)
        invite_store.fail("add_invites", "before")
        with pytest.raises(InvitesError):
            world.invites.create_many(key, count)
        assert world.count_invites() == 0
        assert find_left(world, key) == 5 - count
        key_store.fail("take_grant", "before")
        with pytest.raises(InvitesError):
            world.invites.create_many(key, count)
        assert invite_store.calls.count("add_invites") == 1
        assert find_left(world, key) == 5 - count

    def test_never_more_than_the_quota_whatever_fails(self, open_world: OpenWorld) -> None:
        """With faults at every step and requests with and without identity, the quota is never passed."""
        plain = open_world("two")
        key = plain.make_key(POLICY)
        key_store: Any = Faulty(plain.key_store)
        invite_store: Any = Faulty(plain.invite_store)
        world = plain.through(key_store, invite_store)
        steps: list[tuple[Faulty, str]] = [
            (key_store, "take_grant"),
            (invite_store, "add_invites"),
            (key_store, "finish_grant"),
        ]
        for number in range(40):
            store, verb = steps[number % 3]
            store.fail(verb, "before" if number % 2 else "after")
            for identity in (None, str(number % 7)):
                try_to(partial(world.invites.create, key, idempotency_key=identity))
        assert world.count_invites() <= 5
        assert find_left(world, key) == 0

    def test_unknown_outcome_is_resolved_by_the_same_request(self, open_world: OpenWorld) -> None:
        """After OutcomeUnknown the same request gives the invite that the first has made."""
        plain = open_world("sqlite")
        key = plain.make_key()
        store: Any = Faulty(plain.invite_store)
        world = plain.through(store, store)
        store.fail("add_granted", "after")
        with pytest.raises(OutcomeUnknown):
            world.invites.create(key, idempotency_key="a")
        [made] = plain.invites.list(HOST).invites
        assert world.invites.create(key, idempotency_key="a") == made


def try_to(call: Callable[[], object]) -> None:
    """Call something that may be refused or may fail."""
    try:
        call()
    except InvitesError:
        pass
