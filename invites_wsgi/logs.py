"""Logging that never shows a secret, a token or a query.

The log of requests is written by the app: the template of the route instead of the path, and no query. What other
code logs, gunicorn above all, passes the same formatters, which cut out whatever could be a credential.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO

__all__ = [
    "CurrentFormatter",
    "JsonFormatter",
    "TextFormatter",
    "configure_logging",
    "is_configured",
    "log_line",
    "make_formatter",
    "scrub",
    "scrub_uncaught_errors",
]

ROOT_NAME: Final = "invites_wsgi"
UNCAUGHT: Final = "an error that should not be"

_QUERY: Final = re.compile(r"\?\S*")
# Up to the last @: PostgreSQL's library takes what ends a name in other URLs as part of a password.
_USER_OF_URL: Final = re.compile(r"://\S*@")
_PASSWORD: Final = re.compile(r"(password\s*=\s*)(?:'(?:[^'\\]|\\.)*'|\S+)", re.IGNORECASE)
# A token has 16 characters or more, a secret 22 or more; percent-encoding only makes them longer.
_CREDENTIAL: Final = re.compile(r"[A-Za-z0-9_%+=~-]{16,}")
# gunicorn logs a malformed request's line or header as it came; nothing in it can be trusted to be harmless.
_MALFORMED: Final = re.compile(r"(Invalid request from ip=\S*?):\s.*", re.DOTALL)
_HANDLING: Final = re.compile(r"(Error handling request) .*", re.DOTALL)
# What came before the client hung up can end within a secret, too short to be known as one.
_HUNG_UP: Final = re.compile(r"(Ignored premature client disconnection)\. .*", re.DOTALL)

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def scrub(text: str) -> str:
    """Cut out of a text whatever could be a query, a password, a secret or a token."""
    text = _MALFORMED.sub(r"\1", text)
    text = _HANDLING.sub(r"\1", text)
    text = _HUNG_UP.sub(r"\1", text)
    text = _PASSWORD.sub(r"\1[…]", _USER_OF_URL.sub("://[…]@", text))
    return _CREDENTIAL.sub("[…]", _QUERY.sub("?[…]", text))


def _one_line(text: str) -> str:
    """Escape what would end or rewrite a line of the log."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _format_error(error: BaseException) -> list[str]:
    """Return a traceback as lines: the places, which are code, and the messages without what they must not show."""
    lines: list[str] = []
    if error.__cause__ is not None:
        lines += [*_format_error(error.__cause__), "which was the direct cause of:"]
    elif error.__context__ is not None and not error.__suppress_context__:
        lines += [*_format_error(error.__context__), "during which another error came:"]
    for frame in traceback.extract_tb(error.__traceback__):
        lines.append(f"  {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}")
    lines.append(f"{type(error).__qualname__}: {_one_line(scrub(str(error)))}")
    return lines


def _collect(record: logging.LogRecord) -> tuple[str, dict[str, Any], list[str]]:
    message = record.getMessage()
    fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    # Our own loggers are trusted to log no credential, and long host names must stay whole there.
    if record.name != ROOT_NAME and not record.name.startswith(f"{ROOT_NAME}."):
        message = scrub(message)
        fields = {}
    info: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None] | None
    info = record.exc_info
    trace = _format_error(info[1]) if info and info[1] is not None else []
    return message, fields, trace


def _time(record: logging.LogRecord) -> str:
    return f"{_second(int(record.created))}.{int(record.msecs):03}Z"


@functools.lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class TextFormatter(logging.Formatter):
    """One line an entry: time, level, process, message, and fields as ``name=value``; tracebacks indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry."""
        message, fields, trace = _collect(record)
        parts = [f"{_time(record)} {record.levelname} [{record.process}] {_one_line(message)}"]
        parts += [f"{name}={_one_line(str(value))}" for name, value in fields.items() if value is not None]
        return "\n".join([" ".join(parts), *(f"    {line}" for line in trace)])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``pid``, ``message``, the fields, and ``trace``, a list of lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry."""
        message, fields, trace = _collect(record)
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "pid": record.process,
            "message": message,
            **fields,
        }
        if trace:
            entry["trace"] = trace
        # In ASCII: JSON itself leaves DEL, C1 controls and line separators as they are.
        return json.dumps(entry, default=str)


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream, and holds its lock for that alone: no thread waits while another puts its line together."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Format the entry, and write it under the lock, so that no two are mixed."""
        if not self.filter(record):
            return False
        try:
            line = self.format(record) + self.terminator
            with self.lock or contextlib.nullcontext():
                self.stream.write(line)
                self.flush()
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 (as in logging itself: an entry that cannot be written stops no request)
            self.handleError(record)
        return True


def log_line(logger: logging.Logger, message: str, fields: Mapping[str, object]) -> None:
    """Log one of this package's lines at level INFO.

    As ``logger.info(message, extra=fields)``, which also looks for the line of code that it stands in; for every
    request that is a tenth of all that the app does.
    """
    if logger.isEnabledFor(logging.INFO):
        record = logging.LogRecord(logger.name, logging.INFO, __file__, 0, message, None, None)
        vars(record).update(fields)
        logger.handle(record)


def make_formatter(log_format: str) -> logging.Formatter:
    """Return the formatter of ``text`` or ``json``."""
    return JsonFormatter() if log_format == "json" else TextFormatter()


def configure_logging(log_format: str, level: str) -> None:
    """Write the log of this package to standard error; the loggers of other packages are left alone.

    Args:
        log_format: ``text`` or ``json``.
        level: The least level that is written.
    """
    handler = LineHandler(sys.stderr)
    handler.setFormatter(make_formatter(log_format))
    logger = logging.getLogger(ROOT_NAME)
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    quiet_drivers()


def quiet_drivers() -> None:
    """Let the pool of PostgreSQL's driver not tell every connection that is replaced: what matters is an error here."""
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


def scrub_uncaught_errors() -> None:
    """Let errors that nobody catches be written as the log is; for a process of our own.

    Python's own way shows messages whole, and some hold what the failed call was about: a key, a URL with a password.
    """

    def show_of_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
            _show_uncaught(arguments.exc_value)

    def show_ignored(arguments: sys.UnraisableHookArgs) -> None:
        if arguments.exc_value is not None:
            _show_uncaught(arguments.exc_value)

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            _show_uncaught(error)

    sys.excepthook, threading.excepthook, sys.unraisablehook = show, show_of_thread, show_ignored


def _show_uncaught(error: BaseException) -> None:
    if sys.is_finalizing():
        # What formats it may be gone already.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stderr.write(f"{UNCAUGHT}, at the end: {type(error).__qualname__}\n")
        return
    record = logging.LogRecord(
        ROOT_NAME, logging.CRITICAL, __file__, 0, UNCAUGHT, (), (type(error), error, error.__traceback__)
    )
    # There may be no standard error, or nobody who reads it any more.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.write(f"{CurrentFormatter().format(record)}\n")
        sys.stderr.flush()


def is_configured() -> bool:
    """Tell whether anybody has said where this package's log goes."""
    return logging.getLogger(ROOT_NAME).hasHandlers()


class CurrentFormatter(logging.Formatter):
    """Formats as this package's log is written at the moment: gunicorn sets its log up before the app is made."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry, as text where nothing is configured yet."""
        for handler in logging.getLogger(ROOT_NAME).handlers:
            if handler.formatter is not None:
                return handler.formatter.format(record)
        return TextFormatter().format(record)
