"""The runbook has every message that an operator can meet, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

import gunicorn.arbiter
import gunicorn.workers.base
import pytest

from tests.docs.messages import find_messages, read_call
from tests.docs.pages import ROOT, find_code, read_rows, read_sections

PAGE: Final = ROOT / "docs" / "operation.md"
SECTIONS: Final = ("The database", "Service and command", "Agent and Prosody", "Backups")
OF_GUNICORN: Final = {
    "WORKER TIMEOUT (pid:…)",
    "Worker (pid:…) was sent SIGKILL! Perhaps out of memory?",
    "Worker failed to boot.",
    "Invalid request from ip=…",
}
OF_THE_AGENT: Final = {"…: …: …"}
"""Its line for an error of its store, of which nothing is fixed."""


def list_lines() -> list[str]:
    """Return the lines that the runbook has rows for."""
    sections = read_sections(PAGE)
    rows = [row for name in SECTIONS for row in read_rows(sections[name])]
    assert all(len(row) == 3 and all(row) for row in rows)
    return [line for row in rows for line in find_code(row[0])]


def test_every_message_has_its_row() -> None:
    """Whatever the code can log as an error or a warning, or raise as an error of a store, is explained once."""
    lines = list_lines()
    assert len(lines) == len(set(lines))
    found = find_messages()
    assert len(found) > 80
    missing = {message: place for message, place in found.items() if message not in lines}
    assert not missing
    assert set(lines) - found.keys() == OF_GUNICORN | OF_THE_AGENT


def test_gunicorn_says_what_the_runbook_has() -> None:
    """gunicorn's own lines are still those of the runbook."""
    source = "".join(
        Path(str(module.__file__)).read_text("utf-8") for module in (gunicorn.arbiter, gunicorn.workers.base)
    )
    for piece in ("WORKER TIMEOUT (pid:%s)", "was sent %s!", " Perhaps out of memory?", "Worker failed to boot."):
        assert piece in source
    assert "Invalid request from ip={ip}" in source


@pytest.mark.parametrize(
    ("code", "messages"),
    [
        pytest.param('raise StorageError(f"the disk {x} is {y!r}")', ["the disk … is …"], id="error"),
        pytest.param('self._log.warning("no %s for %d", a, b)', ["no … for …"], id="log"),
        pytest.param('_log.error("%s", error)', [], id="nothing-fixed"),
        pytest.param('_log.info("all is well")', [], id="no-warning"),
        pytest.param('Busy("one" if x else "two")', ["one", "two"], id="choice"),
        pytest.param('message = {"a": "not this", "b": "nor that"}.get(x, "and else")', None, id="named"),
    ],
)
def test_messages_are_found_in_code(code: str, messages: list[str] | None) -> None:
    """The search that the table is held against finds what is said, in the forms in which the code says it."""
    found = [message for node in ast.walk(ast.parse(code)) for message in read_call(node)]
    assert found == (["not this", "nor that", "and else"] if messages is None else messages)


def test_the_page_has_no_line_twice_as_code() -> None:
    """A message in the runbook is written as it is logged: no placeholder of Python's is left in it."""
    assert not [line for line in list_lines() if re.search(r"%[sd]|\{\w+\}", line)]
