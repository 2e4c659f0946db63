"""The one table from the library's errors to what HTTP answers and the command returns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from invites_core import errors as core

__all__ = ["ERRORS", "ErrorKind", "get_error_kind", "name_problem_type"]


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How one class of errors looks from outside.

    Attributes:
        status: The HTTP status.
        exit_code: What the command exits with.
        title: A short summary that never changes (RFC 9457, section 3.1.3).
        public_detail: What to say instead of the error's own message, which may name files; None: the message.
    """

    status: int
    exit_code: int
    title: str
    public_detail: str | None = None


_AGAIN: Final = "The service cannot do this at the moment; try again."

_UNKNOWN: Final = (
    "It may or may not have been done. Repeat the same request with its Idempotency-Key or redemption_id: that does it"
    " once, whatever happened before. Without one a repeat may do it a second time."
)

ERRORS: Final[dict[type[core.InvitesError], ErrorKind]] = {
    core.InvalidKey: ErrorKind(403, 1, "The API key is not valid"),
    core.ScopeMissing: ErrorKind(403, 1, "The API key may not do this"),
    core.PolicyRefused: ErrorKind(403, 1, "The API key may not make such an invite"),
    core.InvalidRequest: ErrorKind(400, 2, "The request is not valid"),
    core.InvalidHost: ErrorKind(400, 1, "The host is not valid"),
    core.InviteUnknown: ErrorKind(404, 1, "There is no such invite"),
    core.InviteUsed: ErrorKind(410, 1, "The invite has been used"),
    core.InviteExpired: ErrorKind(410, 1, "The invite has expired"),
    core.InviteRevoked: ErrorKind(410, 1, "The invite has been revoked"),
    core.WrongRedeemer: ErrorKind(409, 1, "The invite is for another account"),
    core.RedemptionReleased: ErrorKind(409, 1, "The redemption was released"),
    core.IdempotencyConflict: ErrorKind(422, 1, "The same identity was used for something else"),
    core.QuotaSpent: ErrorKind(429, 3, "The API key's quota is spent"),
    core.Busy: ErrorKind(503, 3, "Too busy"),
    core.StorageBusy: ErrorKind(503, 3, "The storage is busy", _AGAIN),
    core.OutcomeUnknown: ErrorKind(503, 3, "The outcome is unknown", _UNKNOWN),
    core.CorruptRecord: ErrorKind(503, 3, "A stored record is damaged", _AGAIN),
    core.StorageError: ErrorKind(503, 3, "The storage failed", _AGAIN),
    core.Unsupported: ErrorKind(501, 1, "This store cannot do this"),
    core.KeyUnknown: ErrorKind(404, 1, "There is no such key"),
}

_HUMP: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def name_problem_type(error_class: type[core.InvitesError]) -> str:
    """Return the ``type`` of a problem document: the class in kebab case."""
    return _HUMP.sub("-", error_class.__name__).lower()


def get_error_kind(error: core.InvitesError) -> tuple[str, ErrorKind]:
    """Return the problem type (the class in kebab case) and how it looks from outside.

    Raises:
        LookupError: The error stays inside the library and must not get here.
    """
    for error_class in type(error).__mro__:
        kind = ERRORS.get(error_class)
        if kind is not None:
            return name_problem_type(error_class), kind
    raise LookupError(type(error).__name__)
