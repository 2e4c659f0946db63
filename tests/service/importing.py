"""What the tests of imports share: keys of another program, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from invites_core.foreign_keys import ForeignKey, UnreadableKey
from invites_core.keys import ApiKey, generate_key_id, generate_secret
from invites_core.service.importing import KeyImport
from invites_core.store import KeyStore
from tests.helpers import NOON
from tests.service.worlds import HOST

SECRET: Final = "PZnBH2Qxkju3OL_UDrZZq-aWFXq4HxFhImmH"

Bring = Callable[..., KeyImport]


class Source:
    """Keys of another program, in a list."""

    def __init__(self, *keys: ForeignKey | UnreadableKey) -> None:
        self.keys = {key.id: key for key in keys}
        self.asked: list[str] = []
        self.failures: list[Exception] = []

    def list_keys(self, host: str) -> Sequence[ForeignKey | UnreadableKey]:
        self.asked.append(host)
        return list(self.keys.values())

    def remove_key(self, host: str, key_id: str, secret: str) -> bool:
        if self.failures:
            raise self.failures.pop()
        found = self.keys.get(key_id)
        if host != HOST or not isinstance(found, ForeignKey) or found.secret != secret:
            return False
        del self.keys[key_id]
        return True


def make_foreign(key_id: str = "6sKjFybZPGnx", **fields: Any) -> ForeignKey:
    """Return a key as mod_invites_api makes them, with some fields set."""
    plain = ForeignKey(id=key_id, secret=SECRET, name="A bot", created_at=NOON - timedelta(days=400))
    return replace(plain, **fields)


def make_many(count: int) -> list[ForeignKey]:
    return [make_foreign(generate_key_id(), secret=generate_secret()) for _ in range(count)]


def get_key(store: KeyStore, key_id: str) -> ApiKey:
    key = store.find_key(key_id)
    assert key is not None
    return key
