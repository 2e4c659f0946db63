"""Everything that can go wrong, one class for each thing a caller does differently.

The names are part of the outer contract: the HTTP adapter and the command each hold one table over them,
and ``type`` in a problem document is the class's name in kebab case.
No message ever holds a secret, a hash or an invite's token.
"""

__all__ = [
    "Busy",
    "CorruptRecord",
    "IdempotencyConflict",
    "InvalidHost",
    "InvalidKey",
    "InvalidRequest",
    "InviteExists",
    "InviteExpired",
    "InviteRevoked",
    "InviteUnknown",
    "InviteUsed",
    "InvitesError",
    "KeyExists",
    "KeyUnknown",
    "OutcomeUnknown",
    "PolicyRefused",
    "QuotaSpent",
    "RedemptionReleased",
    "ScopeMissing",
    "StorageBusy",
    "StorageError",
    "Unsupported",
    "WrongRedeemer",
]


class InvitesError(Exception):
    """The root of all errors of this library; never raised itself."""


class InvalidKey(InvitesError):
    """An API key was refused: malformed, unknown, expired, wrong or of a host that is not served.

    Attributes:
        reason: Why, in one or two words, for the log alone: whoever sent the key learns only that it was refused.
        key_id: The id in the key, if it had a readable one; for the log alone.
    """

    def __init__(self, reason: str, key_id: str | None = None) -> None:
        super().__init__("the API key is not valid")
        self.reason = reason
        self.key_id = key_id


class ScopeMissing(InvitesError, PermissionError):
    """The key is valid and lacks the scope that the call needs.

    Attributes:
        scope: The scope that is missing.
    """

    def __init__(self, scope: str) -> None:
        super().__init__(f"this key lacks the scope {scope!r}")
        self.scope = scope


class PolicyRefused(InvitesError, PermissionError):
    """The key may not make such an invite; nothing was created.

    Attributes:
        field: The field of the request that is beyond the key's policy.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class InvalidRequest(InvitesError, ValueError):
    """A value that no key could make valid: wrong type, wrong form, out of range, or at odds with another.

    Attributes:
        field: The name of the offending field.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class InvalidHost(InvitesError, ValueError):
    """Not a host name, or not a host that is served here."""

    def __init__(self, message: str = "please supply a valid host") -> None:
        super().__init__(message)


class InviteUnknown(InvitesError, LookupError):
    """There is no such invite, or it is another host's."""

    def __init__(self) -> None:
        super().__init__("there is no such invite")


class InviteUsed(InvitesError):
    """The invite has no use left."""

    def __init__(self) -> None:
        super().__init__("this invite has been used")


class InviteExpired(InvitesError):
    """The invite's time is over."""

    def __init__(self) -> None:
        super().__init__("this invite has expired")


class InviteRevoked(InvitesError):
    """The invite was taken back."""

    def __init__(self) -> None:
        super().__init__("this invite has been revoked")


class WrongRedeemer(InvitesError):
    """The invite names another account than the one that redeems it."""

    def __init__(self) -> None:
        super().__init__("this invite is for another account")


class RedemptionReleased(InvitesError):
    """The redemption was given back earlier; that is final."""

    def __init__(self) -> None:
        super().__init__("this redemption was released")


class IdempotencyConflict(InvitesError):
    """The same identity was used before for something else; nothing was done."""

    def __init__(self, message: str = "this idempotency key was used for another request") -> None:
        super().__init__(message)


class QuotaSpent(InvitesError):
    """The key has made all that it may make in this period; nothing was created.

    Attributes:
        retry_after: Whole seconds until the next period begins, at least 1.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"this key's quota is spent; the next period begins in {retry_after} s")
        self.retry_after = retry_after


class Busy(InvitesError):
    """Too many keys are being checked for the first time at this moment; try again.

    Attributes:
        retry_after: Whole seconds after which to try again.
        key_id: The id of the key that was not checked; for the log alone.
    """

    def __init__(self, retry_after: int = 1) -> None:
        super().__init__("too busy to check this key; try again")
        self.retry_after = retry_after
        self.key_id: str | None = None


class StorageError(InvitesError):
    """The store could not do it, and nothing was changed. Always raised from the driver's own error, if any.

    Attributes:
        retry_after: Whole seconds after which to try again.
    """

    def __init__(self, message: str, *, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StorageBusy(StorageError, TimeoutError):
    """Others held the store for longer than the time limit; nothing was changed."""

    def __init__(self, message: str = "the database is busy", *, retry_after: int = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class OutcomeUnknown(StorageError):
    """The store failed at a moment when the change may or may not have become durable.

    Repeat the same write, with the same identity (token, redemption_id, idempotency key): it is resolved by that
    alone, never by reading.

    Attributes:
        redemption_id: The identity of the redemption to repeat, where a redemption was attempted.
    """

    def __init__(self, message: str, *, retry_after: int = 1, redemption_id: str | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.redemption_id = redemption_id


class CorruptRecord(StorageError):
    """A stored record that this program cannot have written, such as a hash beyond all bounds."""


class Unsupported(InvitesError):
    """The store cannot do this (see its ``features``); nothing was done."""


class KeyUnknown(InvitesError, LookupError):
    """There is no such key."""

    def __init__(self) -> None:
        super().__init__("key not found")


class KeyExists(InvitesError):
    """A store was asked to add a key whose id it has, or had; stays inside the library."""


class InviteExists(InvitesError):
    """A store was asked to add an invite whose token it has; stays inside the library."""
