"""Permissions that hold for the tests too: where they run as root, a thread can do without its power over files."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import pytest

__all__ = ["without_power_over_files"]

# linux/capability.h: version 3 of the structures, and the two capabilities that ignore the permissions of files.
_VERSION = 0x20080522
_FILE_POWERS = (1 << 1) | (1 << 2)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextlib.contextmanager
def without_power_over_files() -> Iterator[None]:
    """Let the permissions of files hold for this thread, as they do for any user but root."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION, 0), (_Sets * 2)()
    if not hasattr(libc, "capset") or libc.capget(ctypes.byref(header), sets) != 0:
        pytest.skip("root ignores the permissions of files here: run the tests as another user")
    before = sets[0].effective
    sets[0].effective = before & ~_FILE_POWERS
    if libc.capset(ctypes.byref(header), sets) != 0:
        pytest.skip("root ignores the permissions of files here: run the tests as another user")
    try:
        yield
    finally:
        sets[0].effective = before
        libc.capset(ctypes.byref(header), sets)
