"""What every store has, and what the suites share."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import pytest

from invites_core.errors import Unsupported
from invites_core.store import BaseStore

__all__ = ["THREADS", "BaseSuite", "refused_without", "run_at_once", "wait_until"]

T = TypeVar("T")

THREADS: Final = 8
PATIENCE: Final = 30.0
"""Seconds after which a test gives up waiting for what ought to happen at once."""


class BaseSuite:
    """What every store has."""

    @pytest.fixture
    def store(self) -> Iterator[Any]:
        """Give a new and empty store."""
        raise NotImplementedError("override the fixture `store`")

    def test_answers_a_ping(self, store: BaseStore) -> None:
        """A store that is open answers."""
        store.ping()

    def test_can_be_closed_twice(self, store: BaseStore) -> None:
        """Closing what is closed does nothing."""
        store.close()
        store.close()

    def test_has_no_problems(self, store: BaseStore) -> None:
        """A store that was only used as it should be has nothing wrong with it."""
        assert list(store.find_problems()) == []

    def test_tells_its_features_and_its_location(self, store: BaseStore) -> None:
        """A store says in texts what it can, and where its data is."""
        assert isinstance(store.features, frozenset)
        assert all(isinstance(feature, str) for feature in store.features)
        assert isinstance(store.location, str)
        assert store.location


def refused_without(store: BaseStore, feature: str) -> contextlib.AbstractContextManager[object]:
    """Return a context for what needs a feature: in a store without it, `Unsupported` has to come out."""
    return contextlib.nullcontext() if feature in store.features else pytest.raises(Unsupported)


def run_at_once(functions: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Run each function in a thread of its own, all let go at the same moment; return what they returned or raised."""
    outcomes: list[T | Exception | None] = [None] * len(functions)
    barrier = threading.Barrier(len(functions))

    def run(index: int, function: Callable[[], T]) -> None:
        barrier.wait(PATIENCE)
        try:
            outcomes[index] = function()
        except Exception as error:  # noqa: BLE001 (it is handed on)
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread did not come to an end"
    return outcomes  # type: ignore[return-value]  # every thread has put its outcome there


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return as soon as something is so; fail where it never comes."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)
