"""A Unix socket in the file system: private until it is as it should be, and in its place in one step."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from invites_core.errors import StorageError

__all__ = ["explain_socket_error", "listening"]

MODE: Final = 0o660
BACKLOG: Final = 128
LOCK_SECONDS: Final = 5.0
PROBE_SECONDS: Final = 1.0


@contextlib.contextmanager
def listening(path: Path, *, group: int | None = None) -> Iterator[socket.socket]:
    """Listen on a Unix socket that its owner and one group may connect to, and remove it in the end.

    The file of a socket that nobody listens on any more is replaced.

    Args:
        path: Where the socket is to be.
        group: The number of the group; None: the group of the folder that the socket is in.

    Raises:
        StorageError: Somebody listens there, or it cannot be made; the message says why.
    """
    try:
        listener, identity = _listen(path, group)
    except OSError as error:
        raise StorageError(f"cannot listen on {path}: {explain_socket_error(error)}") from error
    with listener:
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError), _locked(path):
                # Another agent may have taken the place as soon as this one did not listen any more.
                if _identify(path) == identity:
                    path.unlink()


def _listen(path: Path, group: int | None) -> tuple[socket.socket, tuple[int, int]]:
    folder = path.parent
    with _locked(path):
        _refuse_taken(path)
        # In a folder that nobody else can enter, until group and mode are right: the umask, which belongs to all
        # threads of the process, has no say, and there is no moment at which somebody else can connect.
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as private:
            place = os.path.join(private, "s")
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(place)
                wanted = folder.stat().st_gid if group is None else group
                if os.stat(place).st_gid != wanted:
                    os.chown(place, -1, wanted)
                os.chmod(place, MODE)
                listener.listen(BACKLOG)
                identity = _identify(Path(place))
                os.rename(place, path)
            except BaseException:
                listener.close()
                raise
    return listener, identity


def _identify(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _refuse_taken(path: Path) -> None:
    """Let nothing be replaced but a socket that nobody listens on."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StorageError(f"cannot listen on {path}: there is something else")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return
        except (BlockingIOError, TimeoutError):
            # More wait to be let in than it takes.
            pass
    raise StorageError(f"cannot listen on {path}: somebody listens there already")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep two that start at the same moment from replacing each other's sockets.

    By a file that is there only meanwhile, and that only its owner can open: who can open it can hold the lock too, and
    the folder can be opened by the group, which must not keep an agent from starting.
    """
    lock = path.with_name(f".{path.name}.lock")
    deadline = time.monotonic() + LOCK_SECONDS
    while (descriptor := _try_lock(lock)) is None:
        if time.monotonic() > deadline:
            raise BlockingIOError(errno.EAGAIN, "another agent that starts or ends there takes too long")
        time.sleep(0.01)
    try:
        yield
    finally:
        # Before the lock is given up: who has it open already sees then that it is no more.
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _try_lock(lock: Path) -> int | None:
    """Return the descriptor of a file that is locked, or None where somebody else has it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode):
            raise PermissionError(errno.EPERM, f"{lock} is not a file of this user")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _identify(lock) == (found.st_dev, found.st_ino):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        # It is held, or was removed by who held it.
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def explain_socket_error(error: OSError) -> str:
    """Return the reason of an error of the system, in small letters."""
    # Some errors of the socket module have no number.
    return (error.strerror or str(error) or type(error).__name__).lower()
