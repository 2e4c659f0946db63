"""What the SQLite store is asked to do while its disk fails: each operation of a store, with fixed identities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from invites_core.invites import Invite
from invites_core.keys import ApiKey
from invites_core.store import Grant
from invites_core.stores.sqlite import SqliteStore
from invites_core.testing import make_grant, make_invite, make_key
from invites_core.testing.clock import NOON

__all__ = ["HOST", "Operation", "make_operations", "tune_checkpoints"]

HOST: Final = "example.com"
HOUR: Final = timedelta(hours=1)
TAG: Final = b"another."
WEEK: Final = timedelta(days=7)
SOURCE: Final = "api/token/granted"


def do_nothing(store: SqliteStore) -> None:
    """Leave the store as it is."""


def touch(store: SqliteStore) -> None:
    """Open the connection of this thread, so that what follows is the operation alone."""
    store.ping()


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that is asked of a store; repeating it is safe.

    Attributes:
        name: What it is called.
        call: Does it, and returns what the store said.
        again: Repeats it after an outcome that is not known; None: `call` does.
        prepare: Fills the database beforehand.
        warm: Called in the process that does it, before anything fails.
        start: How the process comes to the store: ``open`` without faults; ``opening``: the faults begin before it is
            opened; ``making``: there is no database yet.
        is_closed: Whether the database was closed cleanly beforehand, or its process killed.
        writes: Whether it may change anything.
    """

    name: str
    call: Callable[[SqliteStore], object]
    again: Callable[[SqliteStore], object] | None = None
    prepare: Callable[[SqliteStore], object] = do_nothing
    warm: Callable[[SqliteStore], object] = touch
    start: str = "open"
    is_closed: bool = True
    writes: bool = True

    @property
    def repeat(self) -> Callable[[SqliteStore], object]:
        """What resolves an unknown outcome."""
        return self.again or self.call


def tune_checkpoints(store: SqliteStore) -> None:
    """Let every commit of this thread be followed by a checkpoint, and the log begin anew."""
    store.ping()
    store._database._connection().wal_autocheckpoint(1)


def warm_with_checkpoint(store: SqliteStore) -> None:
    """Let the next write begin the log anew and be followed by a checkpoint."""
    tune_checkpoints(store)
    store.add_key(make_key(id="checkpointed"))


@dataclass(frozen=True, slots=True)
class Records:
    """The records that the operations are about."""

    key: ApiKey
    granted: ApiKey
    grant: Grant
    large_grant: Grant
    used_up: Grant
    invite: Invite
    used: Invite
    shared: Invite
    many: Sequence[Invite]
    over: Sequence[Invite]

    def fill(self, store: SqliteStore) -> None:
        """Put in what there is before any operation."""
        store.add_key(self.granted)
        store.take_grant(self.used_up)
        store.add_invites([self.invite, self.used, self.shared, *self.over])
        redeem(self.used.token, "first")(store)
        redeem(self.shared.token, "held")(store)


def make_records() -> Records:
    """Make records with identities of their own."""
    granted = make_key(id="granted")
    return Records(
        key=make_key(id="added"),
        granted=granted,
        grant=make_grant(granted, count=2, limit=5, name="one"),
        large_grant=make_grant(granted, count=4, limit=5, name="other"),
        used_up=make_grant(granted, count=2, limit=5, name="before"),
        invite=make_invite(),
        used=make_invite(),
        shared=make_invite(max_uses=3),
        many=[make_invite(note="x" * 300) for _ in range(60)],
        over=[make_invite(expires_at=NOON - timedelta(days=each)) for each in range(1, 9)],
    )


def redeem(token: str, redemption_id: str, *, now: datetime = NOON) -> Callable[[SqliteStore], object]:
    """Return what redeems an invite with an identity."""
    return lambda store: store.redeem_invite(
        token, redemption_id=redemption_id, redeemer="alice", username="alice", host=None, now=now
    )


def make_operations() -> list[Operation]:
    """Return every operation, about records that are made anew."""
    records = make_records()
    return [
        *_make_openings(records),
        *(
            replace(each, prepare=records.fill)
            for each in (*_make_key_changes(records), *_make_invite_changes(records))
        ),
        *(replace(each, prepare=records.fill, writes=False) for each in _make_reads(records)),
    ]


def _make_openings(records: Records) -> list[Operation]:
    def look(store: SqliteStore) -> object:
        return store.find_key("granted"), len(store.list_keys())

    return [
        Operation("make", look, start="making"),
        Operation("open", look, start="opening", prepare=records.fill),
        Operation("open after a kill", look, start="opening", prepare=records.fill, is_closed=False),
    ]


def _make_key_changes(records: Records) -> list[Operation]:
    key, granted, grant = records.key, records.granted, records.grant
    invites = [make_invite(token=token, source=SOURCE) for token in grant.tokens]
    too_many = [make_invite(token=token, source=SOURCE) for token in records.large_grant.tokens]
    renamed = replace(granted, name="Another name")
    return [
        Operation("add_key", lambda store: store.add_key(key)),
        Operation("add_key, opening", lambda store: store.add_key(key), start="opening"),
        Operation("add_key, checkpoint", lambda store: store.add_key(key), warm=warm_with_checkpoint),
        Operation("take_grant", lambda store: store.take_grant(grant)),
        Operation("add_granted", lambda store: store.add_granted(grant, invites)),
        Operation("add_granted, spent", lambda store: store.add_granted(records.large_grant, too_many)),
        Operation("update_key", lambda store: store.update_key(granted, renamed)),
        Operation(
            "rotate_key",
            lambda store: store.rotate_key(
                granted.id, host=HOST, secret_hash="another", tag=TAG, previous_until=NOON + HOUR
            ),
        ),
        Operation("delete_key", lambda store: store.delete_key(granted.id, host=HOST, now=NOON)),
    ]


def _make_invite_changes(records: Records) -> list[Operation]:
    invite, shared = records.invite, records.shared

    def add_again(store: SqliteStore) -> None:
        store.add_invites(records.many, if_absent=True)

    return [
        Operation("add_invites", lambda store: store.add_invites(records.many), again=add_again),
        Operation(
            "add_invites, checkpoint",
            lambda store: store.add_invites(records.many),
            again=add_again,
            warm=warm_with_checkpoint,
        ),
        Operation("redeem", redeem(invite.token, "one")),
        Operation("redeem, used", redeem(records.used.token, "second")),
        Operation(
            "release",
            lambda store: store.release_redemption(shared.token, redemption_id="held", host=None, now=NOON),
        ),
        Operation("revoke", lambda store: store.revoke_invite(invite.token, by="admin", host=None, now=NOON)),
        Operation(
            "revoke of a source",
            lambda store: store.revoke_invites_from("command", by="admin", host=HOST, now=NOON, limit=100),
        ),
        Operation("purge", lambda store: store.purge_invites(before=NOON - HOUR, limit=100)),
    ]


def _make_reads(records: Records) -> list[Operation]:
    return [
        Operation("find_invite", lambda store: store.find_invite(records.used.token)),
        Operation(
            "list_invites, opening",
            lambda store: store.list_invites(HOST, now=NOON, state="pending", limit=50),
            start="opening",
        ),
        Operation("list_redemptions", lambda store: store.list_redemptions(records.used.token)),
        Operation("list_keys, opening", lambda store: store.list_keys(), start="opening"),
    ]
