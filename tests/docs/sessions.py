"""Runs the terminal sessions of the documentation as they stand there, and compares what they print.

A page shows made-up keys, tokens, times and process numbers. Where a page shows a key or a token for the first time,
the session learns what it is here, and from then on puts that in its place, also in what the reader types.
A line ``...`` stands for any number of lines, and ``...`` in or at the end of a line for any part of it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.docs.pages import ROOT, Block
from tests.servers import Server, free_port

PATIENCE_SECONDS: Final = 20.0
PAGE_PORT: Final = "5280"
PAGE_HOME: Final = "/home/you"
PAGE_DATA: Final = "/var/lib/invites-api"

# Commands that run until they are stopped; the reader leaves them running and goes on in another terminal.
_SERVES: Final = re.compile(r"(invites-api serve|gunicorn|bin/run)\b")

_CREATES: Final = re.compile(r"\S*invites-api\b.* create ")

_SHAPES: Final = {
    "key": r"(?<![\w/-])[\w-]{8}/[\w-]{32}(?![\w/-])",
    "token": r"(?:(?<=invite\?)|(?<=preauth=)|(?<=\"token\": \"))[\w-]{24}(?![\w-])",
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{3})?Z",
    "version": r"(?:invites-api,? (?:version )?|Python |SQLite |argon2-cffi |werkzeug |gunicorn )\d[\w.]*",
    "rest": r"\.\.\.(?= |$)",
}
_MEANINGS: Final = {
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{3})?Z",
    "version": r"\D+\d[\w.]*",
    "rest": r".*",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a session, and what the page says that it prints."""

    command: str
    output: str


def read_steps(block: Block) -> Iterator[Step]:
    """Take a session apart into commands, which begin with ``$`` and go on with ``>``, and what follows each."""
    assert block.text.startswith("$ "), f"{block.place} does not begin with a command"
    for part in re.split(r"^\$ ", block.text.replace("\\\n> ", ""), flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield Step(command, output)


class Session:
    """A reader at a terminal, in an empty home folder, who does what a page says.

    Attributes:
        folder: Where the reader is.
    """

    def __init__(self, home: Path, folder: Path) -> None:
        self.folder = folder
        self._home = home
        self._data = home / "var-lib"
        self._data.mkdir(mode=0o700)
        self._port = free_port()
        self._known: dict[str, str] = {}
        self._exit_code = 0
        self._last_second = 0
        self._server: Server | None = None
        self._servers = 0
        # What a command exports is kept here for the next one, as a shell keeps it.
        self._state = home.with_name("state.sh")
        self._state.touch()
        # Without a terminal curl would add its progress to what it prints.
        (home / ".curlrc").write_text("silent\nshow-error\n")
        self._env = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(home),
            "LC_ALL": "C.UTF-8",
            "PYTHONWARNINGS": "error",
            "INVITES_VENV": sys.prefix,
            "INVITES_RUN_PORT": str(self._port),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_server()

    def save(self, block: Block) -> None:
        """Save a block under the name that the page gives it."""
        assert block.file_name is not None
        (self.folder / block.file_name).write_text(self.localize(block.text), "utf-8")

    def run(self, block: Block) -> None:
        """Run a session, and fail where something else comes out of it than the page shows."""
        steps = list(read_steps(block))
        for step, next_step in zip(steps, [*steps[1:], None], strict=True):
            where = f"{block.place}: $ {step.command}"
            if _SERVES.match(step.command):
                self._start_server(step, where)
                continue
            ended = self._run(step.command)
            expected, printed = self._make_pattern(step.output), ended.stdout.replace("\r\n", "\n")
            found = re.fullmatch(expected, printed)
            assert found, f"{where}\nprinted:\n{printed}\nthe page has:\n{step.output}"
            self._learn(found)
            may_fail = "Error: " in step.output or (next_step is not None and next_step.command == "echo $?")
            assert ended.returncode == 0 or may_fail, f"{where}\nexited with {ended.returncode}:\n{printed}"

    def localize(self, text: str) -> str:
        """Put what is so here in the place of what the page shows."""
        for shown in sorted(self._known, key=len, reverse=True):
            text = text.replace(shown, self._known[shown])
        text = text.replace(PAGE_DATA, str(self._data)).replace(PAGE_HOME, str(self._home))
        return re.sub(rf"\b{PAGE_PORT}\b", str(self._port), text)

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        if _CREATES.match(command):
            self._wait_for_next_second()
        state = shlex.quote(str(self._state))
        script = (
            f". {state}; (exit {self._exit_code})\n{self.localize(command)}\ncode=$?; export -p >{state}; exit $code\n"
        )
        ended = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        self._exit_code = ended.returncode
        return ended

    def _start_server(self, step: Step, where: str) -> None:
        """Start a server and leave it running; the one before it, if any, is stopped."""
        self._stop_server()
        self._servers += 1
        script = f". {shlex.quote(str(self._state))}; exec {self.localize(step.command)}"
        changes: dict[str, str | None] = dict.fromkeys(os.environ)
        server = Server(
            self.folder,
            ["bash", "-c", script],
            port=self._port,
            path="/healthz",
            env={**changes, **self._env},
            name=f"server-{self._servers}",
        )
        server.start()
        self._server = server
        expected = self._make_pattern(step.output)
        deadline = time.monotonic() + PATIENCE_SECONDS
        # A terminal shows both in the order in which they come; here what is said on stderr comes after the rest.
        while (found := re.match(expected, self._read_output(server))) is None:
            assert server.is_running(), f"{where}\nended:\n{server.log_tail()}"
            assert time.monotonic() < deadline, f"{where}\nprinted:\n{server.log_tail()}\nthe page has:\n{step.output}"
            time.sleep(0.02)
        self._learn(found)

    def _wait_for_next_second(self) -> None:
        """Be no quicker than a person: keys are listed in their order by the second in which they were made."""
        while int(time.time()) <= self._last_second:
            time.sleep(0.02)

    @staticmethod
    def _read_output(server: Server) -> str:
        return server.stdout_file.read_text("utf-8") + server.stderr_file.read_text("utf-8")

    def _stop_server(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def _make_pattern(self, output: str) -> str:
        """Return a regular expression for what a page shows, in which groups catch what is not known yet."""
        self._groups: dict[str, str] = {}
        lines = [
            r"(?:.*\n)*?" if line == "..." else self._make_line_pattern(line) + r"\n" for line in output.splitlines()
        ]
        return "".join(lines)

    def _make_line_pattern(self, line: str) -> str:
        known = "|".join(re.escape(shown) for shown in sorted(self._known, key=len, reverse=True)) or "(?!)"
        # A key comes before what is known, for its id may be known while its secret is new.
        shapes = {name: f"(?P<{name}>{shape})" for name, shape in _SHAPES.items()}
        parts = "|".join([shapes.pop("key"), f"(?P<known>{known})", *shapes.values()])
        pattern, end = "", 0
        for found in re.finditer(parts, line):
            pattern += re.escape(self.localize(line[end : found.start()]))
            end = found.end()
            pattern += self._make_part_pattern(str(found.lastgroup), found[0])
        return pattern + re.escape(self.localize(line[end:]))

    def _make_part_pattern(self, shape: str, text: str) -> str:
        if shape == "known":
            return re.escape(self._known[text])
        if shape == "key":
            key_id, _, secret = text.partition("/")
            return f"{self._catch(key_id)}/{self._catch(secret)}"
        if shape == "token":
            return self._catch(text)
        return _MEANINGS[shape]

    def _catch(self, text: str) -> str:
        """Return a pattern that catches a value which the page shows, or finds it again within the same output."""
        if text in self._known:
            return re.escape(self._known[text])
        if text in self._groups:
            return f"(?P={self._groups[text]})"
        self._groups[text] = f"group_{len(self._groups)}"
        return f"(?P<{self._groups[text]}>[\\w-]{{{len(text)}}})"

    def _learn(self, found: re.Match[str]) -> None:
        for shown, group in self._groups.items():
            self._known[shown] = found[group]
        self._last_second = int(time.time())


def copy_checkout(folder: Path) -> None:
    """Copy of the checkout what the scripts in bin/ need, so that they leave the real one alone."""
    (folder / "bin").mkdir(parents=True)
    for source in (*(ROOT / "bin").iterdir(), ROOT / "setup.cfg", ROOT / "pyproject.toml"):
        if source.is_file():
            target = folder / source.relative_to(ROOT)
            target.write_bytes(source.read_bytes())
            target.chmod(source.stat().st_mode)
