"""How a backup of a SQLite database is made while others write to it: whole, private to its owner, durable, checked."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from invites_core.errors import StorageError
from invites_core.stores.sqlite_database import SqliteDatabase
from invites_core.stores.sqlite_file import explain_os_error, sync_folder

__all__ = ["back_up"]

_STEPS: Final = 10_000
"""How many steps of SQLite's machine lie between two looks at whether the program was told to stop."""

_BESIDE: Final = ("-wal", "-journal", "-shm", "-lock")
_HEADER: Final = ("application_id", "user_version")
_NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def back_up(database: SqliteDatabase, file: Path) -> None:
    """Write all that was committed before this call into a new file, which can be opened as it is.

    It is made under another name, and gets its own once it is whole, on the disk, and found sound. Writers wait for
    nothing.

    Args:
        database: The database.
        file: Where the backup is to be. What is there already, even a symbolic link, stays as it is.

    Raises:
        StorageError: It cannot be made; nothing is left behind.
    """
    file = Path(os.path.abspath(file))
    try:
        _refuse_bad_places(database.path, file)
        with _temporary(file.parent) as temporary:
            header = _vacuum_into(database, temporary, file)
            _check(temporary, header, file)
            # By now SQLite has closed it, so that closing it here takes no lock away from anybody.
            _sync_file(temporary)
            _give_name(temporary, file)
        sync_folder(file.parent)
    except FileExistsError as error:
        raise StorageError(f"cannot make the backup {file}: there is something of this name already") from error
    except FileNotFoundError as error:
        raise StorageError(f"cannot make the backup {file}: there is no folder {file.parent}") from error
    except OSError as error:
        raise StorageError(f"cannot make the backup {file}: {explain_os_error(error)}") from error


def _refuse_bad_places(database: Path, file: Path) -> None:
    """Refuse what is there, and names that SQLite would take for a part of a database.

    Raises:
        OSError: There is something.
        StorageError: It is no place for a backup.
    """
    if os.path.lexists(file):
        raise FileExistsError
    if any("\ud800" <= char <= "\udfff" for char in str(file)):
        raise StorageError("cannot make the backup: its name is not valid UTF-8")
    place = file.parent.resolve() / file.name
    for suffix in _BESIDE:
        if str(place) == f"{database.resolve()}{suffix}":
            raise StorageError(f"cannot make the backup {file}: SQLite uses this name for a part of {database}")
        # Whoever opened the backup would have the log of another database played into it.
        if os.path.lexists(f"{file}{suffix}"):
            raise StorageError(f"cannot make the backup {file}: there is a {file}{suffix} of another database beside")


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """Make an empty file for its owner alone, and remove it in the end, whatever happens."""
    path = folder / f".invites-api-backup-{secrets.token_hex(8)}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        yield path
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def _vacuum_into(database: SqliteDatabase, temporary: Path, file: Path) -> list[object]:
    """Copy the database, and return the numbers in its header."""
    with database.open_apart() as connection:
        header = _read_header(connection)
        # SQLite runs for long without coming back to Python, which looks for Ctrl-C only then.
        connection.set_progress_handler(lambda: False, _STEPS)
        try:
            connection.execute("VACUUM INTO ?", (str(temporary),)).fetchall()
        except apsw.FullError as error:
            raise StorageError(f"no space left for the backup {file}") from error
        except (apsw.IOError, apsw.CantOpenError) as error:
            raise StorageError(f"cannot make the backup {file}: the disk failed ({type(error).__name__})") from error
    return header


def _read_header(connection: apsw.Connection) -> list[object]:
    return [connection.execute(f"PRAGMA {name}").fetchall() for name in _HEADER]


def _check(temporary: Path, header: list[object], file: Path) -> None:
    """Look the whole copy over.

    Raises:
        StorageError: It is not sound.
    """
    try:
        connection = apsw.Connection(str(temporary), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.set_progress_handler(lambda: False, _STEPS)
            is_sound = connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
            is_sound &= _read_header(connection) == header
        finally:
            connection.close(True)
    except apsw.Error as error:
        raise StorageError(f"cannot make the backup {file}: what was written cannot be read") from error
    if not is_sound:
        raise StorageError(f"cannot make the backup {file}: what was written is not sound; look with check")


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _give_name(temporary: Path, file: Path) -> None:
    """Give a file its name in one step, unless there is something of that name.

    Raises:
        FileExistsError: There is.
    """
    try:
        os.link(temporary, file)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system that knows one name for a file only: the name is taken first, and then given.
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            os.rename(temporary, file)
        except OSError:
            file.unlink()
            raise
