"""The programs on the page for callers repeat what they should, as long as they should, with the same identity."""

from __future__ import annotations

import http.server
import json
import runpy
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.docs.pages import ROOT, get_block

PAGE: Final = ROOT / "docs" / "clients.md"


class Scripted(http.server.ThreadingHTTPServer):
    """Answers as it is told, one after the other, and keeps what was sent.

    Attributes:
        answers: Statuses and seconds for Retry-After; None closes the connection without an answer.
        sent: The Idempotency-Key of each request, and its body.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.answers: list[tuple[int, int | None] | None] = []
        self.sent: list[tuple[str | None, object]] = []


class ScriptedHandler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Scripted

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.sent.append((self.headers["Idempotency-Key"], json.loads(body)))
        answer = self.server.answers.pop(0)
        if answer is None:
            return
        status, seconds = answer
        self.send_response(status)
        if seconds is not None:
            self.send_header("Retry-After", str(seconds))
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def service() -> Iterator[Scripted]:
    """A service that answers as the test says."""
    with Scripted() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of the program, none of which is waited for; other threads of the tests' process wait as ever."""
    waited: list[float] = []
    sleep, program_thread = time.sleep, threading.get_ident()

    def note(seconds: float) -> None:
        if threading.get_ident() == program_thread:
            waited.append(seconds)
        else:
            sleep(seconds)

    monkeypatch.setattr(time, "sleep", note)
    return waited


@pytest.fixture(params=["with_requests.py", "with_httpx.py"])
def program(
    request: pytest.FixtureRequest, tmp_path: Path, service: Scripted, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """The names of each program of the page, which asks the service of the test."""
    monkeypatch.setenv("INVITES_KEY", "AAAAAAAA/secret")
    file = tmp_path / request.param
    text = get_block(PAGE, request.param).text
    assert "127.0.0.1:5280" in text
    file.write_text(text.replace("5280", str(service.server_port)), "utf-8")
    names = runpy.run_path(str(file))
    yield names
    (names.get("session") or names["client"]).close()


def test_a_creation_is_repeated_with_its_identity(
    program: dict[str, Any], service: Scripted, waits: list[float]
) -> None:
    """After 503 and a lost answer the same request is sent again, after the time that the service asked for."""
    service.answers = [(503, 3), None, (502, None), (201, None)]
    assert program["create_invite"]("order-1", note="x") == {}
    assert service.sent == [("order-1", {"note": "x"})] * 4
    assert waits == [3, 2, 3]


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        pytest.param([(429, 86_400)], 429, id="quota-of-a-day"),
        pytest.param([(422, None)], 422, id="conflict"),
        pytest.param([(503, 1)] * 5, 503, id="again-and-again"),
    ],
)
def test_what_cannot_help_is_not_done(
    program: dict[str, Any], service: Scripted, waits: list[float], answers: list[Any], status: int
) -> None:
    """A refusal, a wait that is too long, and the last attempt are an error that has the answer."""
    service.answers = list(answers)
    with pytest.raises(Exception, match=str(status)) as raised:
        program["create_invite"]("order-1")
    assert raised.value.response.status_code == status  # type: ignore[attr-defined]  # both libraries name it so
    assert len(service.sent) == len(answers)
    assert len(waits) == len(answers) - 1
