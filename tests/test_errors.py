"""Errors: one root, a class for each thing that a caller does differently, facts as attributes."""

from __future__ import annotations

import pytest

import invites_core
from invites_core import errors
from invites_core.errors import (
    Busy,
    CorruptRecord,
    IdempotencyConflict,
    InvalidHost,
    InvalidKey,
    InvalidRequest,
    InvitesError,
    InviteUnknown,
    KeyUnknown,
    OutcomeUnknown,
    PolicyRefused,
    QuotaSpent,
    ScopeMissing,
    StorageBusy,
    StorageError,
)

CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_has_the_one_root(error: type[Exception]) -> None:
    """Whoever catches InvitesError catches everything that this library raises on purpose."""
    assert issubclass(error, InvitesError)


def test_all_classes_are_listed() -> None:
    """The list of the module's names holds every class in it."""
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined == set(errors.__all__)


def test_package_offers_all_but_the_inner_ones() -> None:
    """What callers can meet is importable from the package; two classes stay between service and store."""
    assert set(errors.__all__) - set(invites_core.__all__) == {"KeyExists", "InviteExists"}


@pytest.mark.parametrize(
    ("error", "parent"),
    [
        pytest.param(StorageBusy, StorageError, id="busy-storage"),
        pytest.param(OutcomeUnknown, StorageError, id="outcome-unknown"),
        pytest.param(CorruptRecord, StorageError, id="corrupt-record"),
        pytest.param(StorageBusy, TimeoutError, id="busy-storage-is-a-timeout"),
        pytest.param(ScopeMissing, PermissionError, id="scope-is-a-permission"),
        pytest.param(PolicyRefused, PermissionError, id="policy-is-a-permission"),
        pytest.param(InvalidRequest, ValueError, id="request-is-a-value"),
        pytest.param(InvalidHost, ValueError, id="host-is-a-value"),
        pytest.param(InviteUnknown, LookupError, id="invite-is-a-lookup"),
        pytest.param(KeyUnknown, LookupError, id="key-is-a-lookup"),
    ],
)
def test_errors_can_be_caught_by_their_parent(error: type[Exception], parent: type[Exception]) -> None:
    """An error is also what the standard library calls such a thing."""
    assert issubclass(error, parent)


def test_busy_is_no_storage_error() -> None:
    """A hasher at its bound says nothing about the store."""
    assert not issubclass(Busy, StorageError)


@pytest.mark.parametrize("reason", ["malformed", "unknown", "expired", "wrong secret", "host not served"])
def test_refused_keys_look_alike(reason: str) -> None:
    """The text of InvalidKey is one and the same, and its reason and id are attributes for the log alone."""
    error = InvalidKey(reason, "HTwALnKL")
    assert str(error) == "the API key is not valid"
    assert error.reason == reason
    assert error.key_id == "HTwALnKL"
    assert InvalidKey(reason).key_id is None


@pytest.mark.parametrize(
    ("error", "text"),
    [
        pytest.param(InvalidHost(), "please supply a valid host", id="host"),
        pytest.param(KeyUnknown(), "key not found", id="key"),
        pytest.param(InvalidRequest("max_uses", "must be at least 1"), "max_uses: must be at least 1", id="request"),
        pytest.param(PolicyRefused("groups", "not granted"), "groups: not granted", id="policy"),
        pytest.param(ScopeMissing("read"), "this key lacks the scope 'read'", id="scope"),
        pytest.param(QuotaSpent(60), "this key's quota is spent; the next period begins in 60 s", id="quota"),
        pytest.param(StorageBusy(), "the database is busy", id="busy"),
    ],
)
def test_message_is_one_plain_line(error: InvitesError, text: str) -> None:
    """The text of an error can be shown as it is."""
    assert str(error) == text


def test_facts_are_attributes() -> None:
    """A caller reads what it needs from attributes, not from the text."""
    assert InvalidRequest("max_uses", "x").field == "max_uses"
    assert PolicyRefused("groups", "x").field == "groups"
    assert ScopeMissing("read").scope == "read"
    assert QuotaSpent(60).retry_after == 60
    assert Busy().retry_after == 1
    assert StorageError("x").retry_after == 5
    assert StorageBusy().retry_after == 1
    assert OutcomeUnknown("x", redemption_id="r1").redemption_id == "r1"
    assert str(IdempotencyConflict()) == "this idempotency key was used for another request"
