"""The library's events as lines of the log: of the service, and of the command where it is told to keep them."""

from __future__ import annotations

import logging
import os
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Final

from invites_core import Event
from invites_wsgi.logs import log_line, make_formatter, scrub

if TYPE_CHECKING:
    from invites_wsgi.http import Exchange

__all__ = ["EventFile", "current_exchange", "log_event"]

NAME: Final = "invites_wsgi.event"

current_exchange: ContextVar[Exchange | None] = ContextVar("current_exchange", default=None)
"""The request that is being answered in this thread: the library knows of none, and its events are told from within."""

_log = logging.getLogger(NAME)


def log_event(event: Event) -> None:
    """Write an event as a line. A refused key has none: the request's own line has the key and the reason already."""
    if event.name != "key.refused":
        log_line(_log, event.name, _list_fields(event))


def _list_fields(event: Event) -> dict[str, object]:
    exchange = current_exchange.get()
    fields = {
        "key": event.key_id or (None if exchange is None else exchange.key_id),
        "host": event.host,
        "kind": event.kind,
        "count": event.count,
        # A text of whoever made the invites; those of a Prosody can hold anything.
        "source": None if event.source is None else scrub(event.source),
        "request_id": None if exchange is None else exchange.request_id,
    }
    return {name: value for name, value in fields.items() if value is not None}


class EventFile:
    """A hook that appends events to a file, a line each, written at once; safe for many processes."""

    def __init__(self, path: Path, log_format: str) -> None:
        """Take the file, and make it, for its owner alone, if it is not there.

        Args:
            path: The file.
            log_format: ``text`` or ``json``.

        Raises:
            OSError: It cannot be written to.
        """
        self._path = path
        self._formatter = make_formatter(log_format)
        os.close(self._open())

    def __call__(self, event: Event) -> None:
        """Append an event.

        Raises:
            OSError: It could not be written.
        """
        record = logging.LogRecord(NAME, logging.INFO, __file__, 0, event.name, (), None)
        vars(record).update(_list_fields(event))
        # Opened each time, so that a file that was moved away by a rotation is not written to any more.
        descriptor = self._open()
        try:
            os.write(descriptor, f"{self._formatter.format(record)}\n".encode("utf-8", "backslashreplace"))
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
