"""What holds for a copy of one store into another, whichever SQL stores they are."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Sequence
from datetime import timedelta
from typing import Protocol

import pytest

from invites_core.errors import InvalidRequest, StorageError
from invites_core.keys import PreviousSecret
from invites_core.store import Store
from invites_core.stores import transfer
from invites_core.stores.transfer import (
    INVITES,
    MARK,
    TABLES,
    CopyRefused,
    Row,
    Snapshot,
    Table,
    Transferable,
    copy_store,
)
from tests.helpers import FULL_POLICY, NOON, SECOND, make_grant, make_invite, make_key

LATER = NOON + timedelta(hours=1)


class CopiedStore(Store, Transferable, Protocol):
    """A store that can be copied."""


def dump(store: Transferable) -> dict[str, list[Row]]:
    """Return all that a store holds, table by table."""
    with store.open_snapshot() as snapshot:
        return {table.name: list(snapshot.rows(table)) for table in TABLES}


def fill(store: Store, *, invites: int = 20) -> list[str]:
    """Put something of everything into a store, and return the tokens of its invites in their order."""
    old = PreviousSecret(secret_hash="$argon2id$old", tag=b"\x00" * 8, valid_until=LATER)
    keys = [
        make_key(),
        make_key(name="Schlüssel \N{KEY}\n", policy=FULL_POLICY, expires_at=LATER, last_used_at=NOON, previous=old),
        make_key(name=None, host="bücher.example"),
        make_key(),
    ]
    for key in keys:
        store.add_key(key)
    store.delete_key(keys[3].id, host=keys[3].host, now=LATER)
    grant = make_grant(keys[0], count=2, limit=5, name="once")
    granted = [make_invite(token=token, source=f"api/token/{keys[0].id}") for token in grant.tokens]
    store.add_granted(grant, granted)
    made = [make_invite(note=f"Nummer {number} \x1b", groups=("a", "ä"), roles=("r",)) for number in range(invites)]
    # One of an earlier second than those before it, as after a clock was set back: lists go by when it was added.
    made[-1] = dataclasses.replace(made[-1], created_at=NOON - timedelta(days=1), max_uses=None, expires_at=None)
    store.add_invites(made)
    tokens = [invite.token for invite in (*granted, *made)]
    for number, token in enumerate(tokens[:4]):
        redeem(store, token, f"id-{number}")
    store.release_redemption(tokens[1], redemption_id="id-1", host=None, now=LATER)
    store.release_redemption(tokens[5], redemption_id="early", host=None, now=LATER)
    store.revoke_invite(tokens[6], by="admin", host=None, now=LATER)
    return tokens


def redeem(store: Store, token: str, redemption_id: str) -> str:
    """Redeem an invite as alice, and return what became of it."""
    done = store.redeem_invite(
        token, redemption_id=redemption_id, redeemer="alice", username="alice", host=None, now=NOON + SECOND
    )
    return done.outcome


def list_tokens(store: Store) -> list[str]:
    """Return the tokens of a host's invites in the order of lists."""
    return [invite.token for invite in store.list_invites("example.com", now=LATER, limit=1000).invites]


class Failing:
    """A target that fails after so many batches, before or after the last of them is kept."""

    def __init__(self, store: Transferable, *, batches: int, keeps_last: bool = False) -> None:
        self._store = store
        self._left = batches
        self._keeps_last = keeps_last
        self.largest = 0

    @property
    def location(self) -> str:
        return self._store.location

    def get_identity(self) -> Hashable:
        return self._store.get_identity()

    def open_snapshot(self) -> contextlib.AbstractContextManager[Snapshot]:
        return self._store.open_snapshot()

    def add_rows(self, table: Table, rows: Sequence[Row]) -> None:
        self.largest = max(self.largest, len(rows))
        self._left -= 1
        if self._left >= 0 or self._keeps_last:
            self._store.add_rows(table, rows)
        if self._left < 0:
            raise StorageError("it failed")

    def remove_row(self, table: Table, identity: Row) -> None:
        self._store.remove_row(table, identity)


def copy_a_part(source: Transferable, target: Transferable, *, batches: int) -> None:
    """Copy so many batches, the mark being one, and fail then."""
    with pytest.raises(StorageError, match="it failed"):
        copy_store(source, Failing(target, batches=batches))


class TransferTests:
    """What a fixture ``new_store``, which makes empty stores, and the fixture ``source`` are held to."""

    @pytest.fixture(autouse=True)
    def small_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A batch has three rows."""
        monkeypatch.setattr(transfer, "BATCH_ROWS", 3)

    @pytest.fixture
    def target(self, new_store: Callable[[], CopiedStore]) -> CopiedStore:
        """An empty store."""
        return new_store()

    def test_a_copy_holds_every_row(self, source: CopiedStore, target: CopiedStore) -> None:
        """Every column of every row of every table is in the copy, and lists have the same order."""
        fill(source)
        before = dump(source)
        assert all(before.values())
        rows = copy_store(source, target)
        assert rows == {name: len(found) for name, found in before.items()}
        assert dump(target) == before
        assert list_tokens(target) == list_tokens(source)
        assert dump(source) == before

    def test_a_copy_works_as_its_source_would(self, source: CopiedStore, target: CopiedStore) -> None:
        """Used is used, a repeat is a repeat, released is final, a deleted key does not come back, a quota goes on."""
        tokens = fill(source)
        copy_store(source, target)
        outcomes = [redeem(target, tokens[number], f"id-{number}") for number in (0, 1)]
        assert outcomes == ["repeated", "released"]
        assert redeem(target, tokens[0], "another") == "refused"
        assert redeem(target, tokens[5], "early") == "released"
        assert redeem(target, tokens[5], "another") == "redeemed"
        target.add_invites([make_invite()])
        assert list_tokens(target)[1:] == list_tokens(source)
        for key in source.list_keys():
            assert target.find_key(key.id) == key
            assert target.find_quota_taken(key.id, NOON) == source.find_quota_taken(key.id, NOON)

    def test_an_empty_store_can_be_copied(self, source: CopiedStore, target: CopiedStore) -> None:
        """A copy of nothing is empty."""
        assert set(copy_store(source, target).values()) == {0}
        assert not any(dump(target).values())

    @pytest.mark.parametrize("keeps_last", [False, True], ids=["lost", "kept"])
    def test_a_copy_that_was_cut_short_goes_on(
        self, source: CopiedStore, new_store: Callable[[], CopiedStore], keeps_last: bool
    ) -> None:
        """Wherever a copy stopped, the same copy run again, and stopped again, comes to the same end."""
        fill(source, invites=8)
        whole = new_store()
        copy_store(source, whole)
        for batches in range(2, 9):
            target = new_store()
            runs = 0
            while runs < 20:
                runs += 1
                with contextlib.suppress(StorageError):
                    copy_store(source, Failing(target, batches=batches, keeps_last=keeps_last))
                    break
            assert runs > 1
            assert dump(target) == dump(source)
            assert list_tokens(target) == list_tokens(whole)

    def test_an_unfinished_copy_lets_nobody_in(self, source: CopiedStore, new_store: Callable[[], CopiedStore]) -> None:
        """No invite is there before its redemptions, no key before all else, and no row without the mark."""
        fill(source, invites=8)
        whole = dump(source)
        for batches in range(1, 11):
            target = new_store()
            copy_a_part(source, target, batches=batches)
            held = dump(target)
            assert MARK in [row[0] for row in held["deleted_keys"]]
            if held["invites"]:
                assert held["redemptions"] == whole["redemptions"]
            if held["keys"]:
                assert held["invites"] == whole["invites"]

    def test_a_finished_copy_is_verified_again(self, source: CopiedStore, target: CopiedStore) -> None:
        """Run again after its end, the same copy writes nothing and says the same."""
        fill(source)
        rows = copy_store(source, target)
        assert copy_store(source, Failing(target, batches=0)) == rows

    @pytest.mark.parametrize(
        ("change", "where"),
        [
            pytest.param(lambda store, tokens: redeem(store, tokens[7], "new"), "redemptions", id="used"),
            pytest.param(lambda store, _: store.add_key(make_key(id="zzzzzzzz")), "keys (key zzzzzzzz)", id="key"),
            pytest.param(lambda store, _: store.add_invites([make_invite()]), "invites", id="invite"),
            pytest.param(
                lambda store, tokens: store.revoke_invite(tokens[7], by="x", host=None, now=LATER),
                "its row of invites differs",
                id="revoked",
            ),
            pytest.param(
                lambda store, _: store.purge_invites(before=NOON + timedelta(days=9), limit=1000), "others", id="purged"
            ),
            pytest.param(
                lambda store, tokens: store.remove_row(INVITES, (tokens[-1],)), "it lacks rows", id="last-purged"
            ),
        ],
    )
    def test_a_target_that_was_used_is_refused(
        self,
        source: CopiedStore,
        target: CopiedStore,
        change: Callable[[CopiedStore, list[str]], object],
        where: str,
    ) -> None:
        """A copy that has had a life of its own is refused before anything is written; no token is told."""
        tokens = fill(source)
        copy_store(source, target)
        change(target, tokens)
        before = dump(target)
        with pytest.raises(CopyRefused) as refused:
            copy_store(source, target)
        assert dump(target) == before
        assert where in str(refused.value)
        assert "\n" not in str(refused.value)
        secrets = [*tokens, *(key.secret_hash for key in source.list_keys())]
        assert [secret for secret in secrets if secret in str(refused.value)] == []

    def test_a_use_of_an_unfinished_copy_is_kept(self, source: CopiedStore, target: CopiedStore) -> None:
        """An invite that was used in an unfinished copy stays used: the copy does not go on."""
        tokens = fill(source)
        copy_a_part(source, target, batches=10)
        assert redeem(target, tokens[5], "in-the-copy") == "redeemed"
        with pytest.raises(CopyRefused):
            copy_store(source, target)
        assert redeem(target, tokens[5], "another") == "refused"

    def test_a_use_of_the_source_between_two_runs_is_told(self, source: CopiedStore, target: CopiedStore) -> None:
        """Where the source has moved on since the first run, an unfinished copy is no beginning of it any more."""
        tokens = fill(source)
        copy_a_part(source, target, batches=10)
        redeem(source, tokens[5], "in-the-source")
        before = dump(target)
        with pytest.raises(CopyRefused, match="is not empty and not a copy of .* as that is now"):
            copy_store(source, target)
        assert dump(target) == before

    def test_a_source_that_is_in_use_is_told(self, source: CopiedStore, target: CopiedStore) -> None:
        """What happens in the source during the copy is not in it, and the copy does not pass for whole."""
        tokens = fill(source)

        def use(what: str, done: int, _total: int) -> None:
            if (what, done) == ("copied", 3):
                redeem(source, tokens[5], "meanwhile")

        with pytest.raises(CopyRefused, match=r"changed while it was copied: stop what uses it"):
            copy_store(source, target, progress=use)
        assert redeem(target, tokens[5], "meanwhile") == "redeemed"

    def test_a_target_that_is_in_use_is_told(self, source: CopiedStore, target: CopiedStore) -> None:
        """Rows that others write into the target during the copy make it fail."""
        fill(source)

        def use(what: str, done: int, total: int) -> None:
            if (what, done) == ("copied", total):
                target.add_invites([make_invite()])

        with pytest.raises(CopyRefused, match=r"changed while it was copied: something else writes to it"):
            copy_store(source, target, progress=use)

    def test_an_unfinished_copy_is_no_source(self, source: CopiedStore, new_store: Callable[[], CopiedStore]) -> None:
        """A half is not copied as if it were a whole."""
        fill(source)
        half, target = new_store(), new_store()
        copy_a_part(source, half, batches=5)
        with pytest.raises(CopyRefused, match="is itself an unfinished copy"):
            copy_store(half, target)
        assert not any(dump(target).values())

    def test_a_store_is_not_copied_into_itself(self, target: CopiedStore) -> None:
        """Source and target that are the same data are refused, and it is as it was."""
        fill(target)
        before = dump(target)
        with pytest.raises(InvalidRequest, match="is the same database as the source"):
            copy_store(target, target)
        assert dump(target) == before

    @pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
    def test_a_batch_is_added_whole_or_not_at_all(self, source: CopiedStore, target: CopiedStore, table: Table) -> None:
        """Rows that are there and equal are left alone; one that differs undoes its batch."""
        fill(source)
        first, *others = dump(source)[table.name]
        target.add_rows(table, [first])
        target.add_rows(table, [first])
        assert dump(target)[table.name] == [first]
        place = next(n for n in reversed(range(len(first))) if isinstance(first[n], int) or table.columns[n] == "note")
        other = list(first)
        other[place] = "another" if table.columns[place] == "note" else other[place] + 1
        with pytest.raises(CopyRefused, match=f"another row of {table.name}"):
            target.add_rows(table, [*others, tuple(other)])
        assert dump(target)[table.name] == [first]

    def test_progress_is_told(self, source: CopiedStore, target: CopiedStore) -> None:
        """Who asks is told after every batch how far it is, up to all rows."""
        fill(source)
        told: list[tuple[str, int, int]] = []
        rows = copy_store(source, target, progress=lambda *step: told.append(step))
        total = sum(rows.values())
        copied = [step for step in told if step[0] == "copied"]
        assert copied[-1] == ("copied", total, total)
        assert [done for _, done, _ in copied] == sorted({done for _, done, _ in copied})
        verified = [done for what, done, of in told if what == "verified" and of == 2 * total]
        assert verified == list(range(3, 2 * total + 1, 3))
