"""Invites and the API keys that make them: a framework-free library.

It knows nothing of HTTP, environment variables, settings files or printing; `invites_wsgi` does.

    store = open_store("sqlite:///invites.db")
    keys, invites = ApiKeys(store), Invites(store)
"""

from invites_core._version import __version__
from invites_core.errors import (
    Busy,
    CorruptRecord,
    IdempotencyConflict,
    InvalidHost,
    InvalidKey,
    InvalidRequest,
    InviteExpired,
    InviteRevoked,
    InvitesError,
    InviteUnknown,
    InviteUsed,
    KeyUnknown,
    OutcomeUnknown,
    PolicyRefused,
    QuotaSpent,
    RedemptionReleased,
    ScopeMissing,
    StorageBusy,
    StorageError,
    Unsupported,
    WrongRedeemer,
)
from invites_core.hashing import SecretHasher
from invites_core.hosts import Hosts, HostSettings
from invites_core.invites import Invite
from invites_core.keys import ApiKey, IssuedKey, KeyPolicy, Quota
from invites_core.service import ApiKeys, Invites
from invites_core.store import InviteStore, KeyStore, Store
from invites_core.stores import open_store

__all__ = [
    "ApiKey",
    "ApiKeys",
    "Busy",
    "CorruptRecord",
    "HostSettings",
    "Hosts",
    "IdempotencyConflict",
    "InvalidHost",
    "InvalidKey",
    "InvalidRequest",
    "Invite",
    "InviteExpired",
    "InviteRevoked",
    "InviteStore",
    "InviteUnknown",
    "InviteUsed",
    "Invites",
    "InvitesError",
    "IssuedKey",
    "KeyPolicy",
    "KeyStore",
    "KeyUnknown",
    "OutcomeUnknown",
    "PolicyRefused",
    "Quota",
    "QuotaSpent",
    "RedemptionReleased",
    "ScopeMissing",
    "SecretHasher",
    "StorageBusy",
    "StorageError",
    "Store",
    "Unsupported",
    "WrongRedeemer",
    "__version__",
    "open_store",
]
