"""The log: one line a request, in two formats, and nothing in it that opens a door."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, strategies as st

from invites_core import StorageError
from invites_wsgi.logs import (
    CurrentFormatter,
    JsonFormatter,
    TextFormatter,
    configure_logging,
    is_configured,
    scrub,
    scrub_uncaught_errors,
)
from tests.helpers import PATIENCE
from tests.wsgi.conftest import MakeService
from tests.wsgi.support import FailingStore, LogBook, Service, ask, restored_hooks, restored_logger

SECRET = "Xk9-Zq2_Vw7Lm4Rt8Yp1Bn6Cd3Fg5HjQ"
LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (?P<level>[A-Z]+) \[(?P<pid>\d+)\] (?P<message>.*)"
)


def make_record(message: str, *arguments: object, name: str = "gunicorn.error", **fields: Any) -> logging.LogRecord:
    """Return a record as a logger makes it."""
    error = fields.pop("error", None)
    info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord(name, logging.WARNING, __file__, 1, message, arguments, info)
    vars(record).update(fields)
    return record


# One line a request


def test_a_request_is_one_line(service: Service, log: LogBook) -> None:
    """A line tells method, route, status, key, client, time and request id; not the path, not the query."""
    answer = service.ask(f"/invites_api?key={service.key}&x=1")
    [line] = [line for line in log.text.splitlines() if " ms=" in line]
    found = LINE.fullmatch(line)
    assert found is not None
    assert found["level"] == "INFO"
    assert re.fullmatch(
        rf"GET /invites_api 201 key={service.issued.key.id} ms=\d+\.\d client=192\.0\.2\.7"
        rf" request_id={answer['X-Request-Id']}",
        found["message"],
    )
    [entry] = log.requests
    assert entry["message"] == "GET /invites_api 201"
    assert {name: entry[name] for name in ("level", "key", "reason", "client", "request_id")} == {
        "level": "info",
        "key": service.issued.key.id,
        "reason": None,
        "client": "192.0.2.7",
        "request_id": answer["X-Request-Id"],
    }
    assert isinstance(entry["ms"], float)
    assert isinstance(entry["pid"], int)
    assert entry["time"] == found["time"] or len(entry["time"]) == len(found["time"])


def test_every_request_has_exactly_one_line(service: Service, log: LogBook) -> None:
    """Whatever is asked, a line is written, with the template of the route and the status that was sent."""
    token = service.create().token
    requests = [
        ("GET", f"/invites_api?key={service.key}", "GET /invites_api 201"),
        ("POST", "/invites_api", "POST /invites_api 403"),
        ("HEAD", f"/invites_api?key={service.key}", "HEAD /invites_api 405"),
        ("OPTIONS", "/invites_api", "OPTIONS /invites_api 200"),
        ("GET", f"/invite?{token}", "GET /invite 200"),
        ("HEAD", "/invite?unknown", "HEAD /invite 404"),
        ("GET", "/healthz", "GET /healthz 200"),
        ("GET", f"/{service.key}", "GET - 404"),
        ("GET", f"/invites_api/{token}", "GET - 404"),
        ("X" * 11, "/", f"{'X' * 11} - 404"),
        ("X" * 12, "/", "- - 404"),
        ("GET\r\nX", "/", "- - 404"),
        (SECRET, "/", "- - 404"),
    ]
    before = len(log.requests)
    for method, target, _ in requests:
        service.ask(target, method=method)
    assert [entry["message"] for entry in log.requests[before:]] == [expected for _, _, expected in requests]
    others = [entry for entry in log.entries if "ms" not in entry]
    assert [entry["message"] for entry in others] == ["invite.created"] * 2
    assert len(log.text.splitlines()) == len(log.json.splitlines()) == len(requests) + 1 + len(others)


@pytest.mark.parametrize(
    ("key", "shown", "reason"),
    [
        pytest.param("{id}/{secret}", "{id}", None, id="right"),
        pytest.param("{id}/AAAA", "{id}", "wrong secret", id="wrong-secret"),
        pytest.param("AAAAAAAA/AAAA", "AAAAAAAA", "unknown", id="unknown-id"),
        pytest.param("-LihiCNf28-X/AAAA", "-LihiCNf28-X", "unknown", id="id-of-prosody"),
        pytest.param("{secret}/{id}", None, "unknown", id="halves-swapped"),
        pytest.param("{token}/{secret}", None, "unknown", id="token-for-id"),
        pytest.param("{secret}", None, "malformed", id="secret-alone"),
        pytest.param("", None, "malformed", id="empty"),
    ],
)
def test_the_key_is_named_by_its_id(
    service: Service, log: LogBook, key: str, shown: str | None, reason: str | None
) -> None:
    """The log names the key by what is not secret of it, and never by what may be a secret in the wrong place."""
    fill = {"id": service.issued.key.id, "secret": service.issued.secret, "token": service.create().token}
    service.ask(f"/invites_api?key={key.format(**fill)}")
    entry = log.requests[-1]
    assert (entry["key"], entry["reason"]) == (shown and shown.format(**fill), reason)
    for written in (log.text, log.json):
        assert fill["secret"] not in written
        assert fill["token"] not in written


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        pytest.param("192.0.2.1", "192.0.2.1", id="ipv4"),
        pytest.param("2001:db8::1", "2001:db8::1", id="ipv6"),
        pytest.param("[2001:db8::1]:443", "[2001:db8::1]:443", id="with-port"),
        pytest.param("", None, id="unix-socket"),
        pytest.param("unknown", None, id="obfuscated"),
        pytest.param("1.2.3.4 key=forged", None, id="forged-field"),
        pytest.param("1.2.3.4\nGET /invites_api 201", None, id="forged-line"),
        pytest.param(SECRET, None, id="secret"),
        pytest.param("1" * 61, None, id="long"),
    ],
)
def test_the_client_is_an_address_or_nothing(service: Service, log: LogBook, address: str, shown: str | None) -> None:
    """A proxy can put anything in the place of the client's address, and only what looks like one is written."""
    answer = ask(lambda environ, start: service.app({**environ, "REMOTE_ADDR": address}, start), "/invites_api")
    assert answer.status == 403
    assert log.requests[-1]["client"] == shown


# Formats


def test_json_is_one_object_a_line() -> None:
    """Each entry is one line of ASCII that parses, with its fields beside the message."""
    written = JsonFormatter().format(make_record("a %s", "b\nc", name="invites_wsgi.x", key="abc", reason=None, n=1.5))
    assert "\n" not in written
    assert written.isascii()
    entry = json.loads(written)
    assert list(entry) == ["time", "level", "pid", "message", "key", "reason", "n"]
    assert (entry["level"], entry["message"], entry["key"], entry["reason"], entry["n"]) == (
        "warning",
        "a b\nc",
        "abc",
        None,
        1.5,
    )


def test_text_is_one_line_with_named_fields() -> None:
    """Fields that are not there are left out; what would end the line is escaped."""
    written = TextFormatter().format(make_record("a %s", "b\nc", name="invites_wsgi.x", key="a\x1bbc", reason=None))
    found = LINE.fullmatch(written)
    assert found is not None
    assert (found["level"], found["message"]) == ("WARNING", r"a b\nc key=a\x1bbc")


def test_fields_of_other_loggers_are_left_out() -> None:
    """What another package attaches to a record is not known to be harmless."""
    record = make_record("hello", request=SECRET, extra_information=SECRET)
    assert SECRET not in TextFormatter().format(record)
    assert set(json.loads(JsonFormatter().format(record))) == {"time", "level", "pid", "message"}


@given(text=st.text(max_size=80), name=st.sampled_from(["invites_wsgi.app", "gunicorn.error", "root"]))
def test_no_text_breaks_a_line(text: str, name: str) -> None:
    """Whatever is logged, an entry stays on its line and holds nothing that steers a terminal."""
    record = make_record("%s", text, name=name, field=text)
    written = TextFormatter().format(record)
    assert written.isprintable()
    assert len(written.splitlines()) == 1
    as_json = JsonFormatter().format(record)
    assert as_json.isascii()
    assert as_json.isprintable()
    if name == "invites_wsgi.app":
        assert json.loads(as_json)["message"] == text


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_a_traceback_is_kept_and_scrubbed(formatter: logging.Formatter) -> None:
    """An error that should not be is logged with its places and causes, and without what its messages must not show."""

    def fail() -> None:
        try:
            try:
                raise KeyError(f"/invites_api?key=HTwALnKL/{SECRET}")
            except KeyError as error:
                raise ValueError(f"Bearer HTwALnKL/{SECRET}\nsecond line \x1b[31m") from error
        except ValueError:
            raise RuntimeError(f"token {SECRET[:24]}")  # noqa: B904 (the context is what is tested)

    try:
        fail()
    except RuntimeError as error:
        written = formatter.format(make_record("failed", name="invites_wsgi.app", error=error))
    lines = json.loads(written)["trace"] if isinstance(formatter, JsonFormatter) else written.split("\n")[1:]
    assert [line.strip().partition(":")[0] for line in lines if not line.strip().startswith(__file__)] == [
        "KeyError",
        "which was the direct cause of",
        "ValueError",
        "during which another error came",
        "RuntimeError",
    ]
    assert sum("in fail" in line for line in lines) == 3
    for size in (8, 16, 24, 32):
        assert SECRET[:size] not in written
    assert "\x1b" not in written
    assert not any("\n" in line for line in lines)


def test_an_error_without_a_traceback_is_logged(log: LogBook) -> None:
    """Logging an exception where there is none does no harm."""
    logging.getLogger("invites_wsgi.app").error("odd", exc_info=True)  # noqa: LOG014 (that is what is tested)
    [entry] = log.entries
    assert entry["message"] == "odd"


UNCAUGHT = """
import sys, threading
from invites_wsgi.logs import configure_logging, scrub_uncaught_errors

class Careless:
    def __del__(self):
        raise ValueError("ignored " + sys.argv[2])

def fail():
    raise KeyError("in a thread, " + sys.argv[2])

scrub_uncaught_errors()
if sys.argv[1] != "none":
    configure_logging(sys.argv[1], "error")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
del thread
Careless()
try:
    raise LookupError("cause " + sys.argv[2])
except LookupError as error:
    raise RuntimeError("postgresql://user:hunter2@h/d " + sys.argv[2]) from error
"""


@pytest.mark.parametrize("log_format", ["none", "text", "json"])
def test_errors_that_nobody_catches_are_scrubbed(log_format: str) -> None:
    """In the main thread, in another one and where Python can raise nothing, an error is written as the log is."""
    run = subprocess.run(
        [sys.executable, "-c", UNCAUGHT, log_format, SECRET], capture_output=True, text=True, timeout=PATIENCE
    )
    assert run.returncode == 1
    assert SECRET not in run.stderr
    assert "hunter2" not in run.stderr
    for kind in ("KeyError", "ValueError", "LookupError", "RuntimeError"):
        assert f"{kind}: " in run.stderr
    assert run.stderr.count("an error that should not be") == 3
    lines = run.stderr.splitlines()
    assert all(json.loads(line) for line in lines) if log_format == "json" else len(lines) > 6


def test_an_error_at_the_very_end_is_named() -> None:
    """While Python ends, when much is gone already, the kind of an error is told, and nothing fails over it."""
    # What the finalizer names must be there still.
    classes = UNCAUGHT.partition("scrub_uncaught_errors()\n")[0].replace("sys.argv[2]", repr(SECRET))
    script = f"{classes}scrub_uncaught_errors()\nkept = Careless()\n"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert (run.returncode, run.stdout) == (0, "")
    assert run.stderr == "an error that should not be, at the end: ValueError\n"


def test_what_stops_a_program_on_purpose_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A thread that exits says nothing, and Ctrl-C is told as Python tells it."""
    with restored_hooks():
        scrub_uncaught_errors()
        thread = threading.Thread(target=sys.exit)
        thread.start()
        thread.join()
        assert capsys.readouterr().err == ""
        sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert capsys.readouterr().err == "KeyboardInterrupt\n"


# What is cut out of the words of other packages


@pytest.mark.parametrize(
    ("message", "scrubbed"),
    [
        pytest.param("Booting worker with pid: 4711", "Booting worker with pid: 4711", id="harmless"),
        pytest.param(
            "Listening at: http://127.0.0.1:5280 (1)", "Listening at: http://127.0.0.1:5280 (1)", id="address"
        ),
        pytest.param("GET /invites_api?key=a/b&x HTTP/1.1", "GET /invites_api?[…] HTTP/1.1", id="query"),
        pytest.param(f"Bearer HTwALnKL/{SECRET}", "Bearer HTwALnKL/[…]", id="secret"),
        pytest.param(f"token {SECRET[:24]}.", "token […].", id="token"),
        pytest.param(f"%41%42{SECRET}", "[…]", id="percent-encoded"),
        pytest.param(
            "Invalid request from ip=127.0.0.1: Invalid HTTP request line: 'short'",
            "Invalid request from ip=127.0.0.1",
            id="malformed",
        ),
        pytest.param("Invalid request from ip=::1: two\nlines: x", "Invalid request from ip=::1", id="malformed-ipv6"),
        pytest.param("Invalid request from ip=: x", "Invalid request from ip=", id="malformed-unix"),
        pytest.param("Error handling request GET /a?b", "Error handling request", id="handling"),
        pytest.param("postgresql://u:p@ss/w@h:5432/d", "postgresql://[…]@h:5432/d", id="password-in-a-url"),
        pytest.param("host=h password=hunter2 user=u", "host=h password=[…] user=u", id="password"),
        pytest.param(r"PGPASSWORD = 'it\'s hunter2' x", "PGPASSWORD = […] x", id="quoted-password"),
        pytest.param(
            "Ignored premature client disconnection. No more data after: b'GET /a?k=HTw'",
            "Ignored premature client disconnection",
            id="hung-up",
        ),
    ],
)
def test_what_may_be_a_credential_is_cut_out(message: str, scrubbed: str) -> None:
    """Queries, long words and whatever malformed requests hold do not get from other packages into the log."""
    assert scrub(message) == scrubbed
    assert scrub(scrub(message)) == scrubbed


@given(
    before=st.text(max_size=20),
    secret=st.from_regex(r"[A-Za-z0-9_-]{16,64}", fullmatch=True),
    after=st.text(max_size=20),
)
def test_no_secret_survives(before: str, secret: str, after: str) -> None:
    """A word as long as a token or a secret is cut out, wherever it stands."""
    assert secret not in scrub(f"{before}{secret}{after}")


# Setting it up


def test_the_log_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """The package's log is written to standard error, in the format and from the level that are asked for."""
    configure_logging("json", "warning")
    logger = logging.getLogger("invites_wsgi.app")
    logger.info("not this")
    logger.warning("this")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["message"] == "this"
    record = logging.makeLogRecord({"msg": "other", "name": "gunicorn.error", "levelname": "INFO"})
    assert json.loads(CurrentFormatter().format(record))["message"] == "other"
    configure_logging("text", "debug")
    logger.debug("that")
    assert LINE.fullmatch(capsys.readouterr().err.rstrip("\n"))
    assert LINE.fullmatch(CurrentFormatter().format(record))


def test_other_loggers_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Setting up our log changes neither the root logger nor its handlers, and nothing is written twice."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_logging("text", "info")
    assert (root.handlers[:], root.level) == before
    logging.getLogger("invites_wsgi.app").info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_a_log_that_somebody_set_up_is_seen() -> None:
    """An app inside another service leaves the log as that service has set it up."""
    with restored_logger() as logger:
        assert is_configured() == logging.getLogger().hasHandlers()
        logger.addHandler(logging.NullHandler())
        assert is_configured()
        record = logging.makeLogRecord({"msg": "other", "name": "gunicorn.error", "levelname": "INFO"})
        assert LINE.fullmatch(CurrentFormatter().format(record))


def test_a_file_name_with_broken_bytes_can_be_logged(make_service: MakeService, log: LogBook) -> None:
    """A path that is no valid text is escaped; the line is not lost, and no traceback of logging is written instead."""
    store = FailingStore()
    service = make_service(store)
    store.failure = StorageError("no database at /srv/\udcff.db")
    service.ask("/healthz")
    assert r"\udcff" in log.text
    assert log.entries[0]["message"] == "no database at /srv/\udcff.db"
