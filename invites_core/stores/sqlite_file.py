"""How a database file comes to be: whole, private to its owner, and durable under its name."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from invites_core.errors import StorageError

__all__ = ["explain_os_error", "make_file", "sync_folder"]


def make_file(path: Path, build: Callable[[Path], None]) -> None:
    """Make a database under another name, and give it its own name in one step.

    So nobody ever sees half a database, or one that others can read, whatever the umask is.

    Args:
        path: Where it is to be. If somebody else has made one there meanwhile, theirs stays.
        build: Called with the path of an empty file, private to its owner; what it builds there is closed when it
            returns.

    Raises:
        StorageError: It cannot be made; nothing is left behind.
    """
    folder = path.parent
    temporary = folder / f".{path.name}.{secrets.token_hex(8)}"
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        try:
            build(temporary)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            for ending in ("", "-wal", "-shm", "-journal"):
                Path(f"{temporary}{ending}").unlink(missing_ok=True)
        sync_folder(folder)
    except FileNotFoundError as error:
        raise StorageError(f"cannot make the database {path}: there is no folder {folder}") from error
    except OSError as error:
        raise StorageError(f"cannot make the database {path}: {explain_os_error(error)}") from error


def explain_os_error(error: OSError) -> str:
    """Return the reason of an error of the system, in small letters."""
    return (error.strerror or type(error).__name__).lower()


def sync_folder(folder: Path) -> None:
    """Make a new name in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
