"""What a hook is told: everything that has happened, nothing that has not, and no secret."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from invites_core import (
    ApiKeys,
    Busy,
    Event,
    Invites,
    InvitesError,
    KeyPolicy,
    OutcomeUnknown,
    Quota,
    StorageError,
    delete_key_with_invites,
)
from invites_core.events import EVENT_NAMES
from invites_core.keys import generate_key_id, generate_secret
from invites_core.stores.memory import MemoryStore
from tests.helpers import NOON, SECOND, FakeClock
from tests.service.importing import Bring, Source, make_foreign
from tests.service.worlds import HOST, Faulty, World

EVERYTHING = KeyPolicy(scopes=frozenset({"create", "read", "revoke", "redeem"}), max_uses=None)
NARROW = KeyPolicy(scopes=frozenset({"read"}), header_only=True)


class Teller:
    """A hook that keeps what it is told, and does what is done in one world with it."""

    def __init__(self, world: World, *hosts: str) -> None:
        self.told: list[Event] = []
        self.world = world.telling(self.told.append, *hosts)
        self.keys: ApiKeys = self.world.keys
        self.invites: Invites = self.world.invites

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what was told since the last time: names and the facts that are there."""
        taken = [
            (event.name, {name: value for name, value in dataclasses.asdict(event).items() if value is not None})
            for event in self.told
        ]
        self.told.clear()
        for name, facts in taken:
            assert facts.pop("name") == name
            assert facts.pop("at") == self.world.clock()
        return taken


@pytest.fixture
def teller(world: World) -> Teller:
    """A world whose services tell what happens."""
    return Teller(world)


def test_each_change_of_a_key_is_told_once(teller: Teller) -> None:
    """Making, changing, rotating and deleting a key are an event each, with the key and its host."""
    key = teller.keys.create("EXAMPLE.com", name="A bot").key
    facts = {"key_id": key.id, "host": HOST}
    assert teller.take() == [("key.created", facts)]
    teller.keys.update(HOST, key.id, name="Another")
    assert teller.take() == [("key.updated", facts)]
    teller.keys.rotate(HOST, key.id)
    assert teller.take() == [("key.rotated", facts)]
    teller.keys.delete(HOST, key.id)
    assert teller.take() == [("key.deleted", facts)]


def test_each_change_of_an_invite_is_told_once(teller: Teller) -> None:
    """Making, using, giving back and revoking invites are an event each."""
    key = teller.keys.create(HOST, policy=EVERYTHING).key
    teller.take()
    invite = teller.invites.create(key)
    made = {"key_id": key.id, "host": HOST, "kind": "register", "source": key.source}
    assert teller.take() == [("invite.created", {**made, "count": 1})]
    teller.invites.create_many(key, 3, max_uses=None)
    assert teller.take() == [("invite.created", {**made, "count": 3})]
    teller.invites.create_many_for(HOST, 2, source="my-page")
    mine = {"host": HOST, "kind": "register", "source": "my-page"}
    assert teller.take() == [("invite.created", {**mine, "count": 2})]
    one = {"host": HOST, "kind": "register", "count": 1}
    redeemed = teller.invites.redeem(invite.token, redeemer="alice")
    assert teller.take() == [("invite.redeemed", one)]
    teller.invites.release(invite.token, redemption_id=redeemed.redemption_id)
    assert teller.take() == [("invite.released", one)]
    teller.invites.revoke(invite.token, by="admin")
    assert teller.take() == [("invite.revoked", {**one, "source": "admin"})]


def test_a_use_that_is_given_back_by_itself_is_told(teller: Teller) -> None:
    """An error inside `redeeming` is a redemption and its release."""
    invite = teller.invites.create_for(HOST, source="command")
    teller.take()

    def fail() -> None:
        with teller.invites.redeeming(invite.token):
            assert [name for name, _ in teller.take()] == ["invite.redeemed"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [name for name, _ in teller.take()] == ["invite.released"]


def test_many_at_once_are_one_event(teller: Teller) -> None:
    """Taking back all that a key made, and purging, are one event each, with the number; none for nothing."""
    key = teller.keys.create(HOST, policy=EVERYTHING).key
    teller.invites.create_many(key, 7)
    teller.take()
    assert delete_key_with_invites(teller.keys, teller.invites, HOST, key.id, by="admin", sleep=lambda _: None) == 7
    gone = {"key_id": key.id, "host": HOST}
    assert teller.take() == [("key.deleted", gone), ("invite.revoked", {**gone, "count": 7, "source": "admin"})]
    assert teller.invites.revoke_from(HOST, key.id, by="admin") == 0
    assert teller.invites.purge(older_than=timedelta(days=1)) == 0
    assert teller.take() == []
    teller.world.clock.advance(timedelta(days=2))
    assert teller.invites.purge(older_than=timedelta(days=1)) == 7
    assert teller.take() == [("invite.purged", {"count": 7})]


def test_what_was_done_before_an_error_is_told(memory_store: MemoryStore, hasher: Any, clock: FakeClock) -> None:
    """A purge that ends halfway tells how many it has deleted."""
    told: list[Event] = []
    invites = Invites(memory_store, clock=clock, on_event=told.append)
    invites.create_many_for(HOST, 600, source="command", expires_in=SECOND)
    clock.advance(timedelta(days=2))
    told.clear()

    def stop(removed: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        invites.purge(older_than=SECOND, after_step=stop)
    assert [(event.name, event.count) for event in told] == [("invite.purged", 500)]


def test_a_repeat_that_changes_nothing_is_told_to_nobody(teller: Teller) -> None:
    """A repeated creation or redemption, and an update to what a key is already, send no event."""
    key = teller.keys.create(HOST, name="A bot").key
    invite = teller.invites.create(key, idempotency_key="one")
    teller.invites.redeem(invite.token, redemption_id="first", redeemer="alice")
    teller.take()
    assert teller.invites.create(key, idempotency_key="one").token == invite.token
    assert teller.invites.redeem(invite.token, redemption_id="first", redeemer="alice").repeated
    teller.keys.update(HOST, key.id, name="A bot")
    assert teller.take() == []


def test_a_repeat_that_finishes_a_creation_is_told(world: World) -> None:
    """Where the first attempt had not got to the invites, the one that makes them sends the event."""
    if world.invites.share_store_with_keys:
        key_store = invite_store = Faulty(world.key_store)
    else:
        key_store, invite_store = Faulty(world.key_store), Faulty(world.invite_store)
    teller = Teller(world.through(key_store, invite_store))
    key = teller.keys.create(HOST).key
    teller.take()
    invite_store.fail("add_granted" if world.invites.share_store_with_keys else "add_invites", "before")
    with pytest.raises(StorageError):
        teller.invites.create(key, idempotency_key="one")
    assert teller.take() == []
    teller.invites.create(key, idempotency_key="one")
    assert [name for name, _ in teller.take()] == ["invite.created"]


def test_what_may_not_have_happened_is_told_to_nobody(world: World) -> None:
    """A change whose outcome is not known, or that was refused, sends no event."""
    faulty = Faulty(world.invite_store)
    teller = Teller(world.through(world.key_store, faulty))
    invite = teller.invites.create_for(HOST, source="command")
    used = teller.invites.create_for(HOST, source="command")
    teller.invites.redeem(used.token)
    teller.take()
    faulty.fail("redeem_invite", "after")
    with pytest.raises(OutcomeUnknown):
        teller.invites.redeem(invite.token)
    calls: list[Callable[[], object]] = [
        lambda: teller.invites.redeem(used.token),
        lambda: teller.invites.revoke(used.token, by="admin"),
        lambda: teller.invites.redeem("A" * 24),
        lambda: teller.invites.release("A" * 24, redemption_id="x"),
        lambda: teller.keys.delete(HOST, "AAAAAAAA"),
        lambda: teller.keys.update(HOST, "AAAAAAAA", name="x"),
        lambda: teller.keys.rotate(HOST, "AAAAAAAA"),
        lambda: teller.keys.create("not a host"),
    ]
    for call in calls:
        with pytest.raises(InvitesError):
            call()
    assert teller.take() == []


def refuse(teller: Teller, call: Callable[[], object]) -> dict[str, Any]:
    """Run what is refused, and return the facts of the one event that says so."""
    teller.take()
    with pytest.raises(InvitesError):
        call()
    [(name, facts)] = teller.take()
    assert name == "key.refused"
    return facts


def test_every_refusal_of_a_key_is_told_with_its_reason(teller: Teller) -> None:
    """Shape, id, time, host and secret; scope, policy and quota: each has the reason that the error has."""
    issued = teller.keys.create(HOST, expires_in=timedelta(days=1))
    key_id, secret = issued.key.id, issued.secret
    other = generate_key_id()
    narrow = teller.keys.create(HOST, policy=NARROW).key
    daily = teller.keys.create(HOST, policy=KeyPolicy(quota=Quota(1, timedelta(days=1)))).key
    teller.invites.create(daily)
    known = {"key_id": key_id}

    assert refuse(teller, lambda: teller.keys.verify("no key")) == {"reason": "malformed"}
    assert refuse(teller, lambda: teller.keys.verify(f"{other}/{secret}")) == {"reason": "unknown", "key_id": other}
    wrong = f"{key_id}/{generate_secret()}"
    assert refuse(teller, lambda: teller.keys.verify(wrong)) == {"reason": "wrong secret", **known}
    elsewhere = Teller(teller.world, "other.example")
    assert refuse(elsewhere, lambda: elsewhere.keys.verify(issued.combined)) == {"reason": "host not served", **known}
    scope = {"reason": "ScopeMissing", "key_id": narrow.id, "host": HOST}
    assert refuse(teller, lambda: teller.invites.create(narrow)) == scope
    assert refuse(teller, lambda: teller.keys.check_use(narrow, scope="revoke")) == scope
    in_query = {"reason": "not in the header", "key_id": narrow.id, "host": HOST}
    assert refuse(teller, lambda: teller.keys.check_use(narrow, in_header=False)) == in_query
    policy = {"reason": "PolicyRefused", "key_id": key_id, "host": HOST}
    assert refuse(teller, lambda: teller.invites.create(issued.key, max_uses=2)) == policy
    quota = {"reason": "QuotaSpent", "key_id": daily.id, "host": HOST}
    assert refuse(teller, lambda: teller.invites.create(daily)) == quota
    teller.world.clock.advance(timedelta(days=2))
    assert refuse(teller, lambda: teller.keys.verify(issued.combined)) == {"reason": "expired", **known}
    teller.keys.delete(HOST, key_id)
    deleted = {"reason": "unknown", "key_id": key_id, "host": HOST}
    assert refuse(teller, lambda: teller.invites.create(issued.key, idempotency_key="one")) == deleted
    teller.keys.check_use(narrow, scope="read")
    assert teller.take() == []


def test_a_key_for_which_there_is_no_time_is_told(teller: Teller, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Busy` is a refusal too, and names the key."""
    issued = teller.keys.create(HOST)

    def is_busy(secret: str, secret_hash: str) -> None:
        raise Busy

    monkeypatch.setattr(teller.world.hasher, "verify", is_busy)
    facts = refuse(teller, lambda: teller.keys.verify(issued.combined))
    assert facts == {"reason": "Busy", "key_id": issued.key.id}


def test_an_unknown_id_that_may_be_a_token_is_left_out(teller: Teller) -> None:
    """Somebody who takes a token or a secret for an id is not repeated."""
    token = teller.invites.create_for(HOST, source="command").token
    assert refuse(teller, lambda: teller.keys.verify(f"{token}/{generate_secret()}")) == {"reason": "unknown"}


def test_keys_that_are_brought_over_are_told(bring: Bring) -> None:
    """Each imported key is an event; one that was here already is none."""
    told: list[Event] = []
    source = Source(make_foreign("6sKjFybZPGnx"), make_foreign("AAAAbbbbCCCC"))
    bring(source, on_event=told.append)
    assert {(event.name, event.key_id, event.host) for event in told} == {
        ("key.imported", "6sKjFybZPGnx", HOST),
        ("key.imported", "AAAAbbbbCCCC", HOST),
    }
    told.clear()
    bring(source, on_event=told.append)
    assert told == []


def test_a_hook_that_fails_undoes_nothing(
    memory_store: MemoryStore, hasher: Any, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What a hook raises is logged and the call answers as if there were none, or raises its own error."""

    def fail(event: Event) -> None:
        raise RuntimeError("the audit trail is full")

    keys = ApiKeys(memory_store, hasher=hasher, clock=clock, on_event=fail)
    invites = Invites(memory_store, clock=clock, on_event=fail)
    issued = keys.create(HOST)
    invite = invites.create(keys.verify(issued.combined))
    assert invites.find(invite.token) == invite
    with pytest.raises(InvitesError, match="the API key is not valid"):
        keys.verify("no key")
    assert [(record.name, record.levelno) for record in caplog.records] == [("invites_core.events", logging.ERROR)] * 3
    for shown in ("key.created", "the audit trail is full"):
        assert shown in caplog.text
    for hidden in (issued.secret, invite.token):
        assert hidden not in caplog.text


def test_the_change_is_there_when_the_hook_is_called(memory_store: MemoryStore, hasher: Any, clock: FakeClock) -> None:
    """A hook that looks sees what it is told of."""
    seen: list[bool] = []

    def look(event: Event) -> None:
        found = None if event.key_id is None else memory_store.find_key(event.key_id)
        made = memory_store.list_invites(HOST, now=NOON, state=None, source=None, limit=10, cursor=None).invites
        seen.append(found is not None if event.name == "key.created" else len(made) == 1)

    keys = ApiKeys(memory_store, hasher=hasher, clock=clock, on_event=look)
    Invites(memory_store, clock=clock, on_event=look).create(keys.create(HOST).key)
    assert seen == [True, True]


def test_every_name_is_one_that_is_listed(teller: Teller, bring: Bring) -> None:
    """`EVENT_NAMES` has all of them, and no event holds a secret, a token, a hash, an identity or who redeemed."""

    keys, invites = teller.keys, teller.invites
    issued = keys.create(HOST, policy=EVERYTHING)
    rotated = keys.rotate(HOST, issued.key.id)
    keys.update(HOST, issued.key.id, name="Canary-of-a-name")
    invite = invites.create(issued.key, idempotency_key="canary-of-an-idempotency-key", note="canary-of-a-note")
    identity = invites.redeem(invite.token, redeemer="canary-of-a-redeemer", redemption_id="canary-of-an-id")
    invites.release(invite.token, redemption_id=identity.redemption_id)
    invites.revoke(invite.token, by="admin")
    for wrong in (f"{issued.key.id}/{generate_secret()}", invite.token, f"{rotated.secret}/{issued.key.id}"):
        with pytest.raises(InvitesError):
            keys.verify(wrong)
    keys.delete(HOST, issued.key.id)
    teller.world.clock.advance(timedelta(days=1))
    invites.purge(older_than=SECOND)
    foreign = make_foreign()
    bring(Source(foreign), on_event=teller.told.append)
    assert {event.name for event in teller.told} == set(EVENT_NAMES)
    text = repr(teller.told).lower()
    hashes = [issued.key.secret_hash, rotated.key.secret_hash, issued.key.tag.hex()]
    for hidden in (issued.secret, rotated.secret, foreign.secret, invite.token, "canary", *hashes):
        assert hidden.lower() not in text
