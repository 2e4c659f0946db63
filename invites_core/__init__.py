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
from invites_core.events import Event, EventHook
from invites_core.hashing import SecretHasher
from invites_core.hosts import Hosts, HostSettings
from invites_core.invites import Invite, Redemption
from invites_core.keys import NEVER, ApiKey, IssuedKey, KeyPolicy, Quota
from invites_core.service import ApiKeys, InviteFields, Invites, Redeemed, delete_key_with_invites
from invites_core.store import InvitePage, InviteStore, KeyStore, Store
from invites_core.stores import open_invite_store, open_store

__all__ = [
    "NEVER",
    "ApiKey",
    "ApiKeys",
    "Busy",
    "CorruptRecord",
    "Event",
    "EventHook",
    "HostSettings",
    "Hosts",
    "IdempotencyConflict",
    "InvalidHost",
    "InvalidKey",
    "InvalidRequest",
    "Invite",
    "InviteExpired",
    "InviteFields",
    "InvitePage",
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
    "Redeemed",
    "Redemption",
    "RedemptionReleased",
    "ScopeMissing",
    "SecretHasher",
    "StorageBusy",
    "StorageError",
    "Store",
    "Unsupported",
    "WrongRedeemer",
    "__version__",
    "delete_key_with_invites",
    "open_invite_store",
    "open_store",
]
