"""Keys and invites with the stores under them, and stores that fail between two steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from invites_core.errors import OutcomeUnknown, StorageError
from invites_core.events import EventHook
from invites_core.hashing import SecretHasher
from invites_core.hosts import Hosts, HostSettings
from invites_core.keys import DEFAULT_POLICY, ApiKey, KeyPolicy, Quota
from invites_core.service import ApiKeys, Invites
from invites_core.store import InviteStore, KeyStore, Store
from tests.helpers import FakeClock

HOST: Final = "example.com"
DAILY: Final = Quota(5, timedelta(days=1))


@dataclass
class World:
    """The services, their stores, and the clock."""

    keys: ApiKeys
    invites: Invites
    key_store: KeyStore
    invite_store: InviteStore
    clock: FakeClock
    hasher: SecretHasher

    def make_key(self, policy: KeyPolicy = DEFAULT_POLICY) -> ApiKey:
        return self.keys.create(HOST, policy=policy).key

    def count_invites(self, **options: Any) -> int:
        return len(self.invites.list(HOST, limit=1000, **options).invites)

    def telling(self, on_event: EventHook, *hosts: str) -> World:
        """Return the same with a hook that is told what happens, and with some hosts in the settings."""
        served = Hosts({host: HostSettings() for host in hosts})
        return make_world(
            self.key_store, self.invite_store, hasher=self.hasher, clock=self.clock, hosts=served, on_event=on_event
        )

    def serving(self, *hosts: str) -> World:
        """Return the same with some hosts in the settings."""
        served = Hosts({host: HostSettings() for host in hosts})
        return make_world(self.key_store, self.invite_store, hasher=self.hasher, clock=self.clock, hosts=served)

    def through(self, key_store: KeyStore, invite_store: InviteStore) -> World:
        """Return the same with other stores, such as faulty ones in front of these."""
        return make_world(key_store, invite_store, hasher=self.hasher, clock=self.clock)


def make_world(
    key_store: KeyStore,
    invite_store: InviteStore,
    *,
    hasher: SecretHasher,
    clock: FakeClock,
    hosts: Hosts | None = None,
    on_event: EventHook | None = None,
) -> World:
    return World(
        keys=ApiKeys(key_store, hasher=hasher, clock=clock, hosts=hosts, on_event=on_event),
        invites=Invites(invite_store, keys=key_store, clock=clock, hosts=hosts, on_event=on_event),
        key_store=key_store,
        invite_store=invite_store,
        clock=clock,
        hasher=hasher,
    )


class Faulty:
    """A store in front of another one, that fails at a verb: before the other was asked, or after it has answered."""

    def __init__(self, store: Store | KeyStore | InviteStore) -> None:
        self._store = store
        self._faults: dict[str, list[str]] = {}
        self.calls: list[str] = []

    def fail(self, verb: str, when: str) -> None:
        """Let the next call of a verb fail ``before`` it was done, or ``after``, when nobody knows."""
        self._faults.setdefault(verb, []).append(when)

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._store, verb)
        return self._wrap(verb, found) if callable(found) else found

    def _wrap(self, verb: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append(verb)
            when = self._faults[verb].pop(0) if self._faults.get(verb) else None
            if when == "before":
                raise StorageError("the disk is full")
            answer = method(*arguments, **options)
            if when == "after":
                raise OutcomeUnknown("the connection was lost")
            return answer

        return call
