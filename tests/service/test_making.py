"""Invites.create and its kin: all kinds and fields, what a policy refuses, and the quota."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from invites_core.errors import InvalidKey, InvalidRequest, PolicyRefused, QuotaSpent, ScopeMissing, Unsupported
from invites_core.keys import DEFAULT_POLICY, NEVER, KeyPolicy, Quota
from invites_core.service import Invites
from invites_core.stores.memory import MemoryStore
from tests.helpers import FULL_POLICY, NOON, FakeClock, make_key, run_at_once
from tests.service.worlds import DAILY, HOST, World

DAY = timedelta(days=1)
CAN_ALL = KeyPolicy(
    scopes=FULL_POLICY.scopes,
    kinds=FULL_POLICY.kinds,
    groups=FULL_POLICY.groups,
    roles=FULL_POLICY.roles,
    allow_username=True,
    max_expiry=NEVER,
    max_uses=None,
)
"""A policy without bounds."""


class TestFields:
    """What an invite can be."""

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            pytest.param(
                {},
                {"kind": "register", "username": None, "registration": True, "max_uses": 1, "note": None},
                id="plain",
            ),
            pytest.param({"username": "ALICE"}, {"username": "alice", "registration": True}, id="username"),
            pytest.param(
                {"kind": "roster", "username": "alice"}, {"kind": "roster", "registration": False}, id="roster"
            ),
            pytest.param(
                {"kind": "roster", "username": "alice", "registration": True}, {"registration": True}, id="roster-ibr"
            ),
            pytest.param(
                {"kind": "reset", "username": "alice"},
                {"kind": "reset", "registration": False, "expires_at": NOON + DAY, "max_uses": 1},
                id="reset",
            ),
            pytest.param({"expires_in": timedelta(seconds=90)}, {"expires_at": NOON + timedelta(seconds=90)}, id="90s"),
            pytest.param({"expires_in": NEVER}, {"expires_at": None}, id="never"),
            pytest.param({"max_uses": 2_147_483_647}, {"max_uses": 2_147_483_647}, id="many-uses"),
            pytest.param({"max_uses": None}, {"max_uses": None}, id="uses-without-limit"),
            pytest.param(
                {"groups": ["Gäste", "staff"], "roles": ["prosody:admin"]},
                {"groups": ("Gäste", "staff"), "roles": ("prosody:admin",)},
                id="groups-and-roles-in-order",
            ),
            pytest.param({"note": "für 🗝️\n2"}, {"note": "für 🗝️\n2"}, id="note"),
            pytest.param({"note": ""}, {"note": None}, id="empty-note"),
        ],
    )
    def test_invite_is_what_was_asked_for(
        self, world: World, fields: dict[str, Any], expected: dict[str, object]
    ) -> None:
        """With a key and without one, an invite has the fields that were asked for, and is found with them."""
        key = world.make_key(CAN_ALL)
        for invite, source in (
            (world.invites.create(key, **fields), f"api/token/{key.id}"),
            (world.invites.create_for(HOST, source="command", **fields), "command"),
        ):
            assert {name: getattr(invite, name) for name in expected} == expected
            assert (invite.host, invite.source, invite.created_at, invite.uses) == (HOST, source, NOON, 0)
            assert world.invites.find(invite.token) == invite

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            pytest.param({"kind": "other"}, "kind", id="kind"),
            pytest.param({"kind": None}, "kind", id="no-kind"),
            pytest.param({"kind": "roster"}, "username", id="roster-without-inviter"),
            pytest.param({"kind": "reset"}, "username", id="reset-of-nobody"),
            pytest.param({"username": "a@b"}, "username", id="no-username"),
            pytest.param({"username": ""}, "username", id="empty-username"),
            pytest.param({"username": 7}, "username", id="username-of-another-type"),
            pytest.param({"registration": False}, "registration", id="register-without-registration"),
            pytest.param(
                {"kind": "reset", "username": "a", "registration": True}, "registration", id="reset-that-registers"
            ),
            pytest.param({"kind": "roster", "username": "a", "registration": 1}, "registration", id="registration-1"),
            pytest.param({"expires_in": timedelta(0)}, "expires_in", id="no-time"),
            pytest.param({"expires_in": timedelta(milliseconds=999)}, "expires_in", id="under-a-second"),
            pytest.param({"expires_in": timedelta(days=36_501)}, "expires_in", id="over-a-century"),
            pytest.param({"expires_in": 60}, "expires_in", id="bare-number"),
            pytest.param({"max_uses": 0}, "max_uses", id="no-use"),
            pytest.param({"max_uses": 2**31}, "max_uses", id="too-many-uses"),
            pytest.param({"max_uses": True}, "max_uses", id="uses-true"),
            pytest.param({"max_uses": 1.0}, "max_uses", id="uses-float"),
            pytest.param({"kind": "reset", "username": "a", "max_uses": 2}, "max_uses", id="reset-twice"),
            pytest.param({"kind": "reset", "username": "a", "max_uses": None}, "max_uses", id="reset-for-ever"),
            pytest.param({"groups": "staff"}, "groups", id="groups-as-text"),
            pytest.param({"groups": ["a", "a"]}, "groups", id="group-twice"),
            pytest.param({"groups": [""]}, "groups", id="empty-group"),
            pytest.param({"groups": ["x"] * 101}, "groups", id="too-many-groups"),
            pytest.param({"roles": ["a\0"]}, "roles", id="role-with-nul"),
            pytest.param({"roles": [7]}, "roles", id="role-of-another-type"),
            pytest.param({"note": "x" * 1001}, "note", id="long-note"),
            pytest.param({"note": "\udce9"}, "note", id="half-a-surrogate"),
        ],
    )
    def test_impossible_invite_is_refused_with_the_field(
        self, world: World, fields: dict[str, Any], field: str
    ) -> None:
        """What nobody could make is InvalidRequest with its field, and nothing is made."""
        key = world.make_key(CAN_ALL)
        calls: list[Callable[[], object]] = [
            lambda: world.invites.create(key, **fields),
            lambda: world.invites.create_for(HOST, source="command", **fields),
        ]
        for call in calls:
            with pytest.raises(InvalidRequest) as caught:
                call()
            assert caught.value.field == field
        assert world.count_invites() == 0

    def test_several_are_made_alike(self, world: World) -> None:
        """A thousand invites are made by one call, each with a token of its own."""
        key = world.make_key(CAN_ALL)
        made = world.invites.create_many(key, 1000, note="party")
        assert len({invite.token for invite in made}) == 1000
        assert {invite.note for invite in made} == {"party"}
        assert world.count_invites() == 1000

    @pytest.mark.parametrize(
        ("count", "fields"), [(0, {}), (1001, {}), (-1, {}), (True, {}), (1.5, {}), ("2", {}), (2, {"username": "a"})]
    )
    def test_bad_count_is_refused(self, world: World, count: Any, fields: dict[str, Any]) -> None:
        """A count is from 1 to 1,000, and 1 where an account is named."""
        calls: list[Callable[[], object]] = [
            lambda: world.invites.create_many(world.make_key(CAN_ALL), count, **fields),
            lambda: world.invites.create_many_for(HOST, count, source="command", **fields),
        ]
        for call in calls:
            with pytest.raises(InvalidRequest) as caught:
                call()
            assert caught.value.field == "count"
        assert world.count_invites() == 0

    def test_store_that_counts_no_uses_says_so(self, clock: FakeClock) -> None:
        """Where a store cannot hold several uses, such an invite is Unsupported before anything is written."""

        class PlainStore(MemoryStore):
            features = frozenset()

        key_store, invite_store = MemoryStore(), PlainStore()
        key = make_key(policy=KeyPolicy(max_uses=None, quota=DAILY))
        key_store.add_key(key)
        invites = Invites(invite_store, keys=key_store, clock=clock)
        with pytest.raises(Unsupported):
            invites.create(key, max_uses=2)
        with pytest.raises(Unsupported):
            invites.create_for(HOST, source="command", max_uses=2)
        assert key_store.find_quota_taken(key.id, datetime(2026, 3, 1, tzinfo=NOON.tzinfo)) == 0
        assert invites.create(key, max_uses=None).max_uses is None


class TestPolicy:
    """What a key may make."""

    @pytest.mark.parametrize(
        ("policy", "fields", "field"),
        [
            pytest.param({}, {"kind": "roster", "username": "a"}, "kind", id="kind"),
            pytest.param({}, {"kind": "reset", "username": "a"}, "kind", id="reset"),
            pytest.param(
                {"kinds": frozenset({"roster"}), "allow_username": True},
                {"kind": "roster", "username": "a", "registration": True},
                "registration",
                id="registering-contact",
            ),
            pytest.param({}, {"username": "a"}, "username", id="username"),
            pytest.param({}, {"expires_in": timedelta(days=7, seconds=1)}, "expires_in", id="longer-than-default"),
            pytest.param({}, {"expires_in": NEVER}, "expires_in", id="never"),
            pytest.param({"max_expiry": DAY}, {"expires_in": DAY + timedelta(seconds=1)}, "expires_in", id="a-day"),
            pytest.param(
                {"kinds": frozenset({"reset"}), "allow_username": True},
                {"kind": "reset", "username": "a", "expires_in": DAY + timedelta(seconds=1)},
                "expires_in",
                id="reset-over-a-day",
            ),
            pytest.param({}, {"max_uses": 2}, "max_uses", id="uses"),
            pytest.param({}, {"max_uses": None}, "max_uses", id="uses-without-limit"),
            pytest.param({"max_uses": 10}, {"max_uses": 11}, "max_uses", id="more-uses"),
            pytest.param({}, {"groups": ["staff"]}, "groups", id="group"),
            pytest.param(
                {"groups": frozenset({"staff"})}, {"groups": ["staff", "x"]}, "groups", id="one-of-two-groups"
            ),
            pytest.param({"groups": frozenset({"x"})}, {"roles": ["x"]}, "roles", id="group-is-no-role"),
        ],
    )
    def test_request_beyond_the_policy_is_refused_with_the_field(
        self, world: World, policy: dict[str, Any], fields: dict[str, Any], field: str
    ) -> None:
        """What is beyond a key's policy is refused whole, and takes nothing of the quota."""
        key = world.make_key(KeyPolicy(**policy, quota=DAILY))
        with pytest.raises(PolicyRefused) as caught:
            world.invites.create(key, **fields)
        assert caught.value.field == field
        assert world.count_invites() == 0
        assert world.keys.find_quota_left(key) == (5, datetime(2026, 3, 2, tzinfo=NOON.tzinfo))

    @pytest.mark.parametrize(
        ("policy", "fields"),
        [
            pytest.param({}, {"expires_in": timedelta(days=7)}, id="default-lifetime"),
            pytest.param({}, {"expires_in": timedelta(seconds=1)}, id="shorter"),
            pytest.param({"max_expiry": NEVER}, {"expires_in": NEVER}, id="never"),
            pytest.param({"max_expiry": timedelta(days=30)}, {"expires_in": timedelta(days=30)}, id="longest"),
            pytest.param({"max_uses": 10}, {"max_uses": 10}, id="most-uses"),
            pytest.param({"max_uses": None}, {"max_uses": None}, id="uses-without-limit"),
            pytest.param({"groups": frozenset({"a", "b"})}, {"groups": ["b"]}, id="one-of-the-groups"),
            pytest.param({}, {"note": "a note is free"}, id="note"),
        ],
    )
    def test_policy_is_granted_to_its_bounds(
        self, world: World, policy: dict[str, Any], fields: dict[str, Any]
    ) -> None:
        """A request at the bounds of the policy is within it."""
        assert world.invites.create(world.make_key(KeyPolicy(**policy)), **fields)

    def test_key_without_the_scope_makes_nothing(self, world: World) -> None:
        """A key that may read alone makes no invite."""
        with pytest.raises(ScopeMissing) as caught:
            world.invites.create(world.make_key(KeyPolicy(scopes=frozenset({"read"}))))
        assert caught.value.scope == "create"

    def test_default_policy_is_what_a_prosody_key_can(self, world: World) -> None:
        """A key of which nothing was said makes plain invites, as many as it likes."""
        key = world.make_key(DEFAULT_POLICY)
        for _ in range(20):
            world.invites.create(key)
        assert world.keys.find_quota_left(key) is None


class TestQuota:
    """How many invites a key may make in a period."""

    @pytest.fixture
    def bounded(self) -> KeyPolicy:
        """A policy of five a day."""
        return KeyPolicy(quota=DAILY)

    def test_quota_is_spent_and_comes_back(self, world: World, bounded: KeyPolicy) -> None:
        """A key makes its count in a UTC day, is told when the next begins, and then goes on."""
        key = world.make_key(bounded)
        for left in (5, 4, 3, 2, 1):
            assert world.keys.find_quota_left(key) == (left, datetime(2026, 3, 2, tzinfo=NOON.tzinfo))
            world.invites.create(key)
        with pytest.raises(QuotaSpent) as caught:
            world.invites.create(key)
        assert caught.value.retry_after == 12 * 3600
        world.clock.advance(12 * 3600 - 1)
        with pytest.raises(QuotaSpent) as caught:
            world.invites.create(key)
        assert caught.value.retry_after == 1
        world.clock.advance(1)
        assert world.invites.create(key).created_at == NOON + timedelta(hours=12)
        assert world.keys.find_quota_left(key) == (4, datetime(2026, 3, 3, tzinfo=NOON.tzinfo))

    def test_count_takes_all_or_nothing(self, world: World, bounded: KeyPolicy) -> None:
        """A request for more than is left makes none, and a smaller one still fits."""
        key = world.make_key(bounded)
        world.invites.create_many(key, 3)
        with pytest.raises(QuotaSpent):
            world.invites.create_many(key, 3)
        world.invites.create_many(key, 2)
        assert world.count_invites() == 5

    def test_more_than_a_whole_period_is_beyond_the_policy(self, world: World, bounded: KeyPolicy) -> None:
        """A request that no period could hold is refused with its field, not told to wait."""
        with pytest.raises(PolicyRefused) as caught:
            world.invites.create_many(world.make_key(bounded), 6)
        assert caught.value.field == "count"

    def test_threads_make_exactly_the_quota(self, world: World) -> None:
        """However many ask at once, exactly the quota is made."""
        key = world.make_key(KeyPolicy(quota=Quota(30, DAY)))

        def make_all() -> int:
            made = 0
            while True:
                try:
                    world.invites.create(key)
                except QuotaSpent:
                    return made
                made += 1

        outcomes = run_at_once([make_all] * 8)
        assert sum(made for made in outcomes if isinstance(made, int)) == 30
        assert world.count_invites() == 30

    def test_deleted_key_is_invalid(self, world: World, bounded: KeyPolicy) -> None:
        """A key with a quota that was deleted meanwhile makes nothing, in one store and in two."""
        key = world.make_key(bounded)
        world.keys.delete(HOST, key.id)
        with pytest.raises(InvalidKey) as caught:
            world.invites.create(key)
        assert (caught.value.reason, caught.value.key_id) == ("unknown", key.id)
        assert world.count_invites() == 0


@pytest.mark.parametrize(
    ("max_expiry", "lifetime"),
    [
        pytest.param(DAY, DAY, id="shorter-than-the-default"),
        pytest.param(30 * DAY, 7 * DAY, id="longer-than-the-default"),
        pytest.param(NEVER, 7 * DAY, id="without-bound"),
        pytest.param(None, 7 * DAY, id="not-said"),
    ],
)
def test_who_names_no_lifetime_gets_what_is_allowed(
    world: World, max_expiry: timedelta | None, lifetime: timedelta
) -> None:
    """An invite that names no lifetime gets the host's default, or the longest of its key where that is shorter."""
    invite = world.invites.create(world.make_key(KeyPolicy(max_expiry=max_expiry)))
    assert invite.expires_at == invite.created_at + lifetime
