"""A disk that keeps what was synced, and loses what was not when the machine stops."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import apsw

from tests.proofs.faulty_vfs import Layer

__all__ = ["MortalDisk"]

SECTOR: Final = 512
"""What a disk writes whole or not at all."""

CHANGES: Final = {"xWrite", "xSync", "xTruncate", "xDelete"}


class _File:
    """What is on the disk of a file, and what is still under way to it."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = bytearray(data)
        self._under_way: list[tuple[int, bytes | None]] = []

    def write(self, offset: int, data: bytes) -> None:
        self._under_way.append((offset, data))

    def truncate(self, size: int) -> None:
        self._under_way.append((size, None))

    def sync(self) -> None:
        self._data, self._under_way = self.survive(lambda: True), []

    def lose(self) -> None:
        """Forget what is under way, as a system may whose sync has failed: a later sync does not write it."""
        self._under_way = []

    def survive(self, keep: Callable[[], bool]) -> bytearray:
        """Return what is there after the machine has stopped; every sector under way may have come there or not."""
        data = bytearray(self._data)
        for offset, written in self._under_way:
            if written is None:
                if keep():
                    del data[offset:]
                continue
            for start, end in _split(offset, offset + len(written)):
                if keep():
                    data.extend(bytes(max(0, end - len(data))))
                    data[start:end] = written[start - offset : end - offset]
        return data


def _split(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Split a range of bytes at the borders of sectors."""
    while start < end:
        border = min(end, (start // SECTOR + 1) * SECTOR)
        yield start, border
        start = border


class MortalDisk(Layer):
    """Remembers what of the files of this process is durable, and stops the machine at some change.

    Names are durable as well or not: a new file's once its folder was synced, which SQLite does for a log at its first
    sync; a file that was deleted may come back.
    """

    def __init__(self, folder: Path, *, keep: Callable[[], bool], at: int, call: str = "", report: Callable[[], None]):
        """Take what is to happen.

        Args:
            folder: Where to write the files as they are after the machine has stopped.
            keep: Whether the next piece of what is under way comes to the disk.
            at: At which change, counted from 1.
            call: The function that is counted, and fails instead of stopping the machine: ``xSync``; what was under
                way is lost. Empty: all changes count, and the machine stops before that one.
            report: Called when the machine stops.
        """
        super().__init__()
        self._folder, self._keep, self._at, self._call, self._report = folder, keep, at, call, report
        self._is_armed = False
        self._files: dict[str, _File] = {}
        self._durable_names: set[str] = set()
        self._deleted: dict[str, _File] = {}
        self.changes = 0

    def install(self) -> None:
        """Put the layer under every file, and watch the calls by which the store gives a database its name."""
        super().install()
        link, fsync = os.link, os.fsync

        def noted_link(source: Any, target: Any) -> None:
            link(source, target)
            self._files[str(target)] = self._files[str(source)]

        def noted_fsync(descriptor: int) -> None:
            fsync(descriptor)
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                self._sync_names()

        os.link, os.fsync = noted_link, noted_fsync  # type: ignore[assignment]  # as far as the store calls them

    def know(self, path: Path) -> None:
        """Take a file that is there, and durable."""
        self._files[str(path)] = _File(path.read_bytes())
        self._durable_names.add(str(path))

    def arm(self) -> None:
        """Count from here on."""
        self._is_armed = True

    def answer(self, call: str, path: str, arguments: tuple[Any, ...]) -> int:
        if self._is_armed and (call == self._call or (not self._call and call in CHANGES)):
            self.changes += 1
            if self.changes == self._at:
                if not self._call:
                    self.stop()
                self._files[path].lose()
                return apsw.SQLITE_IOERR_FSYNC
        return apsw.SQLITE_OK

    def note(self, call: str, path: str, arguments: tuple[Any, ...]) -> None:
        if call == "xOpen":
            self._files.setdefault(path, _File())
        elif call == "xWrite":
            data, amount, offset = arguments
            self._files[path].write(offset, ctypes.string_at(data, amount))
        elif call == "xTruncate":
            self._files[path].truncate(arguments[0])
        elif call == "xSync":
            self._files[path].sync()
            if path.endswith("-wal") and path not in self._durable_names:
                self._sync_names()
        elif call == "xDelete" and path in self._files:
            deleted = self._files.pop(path)
            if path in self._durable_names:
                self._durable_names.remove(path)
                self._deleted[path] = deleted
            if arguments[0]:
                self._sync_names()

    def _sync_names(self) -> None:
        self._durable_names = set(self._files)
        self._deleted = {}

    def stop(self) -> None:
        """Stop the machine: write what is left to the folder, report, and end the process."""
        self._folder.mkdir()
        for path, file in self._survivors():
            (self._folder / Path(path).name).write_bytes(file.survive(self._keep))
        self._report()
        os._exit(0)

    def _survivors(self) -> Iterator[tuple[str, _File]]:
        for path, file in self._deleted.items():
            if not self._keep():
                yield path, file
        for path, file in self._files.items():
            if path in self._durable_names or self._keep():
                yield path, file
