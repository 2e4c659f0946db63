"""A service under load that is told to reload or to stop answers what it has begun, and loses nothing."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import pytest

from tests.helpers import PATIENCE, wait_until
from tests.servers import Server
from tests.wsgi.support import ask_server, count_rows, make_serve, read_json_log
from tests.wsgi.test_gunicorn import exit_code_of, make_key, wait_for_workers

pytestmark = pytest.mark.real_server

JSON_LOG = '[log]\nformat = "json"\n'
CALLERS = 12


@dataclass(slots=True)
class Load:
    """What callers were told who create invites, each request on a connection of its own.

    Attributes:
        answered: The statuses of all answers but those of a new worker that was busy checking the key.
        busy: How often that was so.
        tokens: The tokens of all invites that were acknowledged.
        refused: Connections that were refused or closed before an answer began.
        broken: Answers that broke off.
        is_ending: Set when callers finish what they are at and leave.
    """

    port: int
    key: str
    answered: list[int] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    busy: int = 0
    refused: int = 0
    broken: int = 0
    is_ending: threading.Event = field(default_factory=threading.Event)

    def call(self) -> None:
        while not self.is_ending.is_set():
            try:
                answer = ask_server(self.port, "/invites_api", headers={"Authorization": f"Bearer {self.key}"})
            except (ConnectionError, http.client.RemoteDisconnected):
                self.refused += 1
                continue
            except (OSError, http.client.HTTPException):
                self.broken += 1
                continue
            if answer.status == 503 and answer.get("Retry-After") and answer.json()["type"].endswith("busy"):
                self.busy += 1
                continue
            self.answered.append(answer.status)
            if answer.status == 201:
                self.tokens.add(answer.token)

    def wait_for(self, more: int) -> None:
        """Return when so many more requests were answered."""
        wanted = len(self.answered) + more
        wait_until(lambda: len(self.answered) >= wanted)


@contextlib.contextmanager
def under_load(server: Server, key: str) -> Iterator[Load]:
    """Let callers create invites meanwhile."""
    load = Load(server.port, key)
    with ThreadPoolExecutor(CALLERS) as pool:
        futures = [pool.submit(load.call) for _ in range(CALLERS)]
        try:
            yield load
        finally:
            load.is_ending.set()
        for future in futures:
            future.result()


def find_tokens(database: Path) -> set[str]:
    """Return the tokens of all invites, read by a connection of its own."""
    connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)
    with contextlib.closing(connection):
        return {str(token) for (token,) in connection.execute("SELECT token FROM invites")}


def reload(server: Server) -> None:
    """Reload, and return when no worker of before is there any more."""
    before = set(server.worker_pids())
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: len(now := set(server.worker_pids())) == len(before) and not now & before)


def test_a_reload_under_load_loses_no_request(tmp_path: Path, database: Path) -> None:
    """Every request that is sent while workers are replaced is answered, and made the invite that it was told of."""
    key = make_key(database)
    with make_serve(tmp_path / "serve", database, workers=3) as server:
        wait_for_workers(server, 3)
        with under_load(server, key) as load:
            for _ in range(4):
                load.wait_for(50)
                reload(server)
            load.wait_for(50)
    assert set(load.answered) == {201}
    assert (load.refused, load.broken) == (0, 0)
    assert find_tokens(database) == load.tokens
    assert len(load.tokens) == len(load.answered)


def test_a_stop_under_load_finishes_what_it_began(tmp_path: Path, database: Path) -> None:
    """Every request is answered, or refused before it did anything: what was acknowledged is there, and no more."""
    key = make_key(database)
    with make_serve(tmp_path / "serve", database, workers=3) as server:
        wait_for_workers(server, 3)
        with under_load(server, key) as load:
            load.wait_for(100)
            os.kill(server.pid, signal.SIGTERM)
            assert exit_code_of(server.pid) == 0
    assert set(load.answered) == {201}
    assert load.broken == 0
    assert load.refused > 0
    assert find_tokens(database) == load.tokens
    assert len(load.tokens) == len(load.answered)


def test_a_stop_in_the_middle_of_a_reload_is_obeyed(tmp_path: Path, database: Path) -> None:
    """A reload that waits for a request under way is cut short by SIGTERM; the request is still answered."""
    key = make_key(database)
    blocker = apsw.Connection(str(database))
    with make_serve(tmp_path / "serve", database, JSON_LOG) as server, ThreadPoolExecutor(1) as pool:
        assert ask_server(server.port, f"/invites_api?key={key}").status == 201
        [old] = server.worker_pids()
        blocker.execute("BEGIN IMMEDIATE")
        asked = pool.submit(ask_server, server.port, f"/invites_api?key={key}")
        wait_until(lambda: is_connected(server.port))
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: [pid for pid in children_of(server.pid) if pid != old] != [])
        os.kill(server.pid, signal.SIGTERM)
        # The new worker ends at once, the old one has something left to do.
        wait_until(lambda: children_of(server.pid) == [old])
        assert not asked.done()
        blocker.execute("ROLLBACK")
        blocker.close()
        assert asked.result().status == 201
        assert exit_code_of(server.pid) == 0
    assert count_rows(database) == 2


def is_connected(port: int) -> bool:
    """Tell whether somebody has a connection to a port that the server has accepted."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        # A connection that was accepted belongs to an inode of its process; one that waits to be accepted has none.
        if fields[1].endswith(f":{port:04X}") and fields[3] == "01" and fields[9] != "0":
            return True
    return False


def wait_for_workers_of(pid: int, count: int) -> None:
    """Return as soon as a process has so many children."""
    wait_until(lambda: len(children_of(pid)) >= count)


def children_of(pid: int) -> list[int]:
    """Return the living children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_worker_that_starts_obeys_at_once(tmp_path: Path, database: Path) -> None:
    """A stop that comes right after a worker was forked is not missed, which would last until the worker is killed."""
    for count in range(1, 5):
        folder = tmp_path / f"serve-{count}"
        server = make_serve(folder, database, JSON_LOG, workers=4)
        with server.stderr_file.open("wb") as log:
            process = subprocess.Popen(server._argv, cwd=folder, stdin=subprocess.DEVNULL, stderr=log)
        try:
            wait_for_workers_of(process.pid, count)
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
        assert "SIGKILL" not in server.stderr_file.read_text()


def test_a_reload_takes_new_settings(tmp_path: Path, database: Path) -> None:
    """What the file says at the time of a reload holds afterwards, but for the address and the number of workers."""
    key = make_key(database)
    with make_serve(tmp_path / "serve", database, JSON_LOG, workers=0) as server:
        wait_for_workers(server, 2)
        config = tmp_path / "serve" / "settings.toml"
        config.write_text(
            f'database = "sqlite:///{database}"\n[http]\nlanding_path = "/join"\nworkers = 5\n'
            '[hosts."example.com"]\nlanding_page = "https://example.com/join?{token}"\n'
        )
        reload(server)
        answer = ask_server(server.port, f"/invites_api?key={key}")
        assert (answer.status, answer["Location"].rpartition("?")[0]) == (201, "https://example.com/join")
        assert ask_server(server.port, f"/join?{answer.token}").status == 200
        log = server.stderr_file.read_text()
        assert "http.listen, http.metrics_listen and http.workers stay as they were until" in log
        # The log is written as text now.
        wait_until(lambda: "INFO" in server.stderr_file.read_text().splitlines()[-1])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        pytest.param("nonsense = 1\n", "nonsense", id="settings"),
        pytest.param('database = "sqlite:////nonexistent/invites.db"\n', "no database at", id="database"),
        pytest.param('database = "memory:"\n', "memory: cannot be served", id="memory"),
        pytest.param('[page]\ntemplates = "nowhere"\n', "nowhere", id="page"),
    ],
)
def test_a_reload_with_a_mistake_changes_nothing(tmp_path: Path, database: Path, settings: str, reason: str) -> None:
    """Where no worker could start with the settings, the log says why, and the workers stay as they are."""
    key = make_key(database)
    with make_serve(tmp_path / "serve", database, JSON_LOG) as server:
        before = server.worker_pids()
        (tmp_path / "serve" / "settings.toml").write_text(settings)
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: "not reloaded, the service goes on as before: " in server.stderr_file.read_text())
        assert ask_server(server.port, f"/invites_api?key={key}").status == 201
        assert server.worker_pids() == before
    [entry] = [entry for entry in read_json_log(server) if "not reloaded" in entry["message"]]
    assert (entry["level"], reason in entry["message"]) == ("error", True)


def test_the_log_says_where_it_listens(tmp_path: Path, database: Path) -> None:
    """gunicorn's line names the address, and from that moment on connections are taken."""
    with make_serve(tmp_path / "serve", database, '[log]\nlevel = "debug"\n', workers=2) as server:
        log = server.stderr_file.read_text()
    assert f"Listening at: http://127.0.0.1:{server.port},http://127.0.0.1:{server.port} (" in log


@pytest.mark.parametrize("sent", [signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2], ids=lambda sent: sent.name)
def test_signals_that_would_harm_are_ignored(tmp_path: Path, database: Path, sent: signal.Signals) -> None:
    """The number of workers is that of the settings, and no second service starts beside this one."""
    with make_serve(tmp_path / "serve", database, workers=2) as server:
        before = wait_for_workers(server, 2)
        os.kill(server.pid, sent)
        wait_until(lambda: "signal ignored" in server.stderr_file.read_text())
        for _ in range(20):
            assert ask_server(server.port, "/healthz").status == 200
        assert server.worker_pids() == before


def test_a_quick_stop_does_not_wait_for_those_who_say_nothing(tmp_path: Path, database: Path) -> None:
    """SIGQUIT ends the service well although somebody is connected and asks nothing."""
    with make_serve(tmp_path / "serve", database) as server, socket.create_connection(("127.0.0.1", server.port)):
        wait_until(lambda: is_connected(server.port))
        os.kill(server.pid, signal.SIGQUIT)
        assert exit_code_of(server.pid) == 0
