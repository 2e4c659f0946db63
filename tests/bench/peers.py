"""Who is measured, and how each is started on empty data."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tests.bench.load import Load
from tests.servers import ROOT, Gunicorn, Prosody, Server, ServerFailed

__all__ = ["PEERS", "Peer", "Service", "Settings"]

HOST = "example.com"


@dataclass(frozen=True, slots=True)
class Settings:
    """How the measurements are made.

    Attributes:
        rounds: How often each peer is measured.
        seconds: How long each measurement runs, after one of ``warmup_seconds`` that is thrown away.
        connections: Connections of the load generator.
        workers: Worker processes of a server that has them.
        threads: Threads in each worker.
        warmup_seconds: How long the load runs before the measurement.
    """

    rounds: int
    seconds: int
    connections: int
    workers: int
    threads: int
    warmup_seconds: int = 1


@dataclass(frozen=True, slots=True)
class Service:
    """A peer at work: its server, and the loads to measure it with, in their order."""

    server: Server
    loads: tuple[Load, ...]


@dataclass(frozen=True, slots=True)
class Peer:
    """Something to measure.

    Attributes:
        slug: Its name on the command line and in the JSON.
        title: Its name in the table.
        find_missing: Says what must be installed before it can run, or None.
        run: Starts it on empty data in the folder given, and stops it.
        is_python: Whether py-spy can look into it.
    """

    slug: str
    title: str
    find_missing: Callable[[], str | None]
    run: Callable[[Path, Settings], AbstractContextManager[Service]]
    is_python: bool = False


def _loads(key: str) -> tuple[Load, Load]:
    key_id, _, secret = key.partition("/")
    wrong = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    return (
        Load("create", f"/invites_api?key={key}", 201),
        Load("refuse", f"/invites_api?key={key_id}/{wrong}", 403),
    )


@contextmanager
def _run_invites_api(folder: Path, settings: Settings) -> Iterator[Service]:
    config = folder / "invites-api.toml"
    # A relative URL would do as well, but this one shows in a log where the data is.
    config.write_text(f"database = {_toml(f'sqlite:///{folder}/invites.db')}\n", "utf-8")
    command = [sys.executable, "-m", "invites_wsgi.cli"]
    key = _create_key([*command, "create", "--config", str(config), HOST, "bench"], folder)
    serve = ["serve", "--config", str(config), "--listen", "127.0.0.1:{port}"]
    serve += ["--workers", str(settings.workers), "--threads", str(settings.threads)]
    # What the caller has set for a service of his own must not reach this one.
    without = {name: None for name in os.environ if name.startswith("INVITES_")}
    with Gunicorn(folder, [*command, *serve], without, path="/healthz", name="invites-api") as server:
        yield Service(server, _loads(key))


def _toml(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _create_key(argv: list[str], folder: Path) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("INVITES_")}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    run = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    lines = run.stdout.split()
    if run.returncode != 0 or not lines:
        raise ServerFailed(f"invites-api create: exit {run.returncode}\n{run.stderr}")
    return lines[-1]


def _find_missing_invites_api() -> str | None:
    return None if importlib.util.find_spec("invites_wsgi.cli") else "this checkout has no invites_wsgi/cli.py"


@contextmanager
def _run_bare(folder: Path, settings: Settings) -> Iterator[Service]:
    # With a socket for each worker no accept race can put nearly all connections on one of them.
    app, options = "tests.bench.bare:application", ["--reuse-port"]
    workers, threads = settings.workers, settings.threads
    with Gunicorn(folder, app, workers=workers, threads=threads, options=options, name="bare") as server:
        yield Service(server, (_loads("id/secret")[0],))


@contextmanager
def _run_prosody(storage: Literal["internal", "sql"], folder: Path, settings: Settings) -> Iterator[Service]:
    del settings  # It is one process with one thread.
    prosody = Prosody(folder, storage)
    key = prosody.create_key(HOST, "bench")
    with prosody:
        yield Service(prosody, _loads(key))


PEERS = (
    Peer("invites-api", "invites-api, SQLite", _find_missing_invites_api, _run_invites_api, is_python=True),
    Peer("bare", "bare Werkzeug, stores nothing", lambda: None, _run_bare, is_python=True),
    Peer("prosody-sqlite", "Prosody, SQLite", Prosody.find_missing, partial(_run_prosody, "sql")),
    Peer("prosody-default", "Prosody, default storage", Prosody.find_missing, partial(_run_prosody, "internal")),
)
