"""What can be asked for when invites are made, what of it is possible at all, and what a key's policy admits."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, TypedDict

from invites_core.durations import MAX_DURATION, format_duration
from invites_core.errors import InvalidRequest, PolicyRefused
from invites_core.hosts import normalize_username
from invites_core.invites import KINDS, Invite
from invites_core.keys import NEVER, SCOPES, KeyPolicy
from invites_core.text import check_text

__all__ = [
    "MAX_COUNT",
    "InviteFields",
    "InviteRequest",
    "check_idempotency_key",
    "check_policy",
    "check_policy_fields",
    "check_request",
    "compute_fingerprint",
]

MAX_COUNT: Final = 1000
MAX_QUOTA: Final = 10**9
MAX_USES: Final = 2**31 - 1
MAX_LABELS: Final = 100
MAX_LABEL_LENGTH: Final = 255
MAX_NOTE_LENGTH: Final = 1000
_IDEMPOTENCY_KEY: Final = re.compile(r"[!-~]{1,255}", re.ASCII)


class InviteFields(TypedDict, total=False):
    """The fields of `InviteRequest`, as keyword arguments."""

    kind: str
    username: str | None
    registration: bool | None
    expires_in: timedelta | None
    max_uses: int | None
    groups: Sequence[str]
    roles: Sequence[str]
    note: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteRequest:
    """What is asked for.

    Attributes:
        kind: ``register``, ``roster`` or ``reset``.
        username: The account to create (register) or to reset (reset; needed), or the inviter (roster; needed).
        registration: Whether an account can be registered with it: None for what the kind implies (register: yes,
            the others: no); only for ``roster`` both are possible.
        expires_in: How long it is valid, at least a second; None: the host's default for the kind; `NEVER`: for ever.
        max_uses: How often it can be used; None: without limit.
        groups: The groups that a new account is put in.
        roles: The roles that a new account gets, the first one primary.
        note: A text for admins, at most 1,000 characters.
    """

    kind: str = "register"
    username: str | None = None
    registration: bool | None = None
    expires_in: timedelta | None = None
    max_uses: int | None = 1
    groups: Sequence[str] = ()
    roles: Sequence[str] = ()
    note: str | None = None

    def build(
        self,
        *,
        token: str,
        host: str,
        source: str,
        created_at: datetime,
        default_expiry: timedelta,
        template: str = "",
    ) -> Invite:
        """Return the invite that is asked for; the request has passed `check_request`.

        Args:
            token: Its token.
            host: Its host, normalised.
            source: Who makes it.
            created_at: When.
            default_expiry: How long it is valid if that was not asked for.
            template: That of its landing page; "" for its URI.
        """
        expires_in = default_expiry if self.expires_in is None else self.expires_in
        invite = Invite(
            token=token,
            host=host,
            kind=self.kind,
            username=self.username,
            registration=bool(self.registration),
            created_at=created_at,
            expires_at=None if expires_in == NEVER else created_at + expires_in,
            max_uses=self.max_uses,
            source=source,
            groups=tuple(self.groups),
            roles=tuple(self.roles),
            note=self.note,
            landing_page=template.replace("{token}", token),
        )
        return invite if template else replace(invite, landing_page=invite.uri)


_PLAIN: Final = InviteRequest()
_PLAIN_CHECKED: Final = InviteRequest(registration=True)
"""What a request that asks for nothing is, once it is checked: most are."""


def check_request(request: InviteRequest, *, count: int = 1) -> InviteRequest:
    """Check what is asked for, whoever asks.

    Returns:
        The request with every value normalised.

    Raises:
        InvalidRequest: A field has the wrong type or form, is out of range, or is at odds with another one.
    """
    # By the types too: True and 1.0 are equal to 1, and are refused below.
    if request == _PLAIN and count == 1 and type(request.max_uses) is type(count) is int:
        return _PLAIN_CHECKED
    if not isinstance(request.kind, str) or request.kind not in KINDS:
        raise InvalidRequest("kind", f"must be one of {', '.join(sorted(KINDS))}")
    username = None if request.username is None else normalize_username(request.username)
    if username is None and request.kind != "register":
        whose = "account to reset" if request.kind == "reset" else "account that invites"
        raise InvalidRequest("username", f"must name the {whose}")
    _check_whole("count", count, MAX_COUNT)
    if count > 1 and username is not None:
        raise InvalidRequest("count", "must be 1 for an invite with a username")
    if request.max_uses is not None:
        _check_whole("max_uses", request.max_uses, MAX_USES)
    if request.kind == "reset" and request.max_uses != 1:
        raise InvalidRequest("max_uses", "must be 1 for a reset")
    note = check_text("note", request.note, max_length=MAX_NOTE_LENGTH) or None
    return replace(
        request,
        username=username,
        registration=_check_registration(request),
        expires_in=_check_lifetime(request.expires_in),
        groups=_check_labels("groups", request.groups),
        roles=_check_labels("roles", request.roles),
        note=note,
    )


def check_policy(request: InviteRequest, policy: KeyPolicy, *, count: int, default_expiry: timedelta) -> None:
    """Check that a key may make what is asked for; the request has passed `check_request`.

    Raises:
        PolicyRefused: A field is beyond the policy.
    """
    if request.kind not in policy.kinds:
        raise PolicyRefused("kind", f"this key may not make invites of kind {request.kind}")
    # A contact who may also register is a way in, so it takes the right to make ways in.
    if request.kind == "roster" and request.registration and "register" not in policy.kinds:
        raise PolicyRefused("registration", "this key may not make invites that register")
    if request.username is not None and not policy.allow_username:
        raise PolicyRefused("username", "this key may not name an account")
    longest = default_expiry if policy.max_expiry is None else policy.max_expiry
    if (default_expiry if request.expires_in is None else request.expires_in) > longest:
        raise PolicyRefused("expires_in", f"this key's invites may be valid for {format_duration(longest)} at most")
    if policy.max_uses is not None and (request.max_uses is None or request.max_uses > policy.max_uses):
        raise PolicyRefused("max_uses", f"this key's invites may have {policy.max_uses} at most")
    for field, asked, granted in (
        ("groups", request.groups, policy.groups),
        ("roles", request.roles, policy.roles),
    ):
        for label in asked:
            if label not in granted:
                raise PolicyRefused(field, f"this key may not give {label[:40]!r}")
    if policy.quota is not None and count > policy.quota.count:
        raise PolicyRefused("count", f"this key may make {policy.quota.count} invites at most in a whole period")


def check_policy_fields(policy: KeyPolicy) -> None:
    """Check that a policy can be granted; what no store could hold is refused when a policy is made.

    Raises:
        InvalidRequest: It has no scope or kind, names a kind that there is not, or a bound that is out of range.
    """
    if not policy.scopes:
        raise InvalidRequest("scopes", f"must be one or more of {', '.join(sorted(SCOPES))}")
    if not policy.kinds or not policy.kinds <= KINDS:
        raise InvalidRequest("kinds", f"must be one or more of {', '.join(sorted(KINDS))}")
    if policy.max_uses is not None and policy.max_uses > MAX_USES:
        raise InvalidRequest("max_uses", f"must be a whole number from 1 to {MAX_USES}")
    quota = policy.quota
    if quota is not None and (quota.count > MAX_QUOTA or quota.period > MAX_DURATION):
        raise InvalidRequest("quota", f"must be at most {MAX_QUOTA} invites in {format_duration(MAX_DURATION)}")
    if policy.max_expiry not in (None, NEVER) and policy.max_expiry > MAX_DURATION:
        raise InvalidRequest("max_expiry", f"must be from 1s to {format_duration(MAX_DURATION)}")


def compute_fingerprint(request: InviteRequest, *, count: int) -> bytes:
    """Return a digest of what is asked for, to tell a repeated request from another one with the same identity.

    This is a stored format, kept for 7 days; the request has passed `check_request`.
    """
    expires_in = request.expires_in
    fields = {
        "kind": request.kind,
        "username": request.username,
        "registration": request.registration,
        "expires_in": None if expires_in is None else "never" if expires_in == NEVER else expires_in.total_seconds(),
        "max_uses": request.max_uses,
        "groups": list(request.groups),
        "roles": list(request.roles),
        "note": request.note,
        "count": count,
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).digest()


def check_idempotency_key(text: str) -> bytes:
    """Return the digest under which an idempotency key is kept.

    Raises:
        InvalidRequest: It is not 1 to 255 printable ASCII characters without spaces.
    """
    if not isinstance(text, str) or not _IDEMPOTENCY_KEY.fullmatch(text):
        raise InvalidRequest("idempotency_key", "must be 1 to 255 printable ASCII characters without spaces")
    return hashlib.sha256(text.encode()).digest()


def _check_whole(field: str, value: object, highest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= highest:
        raise InvalidRequest(field, f"must be a whole number from 1 to {highest}")


def _check_registration(request: InviteRequest) -> bool:
    if request.registration is None:
        return request.kind == "register"
    if not isinstance(request.registration, bool):
        raise InvalidRequest("registration", "must be true or false")
    if request.kind != "roster" and request.registration != (request.kind == "register"):
        raise InvalidRequest("registration", f"must be {str(not request.registration).lower()} for {request.kind}")
    return request.registration


def _check_lifetime(expires_in: timedelta | None) -> timedelta | None:
    if expires_in is None or expires_in == NEVER:
        return expires_in
    if not isinstance(expires_in, timedelta) or not timedelta(seconds=1) <= expires_in <= MAX_DURATION:
        raise InvalidRequest("expires_in", f"must be from 1s to {format_duration(MAX_DURATION)}")
    return timedelta(seconds=int(expires_in.total_seconds()))


def _check_labels(field: str, labels: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(labels, (list, tuple)) or len(labels) > MAX_LABELS:
        raise InvalidRequest(field, f"must be a list of at most {MAX_LABELS} texts")
    for label in labels:
        if not check_text(field, label, max_length=MAX_LABEL_LENGTH):
            raise InvalidRequest(field, "must hold texts that are not empty")
    if len(set(labels)) < len(labels):
        raise InvalidRequest(field, "must not hold a text twice")
    return tuple(labels)
