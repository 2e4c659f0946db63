"""API keys: the record, its ``ID/SECRET`` form, and what a key may make."""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from invites_core.durations import format_duration, parse_duration
from invites_core.errors import InvalidKey, InvalidRequest, ScopeMissing
from invites_core.text import check_text

__all__ = [
    "DEFAULT_POLICY",
    "NEVER",
    "SCOPES",
    "ApiKey",
    "IssuedKey",
    "KeyPolicy",
    "PreviousSecret",
    "Quota",
    "format_key",
    "format_source",
    "generate_key_id",
    "generate_secret",
    "is_key_id",
    "parse_key",
]

SCOPES: Final = frozenset({"create", "read", "revoke", "redeem"})
"""What a key can be allowed to do."""

NEVER: Final = timedelta.max
"""As a longest lifetime: no bound, so that invites may be made that never expire."""

MAX_KEY_LENGTH: Final = 255
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,253}", re.ASCII)
_KEY: Final = re.compile(r"([A-Za-z0-9_-]+)/([A-Za-z0-9_-]+)", re.ASCII)


def _is_whole(duration: timedelta) -> bool:
    return duration >= timedelta(seconds=1) and not duration % timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Quota:
    """How many invites a key may make in a period; periods are fixed windows of UTC, counted from 1970.

    Attributes:
        count: Invites a period, at least 1.
        period: The period's length, in whole seconds, so that ``1d`` is a UTC day.
    """

    count: int
    period: timedelta

    def __post_init__(self) -> None:
        """Refuse what no store could read back.

        Raises:
            InvalidRequest: The count is under 1, or the period no whole number of seconds.
        """
        if self.count < 1 or not _is_whole(self.period):
            raise InvalidRequest("quota", "must be at least one invite in a period of whole seconds")

    @classmethod
    def parse(cls, text: str, *, field: str = "quota") -> Quota:
        """Read a quota such as ``100/1d``.

        Raises:
            InvalidRequest: It is not of that form.
        """
        count, slash, period = text.partition("/")
        if not slash or not re.fullmatch(r"[0-9]{1,9}", count, re.ASCII) or int(count) < 1:
            raise InvalidRequest(field, f"must be a number of invites and a period, such as 100/1d, not {text[:40]!r}")
        return cls(int(count), parse_duration(period, field=field))

    def find_window(self, now: datetime) -> tuple[datetime, datetime]:
        """Return when the period that holds a time begins, and when the next one does."""
        length = int(self.period.total_seconds())
        start = datetime.fromtimestamp(int(now.timestamp()) // length * length, UTC)
        return start, start + self.period

    def __str__(self) -> str:
        """Write the quota so that `parse` reads the same again."""
        return f"{self.count}/{format_duration(self.period)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPolicy:
    """What a key may make. The default is what a key of Prosody's mod_invites_api can: plain, single-use invites.

    Attributes:
        scopes: What it may do at all, of `SCOPES`.
        kinds: The kinds of invites it may make.
        groups: The groups that its invites may put people in.
        roles: The roles that its invites may give.
        allow_username: Whether its invites may name an account.
        max_expiry: The longest lifetime of its invites; None: the host's default for the kind; `NEVER`: no bound.
        max_uses: The most uses that one of its invites may have; None: no bound.
        quota: How many invites in which period; None: no bound.
        all_invites: Whether it sees all invites of its host in lists, instead of its own.
        header_only: Whether it is taken in the Authorization header only, never as ``?key=``.
    """

    scopes: frozenset[str] = frozenset({"create"})
    kinds: frozenset[str] = frozenset({"register"})
    groups: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    allow_username: bool = False
    max_expiry: timedelta | None = None
    max_uses: int | None = 1
    quota: Quota | None = None
    all_invites: bool = False
    header_only: bool = False

    def __post_init__(self) -> None:
        """Refuse what no store could read back: a key with such a policy could never be used, nor listed.

        Raises:
            InvalidRequest: A scope is none, a bound is out of range, or a group or role cannot be stored everywhere.
        """
        if not self.scopes <= SCOPES:
            raise InvalidRequest("scopes", f"must be of {', '.join(sorted(SCOPES))}")
        if self.max_expiry is not None and self.max_expiry != NEVER and not _is_whole(self.max_expiry):
            raise InvalidRequest("max_expiry", "must be at least one second, in whole seconds")
        if self.max_uses is not None and self.max_uses < 1:
            raise InvalidRequest("max_uses", "must be at least 1")
        for field_name, values in (("groups", self.groups), ("roles", self.roles)):
            for value in values:
                check_text(field_name, value, max_length=255)


DEFAULT_POLICY: Final = KeyPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousSecret:
    """The secret that a key had before it was rotated.

    Attributes:
        secret_hash: Its argon2id hash.
        tag: Its reject tag.
        valid_until: The last second in which it is taken.
    """

    secret_hash: str = field(repr=False)
    tag: bytes = field(repr=False)
    valid_until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key as it is stored; it never holds the secret.

    Attributes:
        id: The public half, unique in its store over all hosts.
        host: The host whose invites it makes, normalised.
        name: What its owner calls it, or None.
        secret_hash: The argon2id hash of the secret, in PHC string format.
        tag: The reject tag: 8 bytes that tell most wrong secrets without a slow hash.
        previous: The secret before the last rotation, or None.
        policy: What it may make.
        created_at: When it was made (aware UTC, whole seconds, as all times here).
        expires_at: The last second in which it is valid; None: for ever.
        last_used_at: When it was used, to about a minute; None: never yet.
    """

    id: str
    host: str
    name: str | None
    secret_hash: str = field(repr=False)
    tag: bytes = field(repr=False)
    previous: PreviousSecret | None = None
    policy: KeyPolicy = DEFAULT_POLICY
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None

    @property
    def source(self) -> str:
        """What the invites of this key have as their source."""
        return format_source(self.id)

    @property
    def listed_source(self) -> str | None:
        """The only source whose invites this key sees in lists; None: it sees all invites of its host."""
        return None if self.policy.all_invites else self.source

    def require_scope(self, scope: str) -> None:
        """Return if the key may do this at all.

        Raises:
            ScopeMissing: It may not.
        """
        if scope not in self.policy.scopes:
            raise ScopeMissing(scope)


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key with its secret: the only place where the secret is ever returned.

    Attributes:
        key: The record.
        secret: The secret, in clear text.
    """

    key: ApiKey
    secret: str = field(repr=False)

    @property
    def combined(self) -> str:
        """The key as it is handed out, ``ID/SECRET``."""
        return format_key(self.key.id, self.secret)


def _generate(size: int) -> str:
    return urlsafe_b64encode(secrets.token_bytes(size)).decode("ascii")


def generate_key_id() -> str:
    """Return a new random id: 6 bytes as 8 characters of base64url, the first of them no ``-``.

    An id that begins with ``-`` looks like an option on a command line.
    """
    while (key_id := _generate(6)).startswith("-"):
        pass
    return key_id


def generate_secret() -> str:
    """Return a new random secret: 24 bytes as 32 characters of base64url."""
    return _generate(24)


def is_key_id(text: str) -> bool:
    """Tell whether a text has the form of an id: base64url, short enough to leave room for a secret."""
    return _KEY_ID.fullmatch(text) is not None


def format_key(key_id: str, secret: str) -> str:
    """Return ``ID/SECRET``."""
    return f"{key_id}/{secret}"


def format_source(key_id: str) -> str:
    """Return the source of the invites that a key makes, as mod_invites_api writes it."""
    return f"api/token/{key_id}"


def parse_key(combined: str) -> tuple[str, str]:
    """Take ``ID/SECRET`` apart. Only its shape is asked for, never a length: imported keys are longer than ours.

    Returns:
        The id and the secret.

    Raises:
        InvalidKey: It is not two parts of base64url with a slash between, or longer than 255 characters.
    """
    found = _KEY.fullmatch(combined) if len(combined) <= MAX_KEY_LENGTH else None
    if found is None:
        raise InvalidKey("malformed")
    return found[1], found[2]
