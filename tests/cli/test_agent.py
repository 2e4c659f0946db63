"""`invites-api agent`: what it takes, what it says, who may connect, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from invites_core import InvalidHost, StorageError, open_invite_store
from invites_core.stores.agent import AgentStore
from invites_core.stores.agent_socket import listening
from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke, run_command, run_main, url_of
from tests.helpers import NOON, PATIENCE, make_invite, wait_until
from tests.processes import Fork
from tests.wsgi.support import CLEAN_ENVIRONMENT, COMMAND, ask_server, make_serve

T = TypeVar("T")

PROSODY_LIKE, WEB_LIKE, OTHER = 54_321, 54_322, 54_323
"""Users that need not exist; the number of the web process's group is its own."""


@pytest.fixture
def filled(database: Path) -> Path:
    """The path of an empty database."""
    SqliteStore(database).close()
    return database


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    """Where the agent listens."""
    return tmp_path / "agent.sock"


@contextlib.contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command in a process of its own until the end, whatever the test makes of it."""
    environment = {**os.environ, **{name: value or "" for name, value in CLEAN_ENVIRONMENT.items()}}
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        # Nothing that is made may lean on it.
        umask=0,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_for_agent(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Return when an agent has its socket; fail where it ended."""
    wait_until(lambda: path.exists() or process.poll() is not None)
    assert process.poll() is None, process.stderr and process.stderr.read()


def end(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Tell the agent to stop, and return its exit code and what it has logged."""
    process.terminate()
    _, logged = process.communicate(timeout=PATIENCE)
    return process.returncode, logged


@pytest.mark.real_server
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_agent_serves_until_it_is_told_to_stop(filled: Path, socket_path: Path, number: int) -> None:
    """It says what it serves and where, leaves no socket behind, exits with 0, and logs no token."""
    invite = make_invite()
    with running("agent", "--store", url_of(filled), "--listen", socket_path) as process:
        wait_for_agent(socket_path, process)
        mode = socket_path.stat().st_mode
        assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o660)
        assert socket_path.stat().st_gid == socket_path.parent.stat().st_gid
        store = open_invite_store(f"agent://{socket_path}")
        store.add_invites([invite])
        assert store.find_invite(invite.token) == invite
        store.close()
        process.send_signal(number)
        _, logged = process.communicate(timeout=PATIENCE)
    lines = logged.decode().splitlines()
    assert process.returncode == 0
    assert [line.partition("] ")[2] for line in lines] == [
        f"serving the invites of {filled} on {socket_path}",
        "stopped",
    ]
    assert invite.token not in logged.decode()
    # Neither the socket nor the folder that it was made in.
    assert [path.name for path in socket_path.parent.iterdir() if path.name.startswith((".", "agent"))] == []


@pytest.mark.real_server
def test_a_stale_socket_is_replaced_and_a_live_one_is_not(filled: Path, socket_path: Path) -> None:
    """What a killed agent left is in nobody's way; an agent that lives keeps its place."""
    with running("agent", "--store", url_of(filled), "--listen", socket_path) as process:
        wait_for_agent(socket_path, process)
        process.kill()
        process.wait(PATIENCE)
    assert socket_path.exists()
    with running("agent", "--store", url_of(filled), "--listen", socket_path) as process:
        wait_until(lambda: _answers(socket_path))
        second = run_command("agent", "--store", url_of(filled), "--listen", str(socket_path))
        assert (second.returncode, second.stdout) == (3, b"")
        assert second.stderr.decode() == f"Error: cannot listen on {socket_path}: somebody listens there already\n"
        AgentStore(socket_path).close()
        assert end(process)[0] == 0


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param("file", "cannot listen on {path}: there is something else", id="file"),
        pytest.param("no-folder", "cannot listen on {path}: no such file or directory", id="no-folder"),
        pytest.param("long", "cannot listen on {path}: af_unix path too long", id="too-long"),
    ],
)
def test_a_place_that_cannot_be_had_is_one_line(
    invoke: Invoke, filled: Path, tmp_path: Path, make: str, message: str
) -> None:
    """What is in the way stays as it is."""
    path = tmp_path / "place"
    if make == "file":
        path.write_text("mine")
    elif make == "no-folder":
        path = tmp_path / "missing" / "agent.sock"
    elif make == "long":
        folder = tmp_path / ("x" * 120)
        folder.mkdir()
        path = folder / "agent.sock"
    run = invoke("agent", "--store", url_of(filled), "--listen", str(path))
    run.assert_failed(3, message.format(path=path))
    if make == "file":
        assert path.read_text() == "mine"
    assert list(path.parent.glob(".*")) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        pytest.param((), 2, "Missing option '--store'.", id="nothing"),
        pytest.param(("--store", "memory:"), 2, "Missing option '--listen'.", id="no-socket"),
        pytest.param(("--store", "x:y", "--listen", "s"), 2, "--store: there is no store 'x:'", id="unknown-store"),
        pytest.param(
            ("--store", "postgresql://u:hunter2@h/d", "--listen", "s"),
            2,
            "--store: a URL with a password cannot be an argument, which every user can list",
            id="password",
        ),
        pytest.param(
            ("--store", "memory:", "--listen", "s", "--group", "no such group"),
            2,
            "Invalid value for '--group': there is no such group",
            id="group",
        ),
    ],
)
def test_what_is_not_said_right_is_one_line(
    invoke: Invoke, arguments: tuple[str, ...], code: int, message: str
) -> None:
    """Options that are missing or cannot be are named, and nothing is made."""
    invoke("agent", *arguments).assert_failed(code, message)
    assert list(Path.cwd().iterdir()) == []


def test_a_store_that_is_not_there_is_not_made(invoke: Invoke, database: Path, socket_path: Path) -> None:
    """The agent makes no database, and no socket without one."""
    run = invoke("agent", "--store", url_of(database), "--listen", str(socket_path))
    run.assert_failed(3, f"no database at {database}")
    assert not database.exists()
    assert not socket_path.exists()


@pytest.mark.real_server
def test_the_hosts_of_the_settings_are_served_and_no_others(filled: Path, socket_path: Path, tmp_path: Path) -> None:
    """Where the settings list hosts, the agent knows of no invite of another one; else any valid host will do."""
    config = tmp_path / "settings.toml"
    mine, foreign = make_invite(), make_invite(host="example.org")
    for settings, others in (('[hosts."Example.COM"]\n', None), ("", foreign)):
        config.write_text(settings)
        with running("--config", config, "agent", "--store", url_of(filled), "--listen", socket_path) as process:
            wait_for_agent(socket_path, process)
            store = AgentStore(socket_path)
            store.add_invites([mine], if_absent=True)
            with pytest.raises(InvalidHost) if others is None else contextlib.nullcontext():
                store.add_invites([foreign])
            with pytest.raises(InvalidHost):
                store.list_invites("Example.com", now=NOON, limit=1)
            assert store.find_invite(mine.token) == mine
            assert store.find_invite(foreign.token) == others
            store.close()
            assert end(process)[0] == 0


@pytest.mark.real_server
def test_the_service_and_the_command_with_their_invites_behind_an_agent(
    invoke: Invoke, filled: Path, socket_path: Path, tmp_path: Path
) -> None:
    """Keys in a database, invites behind an agent: created over HTTP, listed by the command, told of by healthz."""
    keys = tmp_path / "keys.db"
    config = tmp_path / "settings.toml"
    config.write_text(f'database = "sqlite:///{keys}"\ninvites = "agent:agent.sock"\n')
    with running("agent", "--store", url_of(filled), "--listen", socket_path) as process:
        wait_for_agent(socket_path, process)
        created = invoke("--config", str(config), "create", "example.com", database=None)
        assert created.code == 0
        key = created.out.strip()
        with make_serve(tmp_path / "serve", keys, f'invites = "agent://{socket_path}"') as server:
            answer = ask_server(server.port, "/invites_api", headers={"Authorization": f"Bearer {key}"})
            assert answer.status == 201
            listed = invoke("--config", str(config), "invite", "list", "example.com", "--json", database=None)
            assert [one["token"] for one in json.loads(listed.out)["invites"]] == [answer.token]
            found = invoke("--config", str(config), "check", database=None).out
            assert f"ok   database {filled} behind the agent {socket_path} answers\n" in found
            assert ask_server(server.port, "/healthz").status == 200
            assert end(process)[0] == 0
            wait_until(lambda: ask_server(server.port, "/healthz").status == 503)
            with running("agent", "--store", url_of(filled), "--listen", socket_path) as again:
                wait_for_agent(socket_path, again)
                wait_until(lambda: ask_server(server.port, "/healthz").status == 200)
                assert end(again)[0] == 0
    assert invoke("--config", str(config), "invite", "list", "example.com", database=None).code == 3


@pytest.mark.parametrize("scheme", ["agent", "prosody"])
def test_keys_never_lie_behind_a_socket(invoke: Invoke, scheme: str) -> None:
    """A store of invites alone cannot be the database; the error says where it belongs."""
    run = invoke("list", database=f"{scheme}:///run/x.sock")
    run.assert_failed(2, f"database: {scheme}: holds invites only, no keys; it can be the setting invites")


def as_user(user: int, function: Callable[[], T], *, groups: Sequence[int] = ()) -> Callable[[], T]:
    """Return what calls a function as another user, in a child after a fork; its own group has the same number."""

    def run() -> T:
        os.setgroups(groups)
        os.setgid(user)
        os.setuid(user)
        return function()

    return run


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="agent-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.real_server
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users: run the tests as root")
def test_the_web_process_needs_no_right_on_the_data(open_folder: Path, fork: Fork) -> None:
    """Agent and client are different users: the group of the socket is served, others are not let in."""
    data, run = open_folder / "data", open_folder / "run"
    for folder, group, mode in ((data, PROSODY_LIKE, 0o700), (run, WEB_LIKE, 0o750)):
        folder.mkdir()
        os.chown(folder, PROSODY_LIKE, group)
        folder.chmod(mode)
    database, path = data / "invites.db", run / "agent.sock"
    SqliteStore(database).close()
    for part in data.iterdir():
        os.chown(part, PROSODY_LIKE, PROSODY_LIKE)
    command = ["agent", "--store", url_of(database), "--listen", str(path)]
    agent = fork(as_user(PROSODY_LIKE, partial(run_main, command), groups=[WEB_LIKE]))
    wait_until(path.exists)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (PROSODY_LIKE, WEB_LIKE, 0o660)
    # The folder lets everybody pass now, so that the socket alone decides.
    run.chmod(0o755)

    def use() -> str:
        with pytest.raises(PermissionError):
            database.stat()
        invite = make_invite()
        try:
            store = AgentStore(path)
        except StorageError as error:
            return str(error)
        store.add_invites([invite])
        assert store.find_invite(invite.token) == invite
        return "served"

    assert fork(as_user(WEB_LIKE, use)).result() == "served"
    assert fork(as_user(OTHER, use, groups=[WEB_LIKE])).result() == "served"
    assert fork(as_user(OTHER, use)).result() == f"cannot reach the agent at {path}: permission denied"
    os.kill(agent.pid, signal.SIGTERM)
    assert agent.result() == 0


@pytest.mark.real_server
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users: run the tests as root")
def test_a_group_that_the_agent_is_not_in_is_one_line(open_folder: Path, fork: Fork) -> None:
    """The agent cannot give its socket to a group of others, says so, and leaves nothing behind."""
    os.chown(open_folder, PROSODY_LIKE, WEB_LIKE)
    path = open_folder / "agent.sock"

    def listen() -> str:
        with pytest.raises(StorageError) as caught, listening(path):
            pass
        return str(caught.value)

    said = fork(as_user(PROSODY_LIKE, listen)).result()
    assert said == f"cannot listen on {path}: operation not permitted"
    assert list(open_folder.iterdir()) == []


def test_a_client_that_may_not_connect_is_told(invoke: Invoke, filled: Path, tmp_path: Path) -> None:
    """A command with an agent that is not there says so in one line, with the exit code of the database."""
    config = tmp_path / "settings.toml"
    config.write_text(f'database = "sqlite:///{filled}"\ninvites = "agent:///nowhere/agent.sock"\n')
    run = invoke("--config", str(config), "invite", "list", "example.com", database=None)
    run.assert_failed(3, "cannot reach the agent at /nowhere/agent.sock: no such file or directory")
    with pytest.raises(StorageError):
        open_invite_store("agent:///nowhere/agent.sock")
