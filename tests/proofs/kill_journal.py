"""What the callers of a kill race were told, in their own words: what the database must say afterwards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Answer = Literal["acknowledged", "refused", "unknown"]
"""What became of a write: told done, told not done, or nothing that could be relied on was told."""


@dataclass(slots=True)
class Creation:
    """A request for invites.

    Attributes:
        source: The source of the key that it was made with.
        note: A text that no other request has, or None for one whose invites can be told by their tokens only.
        count: How many invites it asked for.
        repeatable: Whether it carried an idempotency key: the note.
        answer: What was told of it.
        tokens: The tokens that an answer named.
    """

    source: str
    note: str | None
    count: int
    repeatable: bool = False
    answer: Answer = "unknown"
    tokens: tuple[str, ...] = ()


@dataclass(slots=True)
class Use:
    """A redemption.

    Attributes:
        token: The invite.
        redemption_id: Its identity.
        began_at: When it was first asked for, in seconds of ``time.monotonic``.
        answer: What was told of it.
        release: What was told of giving it back; None: that was never asked for.
    """

    token: str
    redemption_id: str
    began_at: float
    answer: Answer = "unknown"
    release: Answer | None = None


@dataclass(slots=True)
class Revocation:
    """An invite that was taken back, or not.

    Attributes:
        token: The invite.
        answer: What was told of it.
        ended_at: When that was told, in seconds of ``time.monotonic``.
    """

    token: str
    answer: Answer = "unknown"
    ended_at: float = 0.0


@dataclass(slots=True)
class KeyLife:
    """A key that a killed process made and perhaps deleted.

    Attributes:
        name: Its name, which no other key has.
        combined: ``ID/SECRET``, once its creation was acknowledged.
        invites: The tokens of invites that were acknowledged to it.
        deletion: What was told of its deletion; None: that was never asked for.
        with_invites: Whether its invites were to go with it.
    """

    name: str
    combined: str | None = None
    invites: list[str] = field(default_factory=list)
    deletion: Answer | None = None
    with_invites: bool = False

    @property
    def id(self) -> str:
        """The key's id; its creation was acknowledged."""
        return (self.combined or "").partition("/")[0]


@dataclass(slots=True)
class Journal:
    """All that was told to one caller, or to all of them.

    Attributes:
        creations: What was asked to be made.
        uses: What was redeemed and released.
        revocations: What was taken back.
        keys: The keys that killed processes worked on.
        spent: By source, the fewest invites for which a quota was told to have no room.
        lost: How many requests got no answer.
        left: How many requests' answers were not waited for.
        repeats: How many times a request was sent again with its identity.
        unexpected: Answers that should never be, and how often they were.
    """

    creations: list[Creation] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    revocations: list[Revocation] = field(default_factory=list)
    keys: list[KeyLife] = field(default_factory=list)
    spent: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    left: int = 0
    repeats: int = 0
    unexpected: Counter[str] = field(default_factory=Counter)

    def add(self, other: Journal) -> None:
        """Take in what was told to another caller."""
        self.creations += other.creations
        self.uses += other.uses
        self.revocations += other.revocations
        self.keys += other.keys
        for source, count in other.spent.items():
            self.note_spent(source, count)
        self.lost += other.lost
        self.left += other.left
        self.repeats += other.repeats
        self.unexpected += other.unexpected

    def note_spent(self, source: str, count: int) -> None:
        """Note that a quota had no room for so many invites."""
        self.spent[source] = min(count, self.spent.get(source, count))

    def count_acknowledged(self) -> Counter[str]:
        """Count what was told to be done, by its kind."""
        counted: Counter[str] = Counter()
        for creation in self.creations:
            if creation.answer == "acknowledged":
                kind = "creations, idempotent" if creation.repeatable else "creations, plain"
                counted[kind] += 1
                counted["invites created"] += creation.count
        counted["redemptions"] = sum(use.answer == "acknowledged" for use in self.uses)
        counted["releases"] = sum(use.release == "acknowledged" for use in self.uses)
        counted["revocations"] = sum(one.answer == "acknowledged" for one in self.revocations)
        counted["keys created"] = sum(key.combined is not None for key in self.keys)
        counted["keys deleted"] = sum(key.deletion == "acknowledged" for key in self.keys)
        counted["invites of these keys"] = sum(len(key.invites) for key in self.keys)
        return counted
