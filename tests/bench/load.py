"""The load on a server: wrk, over connections that are kept, with the status of every answer counted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.servers import quote_lua

__all__ = ["Load", "LoadError", "Result", "find_missing_wrk", "run_load"]

# wrk's own count of errors holds every status above 399: it cannot tell an expected 403 from a 500, or 201 from 200.
# Counting in response() costs about two percent at 8,000 answers a second, the same for every peer.
# A thread of wrk asks one server only; so each server has a thread, and the percentiles are still those of all answers.
_SCRIPT = """
local threads = {}
local ports = {PORTS}
local targets = {TARGETS}
wrk.method = METHOD
wrk.body = BODY
HEADERS

function setup(thread)
  table.insert(threads, thread)
  thread.addr = wrk.lookup("127.0.0.1", ports[(#threads - 1) % #ports + 1])[1]
end

function init(args)
  statuses = {}
end

if #targets > 0 then
  function request()
    asked = (asked or 0) % #targets + 1
    return wrk.format(nil, targets[asked])
  end
end

function response(status)
  local name = tostring(status)
  statuses[name] = (statuses[name] or 0) + 1
end

function done(summary, latency, requests)
  local counts = {}
  for _, thread in ipairs(threads) do
    for name, count in pairs(thread:get("statuses")) do
      counts[name] = (counts[name] or 0) + count
    end
  end
  local fields = {}
  for name, count in pairs(counts) do
    table.insert(fields, string.format('"%s": %d', name, count))
  end
  local errors = summary.errors
  io.write(string.format(
    '\\nRESULT {"seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "statuses": {%s}, '
      .. '"errors": {"connect": %d, "read": %d, "write": %d, "timeout": %d}}\\n',
    summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000, table.concat(fields, ", "),
    errors.connect, errors.read, errors.write, errors.timeout))
end
"""


class LoadError(RuntimeError):
    """wrk did not run, or said nothing that can be read."""


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of request.

    Attributes:
        name: What it is called in a report: ``create``, ``refuse``, ``page``, ``read`` or ``redeem``.
        target: Path and query. It holds a key, if only one that ends with the run.
        status: The status of every right answer.
        targets: What is asked for in turn instead of the one target; empty: that alone.
        method: The method of every request.
        headers: The headers of every request, name -> value, beside ``Host``. They may hold a key too.
        body: The body of every request; None: there is none.
    """

    name: str
    target: str = field(repr=False)
    status: int
    targets: tuple[str, ...] = field(default=(), repr=False)
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of wrk saw.

    Attributes:
        answers: Answers with the expected status.
        seconds: How long it ran.
        p50_ms: The median time from a request to its answer, in milliseconds.
        p99_ms: The 99th percentile of the same.
        unexpected: Whatever else happened, by name and number: ``status 500``, ``timeout``, ``read``.
    """

    answers: int
    seconds: float
    p50_ms: float
    p99_ms: float
    unexpected: Mapping[str, int]

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return self.answers / self.seconds


def find_missing_wrk() -> str | None:
    """Say what to install where wrk is missing, or None."""
    return None if shutil.which("wrk") else "wrk is not installed (Debian: apt install wrk)"


def run_load(urls: Sequence[str], load: Load, *, seconds: int, connections: int) -> Result:
    """Send requests for some time, each connection one after another.

    Args:
        urls: The servers on 127.0.0.1, without a path; each has an equal part of the connections.
        load: What to ask for.
        seconds: For how long, in whole seconds.
        connections: Over how many connections, at least one for each server.

    Returns:
        What came back.

    Raises:
        LoadError: wrk is missing, failed, or could not connect, or there are fewer connections than servers.
    """
    if connections < len(urls):
        raise LoadError(f"{connections} connections are too few for {len(urls)} servers")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_format_script(urls, load))
        script.flush()
        # One thread of wrk is enough for ten thousand answers a second, and takes least from the servers beside it.
        command = ["wrk", "--threads", str(len(urls)), "--connections", str(connections), "--duration", f"{seconds}s"]
        command += ["--timeout", "10s", "--latency", "--header", "Host: example.com", "--script", script.name]
        command += [urls[0] + load.target]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
        except (OSError, subprocess.TimeoutExpired) as error:
            # The command line has the key, and TimeoutExpired would show it.
            raise LoadError(f"wrk failed: {type(error).__name__}") from None
    return _read_result(run, load)


def _format_script(urls: Sequence[str], load: Load) -> str:
    fields = {
        "PORTS": ", ".join(quote_lua(str(urlsplit(url).port)) for url in urls),
        "TARGETS": ", ".join(map(quote_lua, load.targets)),
        "METHOD": quote_lua(load.method),
        "BODY": "nil" if load.body is None else quote_lua(load.body),
        # Here and not in an option of wrk: every user of the machine can see a command line.
        "HEADERS": "\n".join(
            f"wrk.headers[{quote_lua(name)}] = {quote_lua(value)}" for name, value in load.headers.items()
        ),
    }
    # In one go, so that no value is taken for a placeholder.
    return re.sub(r"\b(?:PORTS|TARGETS|METHOD|BODY|HEADERS)\b", lambda match: fields[match[0]], _SCRIPT)


def _read_result(run: subprocess.CompletedProcess[str], load: Load) -> Result:
    lines = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
    if run.returncode != 0 or not lines:
        raise LoadError(f"wrk failed, exit {run.returncode}: {run.stdout[-500:]}{run.stderr[-500:]}")
    found = json.loads(lines[-1].removeprefix("RESULT "))
    statuses: dict[str, int] = found["statuses"]
    answers = statuses.pop(str(load.status), 0)
    unexpected = {f"status {status}": count for status, count in sorted(statuses.items())}
    unexpected |= {name: count for name, count in found["errors"].items() if count}
    return Result(answers, found["seconds"], found["p50_ms"], found["p99_ms"], unexpected)
