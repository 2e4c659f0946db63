"""The services on one store of each kind, and on two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from invites_core.hashing import SecretHasher
from invites_core.stores import open_store
from tests.helpers import FakeClock
from tests.service.worlds import World, make_world

OpenWorld = Callable[[str], World]


@pytest.fixture
def open_world(tmp_path: Path, hasher: SecretHasher, clock: FakeClock) -> Iterator[OpenWorld]:
    """Opens keys and invites in ``memory``, in ``sqlite``, or in ``two`` stores in memory."""
    opened = []

    def open_one(kind: str) -> World:
        url = f"sqlite:///{tmp_path}/invites.db" if kind == "sqlite" else "memory:"
        stores = [open_store(url) for _ in range(1 + (kind == "two"))]
        opened.extend(stores)
        return make_world(stores[0], stores[-1], hasher=hasher, clock=clock)

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture(params=["memory", "sqlite", "two"])
def world(request: pytest.FixtureRequest, open_world: OpenWorld) -> World:
    """Keys and invites in one store of each kind, and in two."""
    return open_world(request.param)
