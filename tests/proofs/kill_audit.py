"""Compares a database with what its callers were told: what was acknowledged is there, and once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from invites_core import ApiKey, ApiKeys, InvalidKey, Invite, Invites, Redemption, Store
from invites_core.testing.hashing import cheap_hasher
from tests.proofs.kill_journal import Creation, Journal, KeyLife, Use

PAGE = 1000


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that the database says otherwise than its callers were told.

    Attributes:
        kind: ``lost``: acknowledged and not there; ``doubled``: there more often than it may be; ``wrong``: anything
            else.
        what: What it is, in words.
    """

    kind: Literal["lost", "doubled", "wrong"]
    what: str


def find_faults(store: Store, journal: Journal, *, host: str, issued: Sequence[ApiKey]) -> list[Fault]:
    """Compare a database that nobody works on with a journal.

    Args:
        store: The database.
        journal: All that was told to those who used these keys and made keys beside them.
        host: The host of all invites.
        issued: The keys that the creations in the journal were made with.
    """
    audit = _Audit(store, journal, host, issued)
    return [
        *(Fault("wrong", problem) for problem in store.find_problems()),
        *audit.check_creations(),
        *audit.check_quotas(),
        *audit.check_uses(),
        *audit.check_revocations(),
        *_check_keys(store, journal.keys, host),
    ]


def check_next_calls(store: Store, *, host: str) -> list[Fault]:
    """Make an invite, use it, and make and delete a key, in a database on which others were killed."""
    invites, keys = Invites(store), ApiKeys(store, hasher=cheap_hasher())
    made = invites.create_for(host, source="audit")
    invites.redeem(made.token, redeemer="audit", redemption_id="audit")
    issued = keys.create(host, name="audit")
    keys.delete(host, issued.key.id)
    faults = []
    if invites.get(made.token).uses != 1:
        faults.append(Fault("lost", "the next redemption is not there"))
    if keys.find(issued.key.id) is not None:
        faults.append(Fault("lost", "the next deletion does not hold"))
    return faults


class _Audit:
    """One comparison."""

    def __init__(self, store: Store, journal: Journal, host: str, issued: Sequence[ApiKey]) -> None:
        self._store = store
        self._journal = journal
        self._keys = ApiKeys(store)
        self._issued = issued
        service = Invites(store)
        self._stored = {key.source: _list_all(service, host, key.source) for key in issued}
        self._invites = {token: invite for of_key in self._stored.values() for token, invite in of_key.items()}

    def check_creations(self) -> Iterator[Fault]:
        """What was acknowledged is there; what was not is there whole or not at all, and nothing else is."""
        by_note: defaultdict[str | None, list[str]] = defaultdict(list)
        for token, invite in self._invites.items():
            by_note[invite.note].append(token)
        for creation in self._journal.creations:
            for token in creation.tokens:
                if token not in self._invites or self._store.find_invite(token) is None:
                    yield Fault("lost", f"an invite of {creation.note or 'a plain creation'}")
            if creation.note is not None:
                yield from _check_note(creation, by_note.pop(creation.note, []))
        yield from self._check_bare(by_note.pop(None, []))
        for note, tokens in by_note.items():
            yield Fault("wrong", f"{len(tokens)} invites of {note}, which nobody has asked for")

    def _check_bare(self, tokens: Iterable[str]) -> Iterator[Fault]:
        """Invites without a note: those that were acknowledged, and one at most for each request without an answer."""
        bare = [creation for creation in self._journal.creations if creation.note is None]
        known = {token for creation in bare for token in creation.tokens}
        unknown = sum(creation.count for creation in bare if creation.answer == "unknown")
        others = len(set(tokens) - known)
        if others > unknown:
            yield Fault("doubled", f"{others} invites for {unknown} plain creations without an answer")

    def check_quotas(self) -> Iterator[Fault]:
        """A quota was never exceeded, counts what is there, and was not told to be spent while it had room."""
        acknowledged: Counter[str] = Counter()
        for creation in self._journal.creations:
            acknowledged[creation.source] += len(creation.tokens)
        for key in self._issued:
            quota, rows = key.policy.quota, len(self._stored[key.source])
            if quota is None:
                continue
            if max(rows, acknowledged[key.source]) > quota.count:
                yield Fault("doubled", f"{rows} invites, {acknowledged[key.source]} told, for a quota of {quota.count}")
            left = self._keys.find_quota_left(key)
            if left is None or left[0] != quota.count - rows:
                yield Fault("wrong", f"a quota of {quota.count} with {rows} invites has {left and left[0]} left")
            refused = self._journal.spent.get(key.source)
            if refused is not None and rows + refused <= quota.count:
                yield Fault("wrong", f"a quota of {quota.count} was spent after {rows}")

    def check_uses(self) -> Iterator[Fault]:
        """A redemption that was acknowledged is there once, one that was refused is not, and nobody else has won."""
        uses: defaultdict[str, list[Use]] = defaultdict(list)
        for use in self._journal.uses:
            uses[use.token].append(use)
        for token, invite in self._invites.items():
            known = {use.redemption_id: use for use in uses.get(token, [])}
            if not known and not invite.uses:
                continue
            redemptions = {one.redemption_id: one for one in self._store.list_redemptions(token)}
            yield from _check_count(invite, redemptions, known)
            for identity, use in known.items():
                yield from _check_use(use, redemptions.get(identity))

    def check_revocations(self) -> Iterator[Fault]:
        """What was taken back stays so, and nothing that began afterwards has used it."""
        ended: dict[str, float] = {}
        for one in self._journal.revocations:
            if one.answer == "acknowledged":
                ended[one.token] = min(one.ended_at, ended.get(one.token, one.ended_at))
                invite = self._invites.get(one.token)
                if invite is None or invite.revoked_by is None:
                    yield Fault("lost", f"the revocation of {_name(invite)}")
        for use in self._journal.uses:
            if use.answer == "acknowledged" and use.began_at > ended.get(use.token, float("inf")):
                yield Fault("wrong", f"the redemption {use.redemption_id} began after a revocation and won")


def _check_note(creation: Creation, tokens: list[str]) -> Iterator[Fault]:
    if len(tokens) > creation.count:
        yield Fault("doubled", f"{len(tokens)} invites of {creation.note}, which asked for {creation.count}")
    elif tokens and creation.answer == "refused":
        yield Fault("wrong", f"invites of {creation.note}, which was refused")
    elif 0 < len(tokens) < creation.count:
        yield Fault("wrong", f"{len(tokens)} invites of {creation.note}, which asked for {creation.count}")
    elif creation.tokens and set(tokens) != set(creation.tokens):
        yield Fault("wrong", f"other invites of {creation.note} than were told")


def _check_count(invite: Invite, redemptions: dict[str, Redemption], known: dict[str, Use]) -> Iterator[Fault]:
    active = [one for one in redemptions.values() if one.released_at is None]
    held = sum(use.answer == "acknowledged" and use.release is None for use in known.values())
    if invite.uses != len(active):
        yield Fault("wrong", f"{_name(invite)} counts {invite.uses} uses and has {len(active)}")
    if invite.max_uses is not None and max(len(active), invite.uses, held) > invite.max_uses:
        yield Fault("doubled", f"{_name(invite)} of {invite.max_uses} uses has {len(active)}, and {held} were told so")
    for identity in redemptions.keys() - known.keys():
        yield Fault("wrong", f"the redemption {identity}, which nobody has asked for")


def _check_use(use: Use, stored: Redemption | None) -> Iterator[Fault]:
    is_active = stored is not None and stored.released_at is None
    if use.release == "acknowledged" and (stored is None or is_active):
        yield Fault("lost", f"the release of {use.redemption_id}")
    elif use.answer == "acknowledged" and (stored is None or (use.release is None and not is_active)):
        yield Fault("lost", f"the redemption {use.redemption_id}")
    elif use.answer == "refused" and is_active:
        yield Fault("wrong", f"the redemption {use.redemption_id}, which was refused")


def _check_keys(store: Store, lives: Iterable[KeyLife], host: str) -> Iterator[Fault]:
    """A key that was acknowledged works, a deleted one is gone and has its mark, and no name is there twice."""
    keys, invites = ApiKeys(store, hasher=cheap_hasher()), Invites(store)
    named = Counter(key.name for key in keys.list(host))
    for life in lives:
        if named[life.name] > 1:
            yield Fault("doubled", f"the key {life.name}")
        if life.combined is None:
            continue
        is_there, has_mark = keys.find(life.id) is not None, keys.find_deletion(life.id) is not None
        if life.deletion is None and not _verifies(keys, life.combined):
            yield Fault("lost", f"the key {life.name}")
        if life.deletion == "acknowledged" and (is_there or not has_mark):
            yield Fault("lost", f"the deletion of the key {life.name}")
        if is_there == has_mark:
            yield Fault(
                "wrong", f"the key {life.name} {'is there with a mark' if is_there else 'is gone without a mark'}"
            )
        yield from _check_invites_of_key(invites, life)


def _check_invites_of_key(invites: Invites, life: KeyLife) -> Iterator[Fault]:
    for token in life.invites:
        invite = invites.find(token)
        if invite is None:
            yield Fault("lost", f"an invite of the key {life.name}")
        elif life.with_invites and life.deletion == "acknowledged" and invite.revoked_by is None:
            yield Fault("lost", f"a revocation with the key {life.name}")


def _verifies(keys: ApiKeys, combined: str) -> bool:
    try:
        keys.verify(combined)
    except InvalidKey:
        return False
    return True


def _list_all(invites: Invites, host: str, source: str) -> dict[str, Invite]:
    found: dict[str, Invite] = {}
    cursor = None
    while True:
        page = invites.list(host, source=source, limit=PAGE, cursor=cursor)
        found.update((invite.token, invite) for invite in page.invites)
        cursor = page.next
        if cursor is None:
            return found


def _name(invite: Invite | None) -> str:
    """Name an invite without its token, which is a secret in every report."""
    return "an invite that is gone" if invite is None else f"an invite of {invite.note or 'a plain creation'}"
