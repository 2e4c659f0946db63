"""`invites-api serve`: what it says before it serves, and why it does not."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import LANDING_NOTE, Invoke, run_command, url_of
from tests.helpers import PATIENCE, wait_until
from tests.servers import free_port
from tests.wsgi.support import COMMAND, ask_server, make_serve


@pytest.fixture
def filled(database: Path) -> Path:
    """The path of an empty database."""
    SqliteStore(database).close()
    return database


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


class HideGunicorn:
    """Finds no gunicorn, as where it is not installed."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == "gunicorn":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class FakeServer:
    """Stands where gunicorn would start, and keeps what it was given."""

    started: list[Any]

    def __init__(self, settings: Any, load_again: Any) -> None:
        del load_again
        self._settings = settings

    def run(self) -> None:
        FakeServer.started.append(self._settings)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings that servers were started with, none of which really starts."""
    FakeServer.started = []
    monkeypatch.setattr("invites_wsgi.server.Server", FakeServer)
    return FakeServer.started


def test_an_address_that_is_taken_is_one_line(filled: Path, taken_port: int) -> None:
    """Who listens there already is noticed at once, before any worker is started."""
    run = run_command("--database", url_of(filled), "serve", "--listen", f"127.0.0.1:{taken_port}")
    assert (run.returncode, run.stdout) == (1, b"")
    assert run.stderr.decode() == f"Error: cannot listen on 127.0.0.1:{taken_port}: address already in use\n"


def test_an_address_of_another_machine_is_one_line(invoke: Invoke, filled: Path) -> None:
    """An address that this machine does not have is named."""
    assert filled.exists()
    run = invoke("serve", "--listen", "192.0.2.1:5280")
    run.assert_failed(1, "cannot listen on 192.0.2.1:5280: cannot assign requested address")


@pytest.mark.real_server
def test_a_second_service_on_the_same_address_is_one_line(invoke: Invoke, filled: Path, tmp_path: Path) -> None:
    """A service is never joined by another one on its port, which would take half of its requests."""
    with make_serve(tmp_path / "serve", filled) as server:
        address = f"127.0.0.1:{server.port}"
        run = invoke("serve", "--listen", address)
        run.assert_failed(1, f"cannot listen on {address}: address already in use")
        assert ask_server(server.port, "/healthz").status == 200


@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "localhost:{port}", "0.0.0.0:{port}"])
def test_what_serve_says_first(invoke: Invoke, filled: Path, started: list[Any], form: str) -> None:
    """Before it serves, the command tells where, from which database, and where invites will point; nothing else."""
    listen = form.format(port=free_port())
    run = invoke("serve", "--listen", listen)
    assert (run.code, run.out) == (0, "")
    assert run.err == (
        f"Serving http://{listen}/invites_api with the database {filled}\n"
        "Invites will point to https://HOST/invite?TOKEN of each key's host, where /invite of this service, or another"
        " page for invites, must answer.\n"
    )
    [settings] = started
    assert (settings.listen, settings.workers, settings.threads) == (listen, 2, 8)


def test_serve_tells_the_links_of_every_host(invoke: Invoke, filled: Path, tmp_path: Path, started: list[Any]) -> None:
    """With hosts in the settings each one's links are told."""
    config = tmp_path / "settings.toml"
    config.write_text(
        f'[http]\nlisten = "127.0.0.1:{free_port()}"\nworkers = 3\n[hosts."a.example"]\n'
        '[hosts."b.example"]\nlanding_page = ""\n'
    )
    run = invoke("--config", str(config), "serve", "--threads", "4", database=filled)
    first = LANDING_NOTE.format(host="a.example", ascii="a.example")
    second = "Invites of b.example are xmpp: links, which open in a chat app; no page is needed.\n"
    assert run.err.partition("\n")[2] == first + second
    [settings] = started
    assert (settings.workers, settings.threads) == (3, 4)


def test_a_unix_socket_is_told_as_it_is(invoke: Invoke, filled: Path, tmp_path: Path, started: list[Any]) -> None:
    """A path to listen on is no http address."""
    run = invoke("serve", "--listen", f"unix:{tmp_path}/s")
    assert run.err.startswith(f"Serving /invites_api on the socket {tmp_path}/s with the database {filled}\n")
    assert started[0].listen == f"unix:{tmp_path}/s"


def test_a_store_in_memory_is_not_served(invoke: Invoke, tmp_path: Path, filled: Path, started: list[Any]) -> None:
    """Keys or invites that every worker would have for itself are refused with the reason."""
    reason = "memory: cannot be served: every worker would have its own, and no command reaches it"
    invoke("serve", database="memory:").assert_failed(2, reason)
    config = tmp_path / "settings.toml"
    config.write_text('invites = "memory:"\n')
    invoke("--config", str(config), "serve", database=filled).assert_failed(2, reason)
    assert started == []


@pytest.mark.real_server
def test_a_unix_socket_is_for_its_owner_and_group(tmp_path: Path, filled: Path) -> None:
    """A proxy of the group can connect to the socket, and nobody else."""
    path = tmp_path / "s"
    arguments = [*COMMAND, "--database", url_of(filled), "serve", "--workers", "1", "--listen", f"unix:{path}"]
    process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return client.recv(12) == b"HTTP/1.1 200"
        return False

    try:
        wait_until(answers)
        assert stat.S_IMODE(path.stat().st_mode) == 0o770
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_nothing_of_the_database_is_open_when_gunicorn_starts(
    invoke: Invoke, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection is carried over into the workers, which are forked."""
    seen: list[list[str]] = []

    class Looking:
        def __init__(self, settings: Any, load_again: Any) -> None:
            del settings, load_again

        def run(self) -> None:
            links = [os.readlink(link) for link in list(Path("/proc/self/fd").iterdir()) if link.exists()]
            seen.append([link for link in links if link.startswith(str(filled))])

    monkeypatch.setattr("invites_wsgi.server.Server", Looking)
    assert invoke("serve", "--listen", f"127.0.0.1:{free_port()}").code == 0
    assert seen == [[]]


def test_without_gunicorn_serve_says_what_to_install(
    invoke: Invoke, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server is not installed the command that installs it is told."""
    assert filled.exists()
    for name in [name for name in sys.modules if name.partition(".")[0] == "gunicorn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "invites_wsgi.server", raising=False)
    monkeypatch.delitem(sys.modules, "invites_wsgi.gunicorn_logs", raising=False)
    monkeypatch.setattr(sys, "meta_path", [HideGunicorn(), *sys.meta_path])
    invoke("serve").assert_failed(1, "serve needs gunicorn: pip install 'invites-api[server]'")


def test_what_is_wrong_is_said_before_any_worker_starts(database: Path) -> None:
    """A missing database is one line and exit 3, not a traceback in the log of every worker."""
    run = run_command("--database", url_of(database), "serve", "--listen", f"127.0.0.1:{free_port()}")
    assert (run.returncode, run.stdout) == (3, b"")
    assert run.stderr.decode() == f"Error: no database at {database}\n"


@pytest.mark.real_server
def test_the_environment_of_gunicorn_has_no_say(filled: Path, tmp_path: Path) -> None:
    """Variables that gunicorn reads by itself change nothing of the service."""
    server = make_serve(tmp_path / "serve", filled, '[log]\nlevel = "debug"\n')
    server._env |= {
        "GUNICORN_CMD_ARGS": "--bind=127.0.0.1:1 --access-logfile=-",
        "WEB_CONCURRENCY": "5",
        "FORWARDED_ALLOW_IPS": "*",
        "PORT": "1",
    }
    with server:
        answer = ask_server(server.port, "/healthz", headers={"X-Forwarded-For": "203.0.113.9"})
        assert answer.status == 200
        log = server.stderr_file.read_text()
    assert server.stdout_file.read_text() == ""
    assert log.count("Booting worker") == 1
    assert "client=127.0.0.1" in log
    configured = re.search(r"Current configuration:(.*)", log)
    assert configured is not None
    assert r"workers: 1\n" in configured[1]


def test_serve_does_not_read_standard_input(filled: Path, taken_port: int) -> None:
    """The command does not wait for anything to be typed."""
    run = run_command(
        "--database", url_of(filled), "serve", "--listen", f"127.0.0.1:{taken_port}", stdin=subprocess.DEVNULL
    )
    assert run.returncode == 1
