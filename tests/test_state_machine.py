"""Keys and invites on their way through random lives: every store does the same, and what a simple model says.

INVITES_TEST_EXAMPLES sets how many lives are tried; the default is 100, and 20 on PostgreSQL.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from invites_core.errors import InvitesError
from invites_core.invites import Invite
from invites_core.keys import ApiKey, KeyPolicy, Quota
from invites_core.service import ApiKeys, Invites, delete_key_with_invites
from invites_core.store import Store
from invites_core.stores import open_store
from invites_core.testing import FakeClock, cheap_hasher

HOST: Final = "example.com"
WEEK: Final = timedelta(days=7)
DAY: Final = timedelta(days=1)
STATES: Final = ("pending", "used", "revoked", "expired")

picks = st.integers(0, 10**6)
"""Which of those that are there, by its number modulo how many there are."""
identities = st.sampled_from("aabc")
redeemers = st.sampled_from(["alice", "alice", "bob", None])


class Side:
    """A store with its services, and the names that it has given to what the model knows by number."""

    def __init__(self, store: Store, clock: FakeClock) -> None:
        self.store = store
        self.keys = ApiKeys(store, hasher=cheap_hasher(), clock=clock)
        self.invites = Invites(store, clock=clock)
        self.ids: list[str] = []
        self.secrets: list[list[str]] = []
        self.tokens: list[str] = []

    def number(self, invite: Invite) -> int:
        """Return an invite's number, giving it the next one where it is new."""
        if invite.token not in self.tokens:
            self.tokens.append(invite.token)
        return self.tokens.index(invite.token)

    def project(self, invite: Invite) -> tuple[object, ...]:
        """Return what the model says of an invite."""
        closed = (invite.uses, invite.closed_at, invite.revoked_by)
        return self.number(invite), invite.max_uses, invite.created_at, invite.expires_at, *closed

    def get_key(self, number: int) -> ApiKey | None:
        """Return a key as one that was verified is."""
        return self.keys.find(self.ids[number])


@dataclass
class ModelKey:
    """A key as the model has it."""

    policy: KeyPolicy
    expires_at: datetime | None
    name: str | None = None
    secrets: int = 1
    previous: tuple[int, datetime] | None = None
    deleted: bool = False
    window: tuple[int, int] = (0, 0)
    creations: dict[str, tuple[int, int, datetime, list[int]]] = field(default_factory=dict)

    def takes(self, secret: int, now: datetime) -> bool:
        if self.deleted or (self.expires_at is not None and now > self.expires_at):
            return False
        return secret == self.secrets - 1 or (
            self.previous is not None and self.previous[0] == secret and now <= self.previous[1]
        )


@dataclass
class ModelInvite:
    """An invite as the model has it."""

    number: int
    key: int | None
    username: str | None
    max_uses: int | None
    created_at: datetime
    expires_at: datetime | None
    uses: int = 0
    closed_at: datetime | None = None
    revoked_by: str | None = None
    purged: bool = False
    redemptions: dict[str, tuple[str | None, bool]] = field(default_factory=dict)

    def state(self, now: datetime) -> str:
        if self.max_uses is not None and self.uses >= self.max_uses:
            return "used"
        if self.revoked_by is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and now > self.expires_at else "pending"

    def project(self) -> tuple[object, ...]:
        closed = (self.uses, self.closed_at, self.revoked_by)
        return self.number, self.max_uses, self.created_at, self.expires_at, *closed

    def revoke(self, by: str, now: datetime) -> None:
        self.revoked_by, self.closed_at = by, now


class Lives(RuleBasedStateMachine):
    """Keys and invites on every store at once, beside the model."""

    postgresql_url: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.folder = tempfile.TemporaryDirectory()
        urls = ["memory:", f"sqlite:///{Path(self.folder.name) / 'invites.db'}"]
        if self.postgresql_url is not None:
            urls.append(self.postgresql_url)
        self.sides = [Side(open_store(url), self.clock) for url in urls]
        if self.postgresql_url is not None:
            # One database for all lives: another for each would take longer than they do.
            with psycopg.connect(self.postgresql_url, application_name="tests") as connection:
                connection.execute("TRUNCATE keys, deleted_keys, quotas, creations, invites, redemptions")
        self.keys: list[ModelKey] = []
        self.invites: list[ModelInvite] = []

    def teardown(self) -> None:
        for side in self.sides:
            assert list(side.store.find_problems()) == []
            side.store.close()
        self.folder.cleanup()

    @property
    def now(self) -> datetime:
        return self.clock.now

    def check(self, expected: object, call: Callable[[Side], Any]) -> None:
        """Call something on every side, and hold what it gives, or the error that it raises, against the model."""
        for side in self.sides:
            try:
                outcome = call(side)
            except InvitesError as error:
                outcome = type(error).__name__
            assert outcome == expected, side.store.location

    def pick_key(self, pick: int) -> tuple[int, ModelKey]:
        number = len(self.keys) - 1 - pick % min(len(self.keys), 3)
        return number, self.keys[number]

    def pick_invite(self, pick: int) -> ModelInvite:
        # One of the last few, so that several things happen to each.
        return self.invites[-1 - pick % min(len(self.invites), 3)]

    def add_invites(self, count: int, **fields: Any) -> list[int]:
        numbers = range(len(self.invites), len(self.invites) + count)
        self.invites.extend(ModelInvite(number=number, created_at=self.now, **fields) for number in numbers)
        return list(numbers)

    # Keys

    @initialize()
    def begin(self) -> None:
        self.create_key(None, 1, None)

    @rule(
        quota=st.sampled_from([None, 2, 3]),
        max_uses=st.sampled_from([1, 3, None]),
        expires_in=st.sampled_from([None, timedelta(hours=1)]),
    )
    def create_key(self, quota: int | None, max_uses: int | None, expires_in: timedelta | None) -> None:
        policy = KeyPolicy(quota=None if quota is None else Quota(quota, DAY), max_uses=max_uses)
        self.keys.append(ModelKey(policy=policy, expires_at=None if expires_in is None else self.now + expires_in))
        for side in self.sides:
            issued = side.keys.create(HOST, policy=policy, expires_in=expires_in)
            side.ids.append(issued.key.id)
            side.secrets.append([issued.secret])

    @rule(pick=picks, name=st.sampled_from(["a", "b", ""]), max_uses=st.sampled_from([None, 1, 3]))
    def update_key(self, pick: int, name: str, max_uses: int | None) -> None:
        number, key = self.pick_key(pick)
        if not key.deleted:
            key.name, key.policy = name or None, KeyPolicy(quota=key.policy.quota, max_uses=max_uses)
        policy = key.policy

        def update(side: Side) -> object:
            updated = side.keys.update(HOST, side.ids[number], name=name, policy=policy)
            return updated.name, updated.policy

        self.check("KeyUnknown" if key.deleted else (key.name, key.policy), update)

    @rule(pick=picks, grace=st.sampled_from([timedelta(0), timedelta(seconds=60)]))
    def rotate_key(self, pick: int, grace: timedelta) -> None:
        number, key = self.pick_key(pick)
        if not key.deleted:
            key.previous = (key.secrets - 1, self.now + grace) if grace else None
            key.secrets += 1

        def rotate(side: Side) -> object:
            side.secrets[number].append(side.keys.rotate(HOST, side.ids[number], grace=grace).secret)
            return None

        self.check("KeyUnknown" if key.deleted else None, rotate)

    @rule(pick=picks, which=picks)
    def verify_key(self, pick: int, which: int) -> None:
        number, key = self.pick_key(pick)
        secret = which % key.secrets

        def verify(side: Side) -> object:
            found = side.keys.verify(f"{side.ids[number]}/{side.secrets[number][secret]}")
            return found.name, found.policy, found.expires_at

        taken = key.takes(secret, self.now)
        self.check((key.name, key.policy, key.expires_at) if taken else "InvalidKey", verify)

    @precondition(lambda self: sum(not key.deleted for key in self.keys) > 1)
    @rule(pick=picks, with_invites=st.booleans())
    def delete_key(self, pick: int, with_invites: bool) -> None:
        number, key = self.pick_key(pick)
        if with_invites:
            revoked = self.revoke_of(number)
            expected: object = revoked
        else:
            expected = "KeyUnknown" if key.deleted else None
        key.deleted = True

        def delete(side: Side) -> object:
            if with_invites:
                return delete_key_with_invites(side.keys, side.invites, HOST, side.ids[number], by="admin")
            side.keys.delete(HOST, side.ids[number])
            return None

        self.check(expected, delete)

    # Invites

    @rule(
        pick=picks,
        count=st.integers(1, 3),
        identity=st.sampled_from([None, "a", "a", "b"]),
        max_uses=st.sampled_from([1, 1, 1, 3, None]),
        times=st.integers(1, 3),
    )
    def create_by_key(self, pick: int, count: int, identity: str | None, max_uses: int | None, times: int) -> None:
        for _ in range(times):
            self.create_once(*self.pick_key(pick), count, identity, max_uses)

    def create_once(self, number: int, key: ModelKey, count: int, identity: str | None, max_uses: int | None) -> None:
        expected = self.predict_creation(number, key, count, identity, max_uses)

        def create(side: Side) -> object:
            found = side.get_key(number)
            if found is None:
                return "deleted"
            made = side.invites.create_many(found, count, idempotency_key=identity, max_uses=max_uses)
            return [side.number(invite) for invite in made]

        self.check(expected, create)

    def predict_creation(
        self, number: int, key: ModelKey, count: int, identity: str | None, max_uses: int | None
    ) -> object:
        if key.deleted:
            return "deleted"
        bound, quota = key.policy.max_uses, key.policy.quota
        if bound is not None and (max_uses is None or max_uses > bound):
            return "PolicyRefused"
        if quota is not None and count > quota.count:
            return "PolicyRefused"
        known = key.creations.get(identity or "")
        if known is not None and self.now - known[2] <= WEEK:
            return known[3] if known[:2] == (count, max_uses or 0) else "IdempotencyConflict"
        if quota is not None:
            day = self.now.toordinal()
            taken = key.window[1] if key.window[0] == day else 0
            if taken + count > quota.count:
                return "QuotaSpent"
            key.window = (day, taken + count)
        numbers = self.add_invites(count, key=number, username=None, max_uses=max_uses, expires_at=self.now + WEEK)
        if identity is not None:
            key.creations[identity] = (count, max_uses or 0, self.now, numbers)
        return numbers

    @rule(
        username=st.sampled_from([None, None, "alice"]),
        max_uses=st.sampled_from([1, 2, None]),
        expires_in=st.sampled_from([None, timedelta(seconds=1), timedelta(hours=1)]),
    )
    def create_without_key(self, username: str | None, max_uses: int | None, expires_in: timedelta | None) -> None:
        [number] = self.add_invites(
            1, key=None, username=username, max_uses=max_uses, expires_at=self.now + (expires_in or WEEK)
        )

        def create(side: Side) -> object:
            invite = side.invites.create_for(
                HOST, source="command", username=username, max_uses=max_uses, expires_in=expires_in
            )
            return side.project(invite)

        self.check(self.invites[number].project(), create)

    @precondition(lambda self: self.invites)
    @rule(pick=picks, attempts=st.lists(st.tuples(identities, redeemers), min_size=1, max_size=4))
    def redeem(self, pick: int, attempts: list[tuple[str, str | None]]) -> None:
        for identity, redeemer in attempts:
            self.redeem_once(self.pick_invite(pick), identity, redeemer)

    def redeem_once(self, invite: ModelInvite, identity: str, redeemer: str | None) -> None:
        expected = self.predict_redemption(invite, identity, redeemer)

        def redeem(side: Side) -> object:
            redeemed = side.invites.redeem(
                side.tokens[invite.number], redeemer=redeemer, redemption_id=identity, host=HOST
            )
            return redeemed.repeated, side.project(redeemed.invite)

        self.check(expected, redeem)

    def predict_redemption(self, invite: ModelInvite, identity: str, redeemer: str | None) -> object:
        if invite.purged:
            return "InviteUnknown"
        if identity in invite.redemptions:
            known, released = invite.redemptions[identity]
            if released:
                return "RedemptionReleased"
            return (True, invite.project()) if known == redeemer else "IdempotencyConflict"
        state = invite.state(self.now)
        if state != "pending":
            return f"Invite{state.capitalize()}"
        if invite.username not in (None, redeemer):
            return "WrongRedeemer"
        invite.redemptions[identity] = (redeemer, False)
        invite.uses += 1
        if invite.uses == invite.max_uses:
            invite.closed_at = self.now
        return False, invite.project()

    @precondition(lambda self: self.invites)
    @rule(pick=picks, identity=identities)
    def release(self, pick: int, identity: str) -> None:
        invite = self.pick_invite(pick)
        if not invite.purged:
            redeemer, released = invite.redemptions.get(identity, (None, None))
            if released is False:
                invite.uses -= 1
                if invite.revoked_by is None:
                    invite.closed_at = None
            invite.redemptions[identity] = (redeemer, True)
        expected = "InviteUnknown" if invite.purged else invite.project()
        self.check(
            expected,
            lambda side: side.project(side.invites.release(side.tokens[invite.number], redemption_id=identity)),
        )

    @precondition(lambda self: self.invites)
    @rule(pick=picks)
    def revoke(self, pick: int) -> None:
        invite = self.pick_invite(pick)
        state = "unknown" if invite.purged else invite.state(self.now)
        if state == "pending":
            invite.revoke("admin", self.now)
        expected = invite.project() if state == "pending" else f"Invite{state.capitalize()}"
        self.check(expected, lambda side: side.project(side.invites.revoke(side.tokens[invite.number], by="admin")))

    def revoke_of(self, number: int) -> int:
        mine = [one for one in self.invites if one.key == number and not one.purged and one.revoked_by is None]
        pending = [one for one in mine if one.state(self.now) == "pending"]
        for invite in mine:
            if invite.state(self.now) == "used":
                # Marked, so that a use that is given back makes it revoked and not pending.
                invite.revoked_by = "admin"
        for invite in pending:
            invite.revoke("admin", self.now)
        return len(pending)

    @rule(pick=picks)
    def revoke_from(self, pick: int) -> None:
        number, _ = self.pick_key(pick)
        expected = self.revoke_of(number)
        self.check(expected, lambda side: side.invites.revoke_from(HOST, side.ids[number], by="admin"))

    @rule(age=st.sampled_from([timedelta(0), timedelta(seconds=60), DAY]))
    def purge(self, age: timedelta) -> None:
        over = [
            one
            for one in self.invites
            if not one.purged and (at := one.closed_at or one.expires_at) is not None and at < self.now - age
        ]
        for invite in over:
            invite.purged = True
        for key in self.keys:
            key.creations = {name: row for name, row in key.creations.items() if self.now - row[2] <= WEEK}
        self.check(len(over), lambda side: side.invites.purge(older_than=age))

    @rule(state=st.sampled_from([None, *STATES]), of_key=st.none() | picks, limit=st.sampled_from([1, 3, 1000]))
    def list_invites(self, state: Any, of_key: int | None, limit: int) -> None:
        number = None if of_key is None else of_key % len(self.keys)
        expected = [
            one.project()
            for one in reversed(self.invites)
            if not one.purged
            and (number is None or one.key == number)
            and (state is None or one.state(self.now) == state)
        ]

        def read(side: Side) -> object:
            source = None if number is None else f"api/token/{side.ids[number]}"
            found: list[object] = []
            cursor = None
            while True:
                page = side.invites.list(HOST, state=state, source=source, limit=limit, cursor=cursor)
                found.extend(side.project(invite) for invite in page.invites)
                cursor = page.next
                if cursor is None:
                    return found

        self.check(expected, read)

    @precondition(lambda self: self.invites)
    @rule(pick=picks)
    def show(self, pick: int) -> None:
        invite = self.pick_invite(pick)

        def read(side: Side) -> object:
            token = side.tokens[invite.number]
            used = {
                one.redemption_id: (one.redeemer, one.released_at is not None)
                for one in side.invites.list_redemptions(token)
            }
            return side.project(side.invites.get(token)), used

        self.check("InviteUnknown" if invite.purged else (invite.project(), invite.redemptions), read)

    @rule(seconds=st.sampled_from([1, 1, 1, 60, 61, 3600, 86_400, 7 * 86_400]))
    def advance(self, seconds: int) -> None:
        self.clock.advance(seconds)


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=int(os.environ.get("INVITES_TEST_EXAMPLES", "100")), stateful_step_count=40, deadline=None
)


@pytest.mark.real_server
def test_lives_on_postgresql(postgresql_url: str) -> None:
    """The same holds on PostgreSQL."""

    class LivesOnPostgresql(Lives):
        """The same with a third side."""

    LivesOnPostgresql.postgresql_url = postgresql_url
    run_state_machine_as_test(
        LivesOnPostgresql,
        settings=settings(
            max_examples=int(os.environ.get("INVITES_TEST_EXAMPLES", "20")), stateful_step_count=40, deadline=None
        ),
    )
