"""State that belongs to one process: never shared with a child, never torn down in one."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from typing import ClassVar

import pytest

from invites_core.process import PerProcess
from tests.helpers import PATIENCE, run_at_once
from tests.processes import Fork


class Thing:
    """Something that a process makes for itself, and that tells where it was made and ended."""

    ended_in: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.made_in = os.getpid()

    def __del__(self) -> None:
        Thing.ended_in.append(os.getpid())


@pytest.fixture(autouse=True)
def nothing_ended() -> None:
    """Begin each test with no ends recorded."""
    gc.collect()
    Thing.ended_in.clear()


def test_value_is_made_at_first_use() -> None:
    """Nothing is made before it is asked for, and then once."""
    own = PerProcess(Thing)
    assert own.peek() is None
    value = own.get()
    assert own.get() is value
    assert own.peek() is value


def test_threads_share_one_value() -> None:
    """Threads that ask for the value at the same moment get the same one."""
    for _ in range(20):
        own = PerProcess(Thing)
        values = run_at_once([own.get] * 8)
        assert all(value is values[0] for value in values)


def test_failed_making_is_tried_again() -> None:
    """Where making the value raises nothing is kept, and the next call tries again."""
    attempts: list[int] = []

    def make() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise LookupError
        return "value"

    own = PerProcess(make)
    with pytest.raises(LookupError):
        own.get()
    assert own.get() == "value"


def test_child_makes_its_own(fork: Fork) -> None:
    """A child sees nothing of its parent's value, and the parent keeps its own."""
    own = PerProcess(Thing)
    value = own.get()

    def look() -> tuple[bool, bool, bool]:
        return own.peek() is None, own.get().made_in == os.getpid(), own.get() is own.get()

    assert fork(look).result() == (True, True, True)
    assert own.get() is value
    assert value.made_in == os.getpid()


def test_grandchild_makes_its_own(fork: Fork) -> None:
    """It holds over any number of forks."""
    own = PerProcess(Thing)
    own.get()

    def look() -> list[bool]:
        made_here = own.get().made_in == os.getpid()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, b"1" if own.peek() is None and own.get().made_in == os.getpid() else b"0")
            os._exit(0)
        os.waitpid(pid, 0)
        return [made_here, os.read(reader, 1) == b"1", own.get().made_in == os.getpid()]

    assert fork(look).result() == [True, True, True]


def test_value_of_the_parent_is_not_ended_in_the_child(fork: Fork) -> None:
    """No destructor of the parent's value runs in a child: it would close what is the parent's."""
    own = PerProcess(Thing)
    value = weakref.ref(own.get())

    def look() -> tuple[list[int], bool]:
        own.get()
        gc.collect()
        return Thing.ended_in, value() is not None

    assert fork(look).result() == ([], True)
    assert value() is own.get()


def test_lock_held_at_the_fork_does_not_stop_the_child(fork: Fork) -> None:
    """While a thread of the parent makes its value a child can make its own."""
    making, made = threading.Event(), threading.Event()
    parent = os.getpid()

    def make() -> int:
        if os.getpid() == parent:
            making.set()
            assert made.wait(PATIENCE)
        return os.getpid()

    own = PerProcess(make)
    thread = threading.Thread(target=own.get, daemon=True)
    thread.start()
    assert making.wait(PATIENCE)
    child = fork(own.get)
    assert child.result() == child.pid
    made.set()
    thread.join(PATIENCE)
    assert own.peek() == parent


def test_owner_is_not_kept_alive(fork: Fork) -> None:
    """What watches for forks holds nothing: an owner that is gone is gone, and later forks are none the worse."""
    own = PerProcess(Thing)
    own.get()
    gone = weakref.ref(own)
    del own
    gc.collect()
    assert gone() is None
    assert Thing.ended_in == [os.getpid()]
    assert fork(lambda: "alive").result() == "alive"
