"""A layer under SQLite that makes the calls of its ``unix`` VFS fail, in this process and for good.

A VFS written with `apsw.VFS` will not do: what it raises comes out of the statement as a Python exception even where
SQLite goes on without harm, as after a checkpoint that fails behind a commit, and it passes the calls on the index
beside the log (``xShmMap``, ``xShmLock``) by. So the tables of C functions are changed in their place
(sqlite.org/c3ref/vfs.html, sqlite.org/c3ref/io_methods.html), and SQLite sees result codes alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

import apsw

__all__ = ["FaultyDisk", "Layer"]

_INT, _LONG, _POINTER, _TEXT = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p, ctypes.c_char_p

_OF_A_FILE: Final[dict[str, tuple[type, ...]]] = {
    "xClose": (),
    "xRead": (_POINTER, _INT, _LONG),
    "xWrite": (_POINTER, _INT, _LONG),
    "xTruncate": (_LONG,),
    "xSync": (_INT,),
    "xFileSize": (_POINTER,),
    "xLock": (_INT,),
    "xUnlock": (_INT,),
    "xCheckReservedLock": (_POINTER,),
    "xFileControl": (_INT, _POINTER),
    "xSectorSize": (),
    "xDeviceCharacteristics": (),
    "xShmMap": (_INT, _INT, _INT, _POINTER),
    "xShmLock": (_INT, _INT, _INT),
}
"""The functions of a file in the order of the table, up to the last that is of interest, and what follows the file."""

_PASSED_ON: Final = {"xUnlock", "xCheckReservedLock", "xFileControl", "xSectorSize", "xDeviceCharacteristics"}
_FUNCTIONS_OF_A_FILE: Final = 18
SHM_LOCK: Final = 2
"""The flag of ``xShmLock`` that asks for a lock, where another one gives it back."""


class _Methods(ctypes.Structure):
    """sqlite3_io_methods, in its third version."""

    _fields_ = (("version", _INT), ("functions", _POINTER * _FUNCTIONS_OF_A_FILE))


class _Vfs(ctypes.Structure):
    """The beginning of sqlite3_vfs."""

    _fields_ = (
        ("version", _INT),
        ("file_size", _INT),
        ("longest_path", _INT),
        ("next", _POINTER),
        ("name", _TEXT),
        ("data", _POINTER),
        ("xOpen", _POINTER),
        ("xDelete", _POINTER),
        ("xAccess", _POINTER),
        ("xFullPathname", _POINTER),
        ("dynamic_libraries", _POINTER * 4),
        ("xRandomness", _POINTER),
        ("xSleep", _POINTER),
    )


# Names are handed on as they came, for SQLite keeps the address of one, and reads what lies behind it.
_OPEN: Final = ctypes.CFUNCTYPE(_INT, _POINTER, _POINTER, _POINTER, _INT, _POINTER)
_DELETE: Final = ctypes.CFUNCTYPE(_INT, _POINTER, _POINTER, _INT)
_ACCESS: Final = ctypes.CFUNCTYPE(_INT, _POINTER, _POINTER, _INT, _POINTER)
_SLEEP: Final = ctypes.CFUNCTYPE(_INT, _POINTER, _INT)


_installed: Final[list[Layer]] = []
"""What SQLite calls as long as the process lives must not be collected before."""


class Layer:
    """What lies between SQLite and the system once it is installed: it lets everything pass.

    Nothing takes it out again: it is for a process that is about to end.
    """

    def __init__(self) -> None:
        self._kept: list[object] = []
        self._tables: dict[int, _Methods] = {}
        self._paths: dict[int, str] = {}

    def answer(self, call: str, path: str, arguments: tuple[Any, ...]) -> int:
        """Return what a call is answered without being made, or 0 to let it be made. It never raises."""
        return apsw.SQLITE_OK

    def note(self, call: str, path: str, arguments: tuple[Any, ...]) -> None:
        """Learn of a call that was made and succeeded. It never raises."""

    def install(self) -> None:
        """Put the layer under every file that is opened from now on."""
        _installed.append(self)
        connection, address = apsw.Connection(":memory:", vfs="unix"), _POINTER()
        connection.file_control("main", apsw.SQLITE_FCNTL_VFS_POINTER, ctypes.addressof(address))
        connection.close()
        assert address.value is not None
        vfs = _Vfs.from_address(address.value)
        assert vfs.name == b"unix"
        open_file = _OPEN(vfs.xOpen)

        def open_and_wrap(this: int, name: int | None, file: int, flags: int, flags_out: int) -> int:
            path = "" if name is None else ctypes.string_at(name).decode()
            code = self.answer("xOpen", path, (flags,))
            if code:
                # SQLite closes what was never opened unless it is told so.
                _POINTER.from_address(file).value = None
                return code
            code = open_file(this, name, file, flags, flags_out)
            if code == apsw.SQLITE_OK:
                self._wrap(file, path)
                self.note("xOpen", path, (flags,))
            return int(code)

        self._set(vfs, "xOpen", _OPEN(open_and_wrap))
        for call, prototype in (("xDelete", _DELETE), ("xAccess", _ACCESS)):
            self._set(vfs, call, prototype(self._pass_by_name(call, prototype(getattr(vfs, call)))))
        # Whoever is told to wait comes again at once; how often, and for how long in all, is counted all the same.
        self._set(vfs, "xSleep", _SLEEP(lambda _, microseconds: microseconds))

    def _set(self, vfs: _Vfs, call: str, function: Any) -> None:
        self._kept.append(function)
        setattr(vfs, call, ctypes.cast(function, _POINTER).value)

    def _pass_by_name(self, call: str, original: Callable[..., int]) -> Callable[..., int]:
        def function(this: int, name: int, *arguments: Any) -> int:
            path = ctypes.string_at(name).decode()
            code = self.answer(call, path, arguments) or original(this, name, *arguments)
            if code == apsw.SQLITE_OK:
                self.note(call, path, arguments)
            return code

        return function

    def _wrap(self, file: int, path: str) -> None:
        """Give an open file a table of functions of our own."""
        self._paths[file] = path
        table = _POINTER.from_address(file)
        assert table.value is not None
        if table.value not in self._tables:
            self._tables[table.value] = self._make_table(table.value)
        table.value = ctypes.addressof(self._tables[table.value])

    def _make_table(self, address: int) -> _Methods:
        methods = _Methods.from_address(address)
        assert methods.version >= 2
        made = _Methods.from_buffer_copy(methods)
        for number, (call, types) in enumerate(_OF_A_FILE.items()):
            original = methods.functions[number]
            # Only the database itself has an index; the log's table has no functions for one.
            if call not in _PASSED_ON and original is not None:
                prototype = ctypes.CFUNCTYPE(_INT, _POINTER, *types)
                function = prototype(self._pass_of_file(call, prototype(original)))
                self._kept.append(function)
                made.functions[number] = ctypes.cast(function, _POINTER).value
        return made

    def _pass_of_file(self, call: str, original: Callable[..., int]) -> Callable[..., int]:
        def function(file: int, *arguments: Any) -> int:
            path = self._paths[file]
            code = self.answer(call, path, arguments)
            if code:
                return _fail(code, call, original, file, arguments)
            code = original(file, *arguments)
            if code == apsw.SQLITE_OK:
                self.note(call, path, arguments)
            return code

        return function


def _fail(code: int, call: str, original: Callable[..., int], file: int, arguments: tuple[Any, ...]) -> int:
    """Fail as the system does: a full disk has taken a part of what was to be written, a short read gave a part."""
    if call == "xWrite" and code == apsw.SQLITE_FULL:
        data, amount, offset = arguments
        original(file, data, amount // 2, offset)
    elif call == "xRead" and code == apsw.SQLITE_IOERR_SHORT_READ:
        data, amount, offset = arguments
        original(file, data, amount, offset)
        ctypes.memset(data + amount // 2, 0, amount - amount // 2)
    elif call == "xClose":
        original(file)
    return code


class FaultyDisk(Layer):
    """A disk of which one kind of call fails: from some call on, once or for good."""

    def __init__(self) -> None:
        super().__init__()
        self._call = self._ending = ""
        self._code = apsw.SQLITE_OK
        self._first = 0
        self._is_lasting = False
        self.calls = 0
        """How many calls of this kind there have been since it was armed."""

    def arm(self, call: str, code: int, *, ending: str = "", first: int = 1, lasting: bool = True) -> None:
        """Let calls of a kind fail.

        Args:
            call: The name of the function in SQLite's tables, such as ``xWrite``.
            code: SQLite's result code.
            ending: The end of the path of the files that are meant; empty: all.
            first: Which call from now on fails, counted from 1.
            lasting: Whether those that follow it fail as well.
        """
        self._call, self._code, self._ending = call, code, ending
        self._first, self._is_lasting, self.calls = first, lasting, 0

    def mend(self) -> None:
        """Let everything pass again."""
        self._call = ""

    def answer(self, call: str, path: str, arguments: tuple[Any, ...]) -> int:
        if call != self._call or not path.endswith(self._ending):
            return apsw.SQLITE_OK
        if call == "xShmLock" and not arguments[2] & SHM_LOCK:
            return apsw.SQLITE_OK
        self.calls += 1
        fails = self.calls >= self._first if self._is_lasting else self.calls == self._first
        return self._code if fails else apsw.SQLITE_OK
