"""The services on one store of each kind, and on two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from invites_core.hashing import SecretHasher
from invites_core.service.importing import KeyImport, import_keys
from invites_core.stores import open_store
from invites_core.stores.memory import MemoryStore
from tests.helpers import STORE_KINDS, FakeClock
from tests.service.importing import Bring, Source
from tests.service.worlds import HOST, World, make_world

OpenWorld = Callable[[str], World]


@pytest.fixture
def open_world(store_url: Callable[[str], str], hasher: SecretHasher, clock: FakeClock) -> Iterator[OpenWorld]:
    """Opens keys and invites in a store of one kind, or in ``two`` stores in memory."""
    opened = []

    def open_one(kind: str) -> World:
        url = store_url("memory" if kind == "two" else kind)
        stores = [open_store(url) for _ in range(1 + (kind == "two"))]
        opened.extend(stores)
        return make_world(stores[0], stores[-1], hasher=hasher, clock=clock)

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture(params=[*STORE_KINDS, "two"])
def world(request: pytest.FixtureRequest, open_world: OpenWorld) -> World:
    """Keys and invites in one store of each kind, and in two."""
    return open_world(request.param)


@pytest.fixture
def bring(memory_store: MemoryStore, hasher: SecretHasher, clock: FakeClock) -> Bring:
    """Imports keys into the memory store, unless told otherwise."""

    def run(source: Source, host: str = HOST, *, store: Any = memory_store, **options: Any) -> KeyImport:
        return import_keys(store, source, host, **{"hasher": hasher, "clock": clock, **options})

    return run
