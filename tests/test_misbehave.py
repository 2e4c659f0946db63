"""``bin/misbehave``: a small share of it against the real service, and that it would see what must not be."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.misbehave import __main__ as command
from tests.misbehave.clients import CLOSED, Tally, flood, hold, pour, run_for, trickle, use_once
from tests.misbehave.report import ALLOWED_MIB, Row, find_faults, format_rows
from tests.misbehave.scenarios import SCENARIOS

SMALL: Final = ("--seconds=1", "--cold-keys=16", "--keys=16", "--slow=40", "--held=60")
ROW: Final = Row(
    slug="held",
    title="connections without a byte",
    answers=Counter({CLOSED: 3}),
    untold=0,
    waited=None,
    alone_ms=(1.0, 2.0),
    beside_ms=(1.5, 2.5),
    heard=100,
    others=Counter(),
    rss_mib=(90.0, 97.0, 97.0),
    grown_mib=7.0,
    argon2_checks=0,
    faults=(),
)


@pytest.mark.real_server
def test_the_service_bears_a_small_share_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """New keys at once, wrong secrets and endless bodies: every answer is one that is promised."""
    slugs = ("cold-keys", "wrong-secrets", "endless-bodies")
    file = tmp_path / "misbehave.json"
    arguments = [f"--only={slug}" for slug in slugs] + [f"--json={file}", f"--folder={tmp_path / 'data'}"]
    code = command.main([*SMALL, *arguments])
    printed = capsys.readouterr().out
    assert code == 0, printed
    rows = {row["slug"]: row for row in json.loads(file.read_text())["rows"]}
    assert tuple(rows) == slugs
    assert rows["cold-keys"]["answers"]["201"] == rows["cold-keys"]["argon2_checks"] == 16
    assert rows["wrong-secrets"]["answers"]["403"] > 0
    assert all(row["heard"] > 0 for row in rows.values())


Client = Callable[[Tally], Coroutine[Any, Any, None]]


@pytest.mark.parametrize(
    "client",
    [
        pytest.param(lambda tally: use_once(tally, iter(["id/secret"]), pause=0.01), id="use_once"),
        pytest.param(lambda tally: flood(tally, lambda: "id/secret"), id="flood"),
        pytest.param(lambda tally: trickle(tally, b"GET / HTTP/1.1\r\n", interval=0.01), id="trickle"),
        pytest.param(lambda tally: hold(tally, b"GET / HTTP/1.1\r\n"), id="hold"),
        pytest.param(lambda tally: pour(tally, b"POST / HTTP/1.1\r\n\r\n"), id="pour"),
    ],
)
@pytest.mark.parametrize(
    ("answer", "told", "untold"),
    [
        pytest.param(b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nxx", "503", True, id="no-retry-after"),
        pytest.param(b"HTTP/1.1 429 Busy\r\nretry-after: soon\r\n\r\n", "429", True, id="no-number"),
        pytest.param(b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\n\r\n", "503", False, id="retry-after"),
        pytest.param(b"HTTP/1.1 500 Oh\r\n\r\n", "500", False, id="another-error"),
        pytest.param(b"", CLOSED, False, id="closed"),
    ],
)
def test_clients_count_what_they_are_told(client: Client, answer: bytes, told: str, untold: bool) -> None:
    """Each kind of client counts each answer by its status, and those that do not say when to come again."""

    async def talk() -> Tally:
        seen = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                await reader.read(100)
                writer.write(answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                writer.write_eof()
                # Closed with something unread in it, a connection may lose the answer.
                while await reader.read(65_536):
                    pass
            writer.close()
            if tally.answers.total():
                seen.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        tally = Tally(server.sockets[0].getsockname()[1])
        # One that is accepted or refused for good has nothing more to do.
        ended = asyncio.ensure_future(run_for(None, [client(tally)]))
        await asyncio.wait([ended, asyncio.ensure_future(seen.wait())], timeout=30, return_when="FIRST_COMPLETED")
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
        server.close()
        return tally

    tally = asyncio.run(talk())
    assert set(tally.answers) == {told}
    assert tally.untold == (tally.answers.total() if untold else 0)


FIND: Final = partial(
    find_faults,
    Counter({"201": 5, "503": 2}),
    allowed=frozenset({"201", "503"}),
    must="201",
    untold=0,
    others=Counter(),
    grown_mib=ALLOWED_MIB,
    checks=None,
    is_running=True,
)


def test_what_is_promised_is_no_fault() -> None:
    """Answers that are allowed, within the bound of memory, are no fault."""
    assert FIND() == ()
    assert FIND(checks=0) == ()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"allowed": frozenset({"201"})}, id="another-answer"),
        pytest.param({"must": "403"}, id="an-answer-that-never-came"),
        pytest.param({"untold": 1}, id="no-retry-after"),
        pytest.param({"others": Counter({"503": 1})}, id="those-who-behave-were-refused"),
        pytest.param({"grown_mib": ALLOWED_MIB + 0.1}, id="memory"),
        pytest.param({"checks": 1}, id="argon2-for-a-wrong-secret"),
        pytest.param({"is_running": False}, id="a-worker-ended"),
    ],
)
def test_whatever_is_not_promised_is_one_fault(changes: dict[str, Any]) -> None:
    """Each thing that must not be is told, once."""
    assert len(FIND(**changes)) == 1


@pytest.mark.parametrize(
    ("row", "code", "last"),
    [
        pytest.param(ROW, 0, "every answer was as promised, and every refusal says when to come again", id="promised"),
        pytest.param(
            # A median of ten times as much is told, and asserted by nobody.
            replace(ROW, beside_ms=(10.0, 20.0)),
            0,
            "every answer was as promised, and every refusal says when to come again",
            id="slow",
        ),
        pytest.param(
            replace(ROW, faults=("a worker has ended",)),
            1,
            "NOT as promised",
            id="fault",
        ),
    ],
)
def test_exit_status_is_of_the_answers(
    row: Row, code: int, last: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command exits with 1 where something was wrong, and with 0 however long it took."""
    monkeypatch.setattr(command, "misbehave", lambda *_: [row])
    assert command.main([]) == code
    assert capsys.readouterr().out.splitlines()[-1] == last
    told = "\n".join(format_rows([row]))
    assert ("NOT for connections without a byte" in told) == (row.ratio > 2)


def test_scenarios_have_names_of_their_own() -> None:
    """Each scenario can be chosen by its name."""
    assert len({one.slug for one in SCENARIOS}) == len(SCENARIOS)
