"""Who is measured, and how each is started on empty data."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from tests.bench.load import Load
from tests.servers import ROOT, Gunicorn, Prosody, Server, ServerFailed

__all__ = [
    "HOST",
    "PEERS",
    "OpenDatabase",
    "Peer",
    "RunPeer",
    "Service",
    "Settings",
    "creating_only",
    "find_missing_invites_api",
    "make_loads",
    "new_sqlite",
    "run_invites_api",
]

HOST = "example.com"

OpenDatabase = Callable[[Path], AbstractContextManager[str]]
"""Gives the URL of a database for one measurement, whose folder is the argument, and takes it away at the end."""


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
    """A peer at work: its servers, and the loads to measure it with, in their order."""

    servers: tuple[Server, ...]
    loads: tuple[Load, ...]

    @property
    def urls(self) -> list[str]:
        """The addresses of its servers, without a path."""
        return [server.url for server in self.servers]

    def worker_pids(self) -> list[int]:
        """The processes that do the work, of all its servers."""
        return [pid for server in self.servers for pid in server.worker_pids()]


RunPeer = Callable[[Path, Settings], AbstractContextManager[Service]]
"""Starts a peer on data in the folder given, and stops it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Something to measure.

    Attributes:
        slug: Its name on the command line and in the JSON.
        title: Its name in the table.
        find_missing: Says what must be installed before it can run, or None.
        run: Starts it on empty data in the folder given, and stops it.
        is_python: Whether py-spy can look into it.
        overrides: The settings that are its own, name -> value.
        find_versions: Gives the versions of what it has in an environment of its own, name -> version; asked where
            nothing is missing.
    """

    slug: str
    title: str
    find_missing: Callable[[], str | None]
    run: RunPeer
    is_python: bool = False
    overrides: Mapping[str, int] = field(default_factory=dict)
    find_versions: Callable[[], Mapping[str, str]] = dict

    def adjust(self, settings: Settings) -> Settings:
        """Return the settings as they are for this peer."""
        return replace(settings, **self.overrides)


def make_loads(key: str) -> tuple[Load, Load]:
    """Return the loads for a server that has this key, creations first."""
    key_id, _, secret = key.partition("/")
    wrong = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    return (
        Load("create", f"/invites_api?key={key}", 201),
        Load("refuse", f"/invites_api?key={key_id}/{wrong}", 403),
    )


@contextmanager
def creating_only(run: RunPeer, folder: Path, settings: Settings) -> Iterator[Service]:
    """Run a peer that is measured when it creates, and under no other load."""
    with run(folder, settings) as service:
        yield replace(service, loads=service.loads[:1])


@contextmanager
def new_sqlite(folder: Path) -> Iterator[str]:
    """Give the URL of a SQLite file in a folder; the file is made by whoever opens it."""
    # A relative URL would do as well, but this one shows in a log where the data is.
    yield f"sqlite:///{folder}/invites.db"


@contextmanager
def run_invites_api(
    open_database: OpenDatabase,
    nodes: int,
    folder: Path,
    settings: Settings,
    *,
    invites: str | None = None,
    policy: Sequence[str] = (),
    metrics: str | None = None,
) -> Iterator[Service]:
    """Serve a database, with a key of its own, by several servers of the command at once.

    Args:
        open_database: Gives the database.
        nodes: How many servers.
        folder: Where their configuration and output go.
        settings: How many workers they have together, and how many threads each of those.
        invites: The URL of the store of the invites; None: they are in the database.
        policy: Options for the creation of the key.
        metrics: Where the metrics of the one server are to be had; None: nowhere.
    """
    config = folder / "invites-api.toml"
    command = [sys.executable, "-m", "invites_wsgi.cli"]
    serve = ["serve", "--config", str(config), "--listen", "127.0.0.1:{port}"]
    # Two nodes have no more processors here than one.
    serve += ["--workers", str(max(1, settings.workers // nodes)), "--threads", str(settings.threads)]
    # What the caller has set for a service of his own must not reach this one.
    without = {name: None for name in os.environ if name.startswith("INVITES_")}
    with open_database(folder) as url, ExitStack() as stack:
        elsewhere = "" if invites is None else f"invites = {_toml(invites)}\n"
        counted = "" if metrics is None else f"[http]\nmetrics_listen = {_toml(metrics)}\n"
        config.write_text(f"database = {_toml(url)}\n{elsewhere}{counted}", "utf-8")
        key = _create_key([*command, "create", "--config", str(config), HOST, "bench", *policy], folder)
        servers = [
            Gunicorn(folder, [*command, *serve], without, path="/healthz", name=f"invites-api-{number}")
            for number in range(nodes)
        ]
        yield Service(tuple(stack.enter_context(server) for server in servers), make_loads(key))


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


def find_missing_invites_api() -> str | None:
    """Say what is missing before the service can start, or None."""
    return None if importlib.util.find_spec("invites_wsgi.cli") else "this checkout has no invites_wsgi/cli.py"


@contextmanager
def _run_bare(folder: Path, settings: Settings) -> Iterator[Service]:
    # With a socket for each worker no accept race can put nearly all connections on one of them.
    app, options = "tests.bench.bare:application", ["--reuse-port"]
    workers, threads = settings.workers, settings.threads
    with Gunicorn(folder, app, workers=workers, threads=threads, options=options, name="bare") as server:
        yield Service((server,), (make_loads("id/secret")[0],))


@contextmanager
def _run_prosody(storage: Literal["internal", "sql"], folder: Path, settings: Settings) -> Iterator[Service]:
    del settings  # It is one process with one thread.
    prosody = Prosody(folder, storage)
    key = prosody.create_key(HOST, "bench")
    with prosody:
        yield Service((prosody,), make_loads(key))


PEERS = (
    Peer(
        "invites-api",
        "invites-api, SQLite",
        find_missing_invites_api,
        partial(run_invites_api, new_sqlite, 1),
        is_python=True,
    ),
    Peer("bare", "bare Werkzeug, stores nothing", lambda: None, _run_bare, is_python=True),
    Peer("prosody-sqlite", "Prosody, SQLite", Prosody.find_missing, partial(_run_prosody, "sql")),
    Peer("prosody-default", "Prosody, default storage", Prosody.find_missing, partial(_run_prosody, "internal")),
)
