"""The place where an agent listens: taken by one at a time, and by nobody else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from invites_core.errors import StorageError
from invites_core.stores import agent_socket
from invites_core.stores.agent_socket import listening
from tests.helpers import PATIENCE, run_at_once
from tests.processes import Fork, NewSignal

OWNER, MEMBER = 54_331, 54_332
BECOME_OTHERS = "only root can become other users: run the tests as root"


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder of one user that another one's group can enter and read, as that of an agent is."""
    folder = Path(tempfile.mkdtemp(prefix="agent-"))
    os.chown(folder, OWNER, MEMBER)
    folder.chmod(0o750)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason=BECOME_OTHERS)
def test_the_group_cannot_keep_an_agent_from_starting(shared_folder: Path, fork: Fork, new_signal: NewSignal) -> None:
    """Whatever a member of the group locks of what it can open, the agent takes its place and gives it back."""
    path = shared_folder / "agent.sock"
    locked, listened = new_signal(), new_signal()

    def hold() -> None:
        os.setgroups([])
        os.setgid(MEMBER)
        os.setuid(MEMBER)
        descriptor = os.open(shared_folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        locked.tell()
        listened.wait()

    def listen() -> list[str]:
        os.setgroups([MEMBER])
        os.setgid(OWNER)
        os.setuid(OWNER)
        with listening(path):
            return sorted(os.listdir(shared_folder))

    holder = fork(hold)
    locked.wait()
    assert fork(listen).result() == ["agent.sock"]
    listened.tell()
    holder.result()
    assert os.listdir(shared_folder) == []


@pytest.mark.parametrize("_", range(20))
def test_one_of_many_that_start_at_once_listens(socket_path: Path, _: int) -> None:
    """Of agents that start at the same moment on a socket that was left there, one has it and keeps it."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(socket_path))
    all_tried = threading.Barrier(8)

    def start() -> str:
        try:
            with listening(socket_path) as listener:
                all_tried.wait(PATIENCE)
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(socket_path))
                    listener.accept()[0].close()
        except StorageError as error:
            all_tried.wait(PATIENCE)
            return str(error)
        return "listened"

    outcomes = run_at_once([start] * 8)
    assert outcomes.count("listened") == 1
    assert outcomes.count(f"cannot listen on {socket_path}: somebody listens there already") == 7
    assert list(socket_path.parent.iterdir()) == []


def test_a_lock_that_is_held_is_waited_for_and_then_told(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not come to an end of its start keeps others out for a bounded time."""
    monkeypatch.setattr(agent_socket, "LOCK_SECONDS", 0.05)
    with agent_socket._locked(socket_path), pytest.raises(StorageError, match="takes too long"), listening(socket_path):
        pass
    with listening(socket_path):
        pass


@pytest.mark.parametrize(
    "kind",
    [
        "folder",
        "pipe",
        "link",
        pytest.param("foreign", marks=pytest.mark.skipif(os.geteuid() != 0, reason=BECOME_OTHERS)),
    ],
)
def test_what_stands_where_the_lock_is_to_be_is_one_line(socket_path: Path, kind: str) -> None:
    """Where others could put something into the folder, nothing of theirs is taken for the lock."""
    lock = socket_path.with_name(f".{socket_path.name}.lock")
    if kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    elif kind == "link":
        lock.symlink_to(socket_path.with_name("elsewhere"))
    else:
        lock.touch()
        os.chown(lock, MEMBER, MEMBER)
    with pytest.raises(StorageError, match="cannot listen on"), listening(socket_path):
        pass
    with contextlib.suppress(OSError):
        lock.rmdir()
    assert [path.name for path in socket_path.parent.iterdir() if path != lock] == []
