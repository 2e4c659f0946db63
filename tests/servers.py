"""Real servers for tests and measurements: started, waited for, and always stopped again.

Each is a context manager over one process in a session of its own, so that what it forks is found and ended with it::

    with Prosody(folder, storage="sql") as prosody:
        key = prosody.create_key("example.com", "My test key")
        urllib.request.urlopen(f"{prosody.url}/invites_api?key={key}")

Nothing here needs pytest, and what a server prints goes to files in its folder, never into a pipe that could fill up.
"""

from __future__ import annotations

import contextlib
import glob
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

__all__ = ["Gunicorn", "Prosody", "Server", "ServerFailed", "free_port", "free_ports", "list_members", "quote_lua"]

ROOT = Path(__file__).resolve().parent.parent
_POLL_SECONDS = 0.02
# The length of sockaddr_un.sun_path on Linux; elsewhere it is a few bytes shorter.
_LONGEST_SOCKET_PATH = 100


class ServerFailed(RuntimeError):
    """A server did not start, or its command failed; the message ends with what it printed last."""


def free_ports(count: int) -> list[int]:
    """Find TCP ports on 127.0.0.1, all different, that nobody listens on (somebody quick can still take one first)."""
    # All of them are held until the last is found: one that was let go could be found again.
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def free_port() -> int:
    """Find one TCP port on 127.0.0.1 that nobody listens on; see ``free_ports``."""
    return free_ports(1)[0]


class Server:
    """Any command that listens on a TCP port of 127.0.0.1.

    ``with`` starts it and waits until it answers; leaving stops it and every process that it started. ``start`` and
    ``stop`` can be called directly; a stopped server can be started again, its output is appended to the same files.
    For one thread at a time.

    Attributes:
        port: The port that it listens on.
        folder: Its folder: the working directory, and where ``stdout_file`` and ``stderr_file`` are.
        start_seconds: How long it may take to answer.
        stop_seconds: How long it may take to end after SIGTERM, before SIGKILL.
    """

    start_seconds = 20.0
    stop_seconds = 10.0

    def __init__(
        self,
        folder: Path,
        argv: Sequence[str],
        *,
        port: int | None = None,
        path: str | None = "/",
        env: Mapping[str, str | None] | None = None,
        name: str = "server",
    ) -> None:
        """Prepare it; nothing runs before ``start``.

        Args:
            folder: Where it runs and where its output goes; made if it is missing.
            argv: The command. ``{port}`` in an argument stands for the port.
            port: The port that it will listen on; None finds a free one.
            path: What to ask over HTTP until any answer comes, of whatever status; None: a port that accepts is enough.
                A server with workers often accepts before its first worker can answer.
            env: Changes to this process's environment; None for a value removes the variable.
            name: What its files and errors are called.
        """
        self.port = free_port() if port is None else port
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stdout_file = self.folder / f"{name}.out"
        self.stderr_file = self.folder / f"{name}.err"
        self._argv = [argument.replace("{port}", str(self.port)) for argument in argv]
        self._path = path
        self._env = dict(env or {})
        self._name = name
        self._printed_before: dict[Path, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address without a path: ``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process that was started (of gunicorn: the arbiter, not a worker).

        Raises:
            ServerFailed: It is not running.
        """
        if self._process is None:
            raise ServerFailed(f"{self._name} is not running")
        return self._process.pid

    def is_running(self) -> bool:
        """Whether it was started, was not stopped, and has not ended by itself."""
        return self._process is not None and not self._ends_within(self._process, 0)

    def worker_pids(self) -> list[int]:
        """The processes that do the work: those of its group without a child in it.

        A single process is its own worker. Just after the start a server may not have made all of them yet.
        """
        members = _group_members(self.pid)
        parents = set(members.values())
        return sorted(pid for pid in members if pid not in parents)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of what it printed since its last start, stdout first."""
        tails = []
        for file, start in self._printed_before.items():
            printed = file.read_bytes()[start:].decode("utf-8", "replace").splitlines()
            if printed:
                tails.append("\n".join([f"--- {file.name}", *printed[-lines:]]))
        return "\n".join(tails) or "(it printed nothing)"

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            ServerFailed: The command is missing, ended, or did not answer in time. Nothing is left running.
        """
        if self._process is not None:
            raise ServerFailed(f"{self._name} was started already")
        # Somebody else's answer would pass for that of this server, while it still tries to bind.
        if self._answers(None):
            raise ServerFailed(f"{self._name} cannot start: somebody listens on port {self.port}")
        try:
            with self.stdout_file.open("ab") as out, self.stderr_file.open("ab") as err:
                self._printed_before = {self.stdout_file: out.tell(), self.stderr_file: err.tell()}
                self._process = subprocess.Popen(
                    self._argv,
                    cwd=self.folder,
                    env=_environment(self._env),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
        except OSError as error:
            raise ServerFailed(f"{self._name} could not be started: {error}") from error
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL for whatever is left of its process group. Twice is once."""
        if self._process is not None and not self._ends_within(self._process, 0):
            self._process.terminate()
            self._ends_within(self._process, self.stop_seconds)
        self.kill()

    def kill(self) -> None:
        """End it and all that it started by SIGKILL, at once, as a crash would. Twice is once."""
        process, self._process = self._process, None
        if process is None:
            return
        # Its first process is not reaped before this line, so the group's number cannot have gone to somebody else.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + self.stop_seconds
        while _group_members(process.pid) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.start_seconds
        while not self._answers(self._path) or self._ends_within(process, 0):
            if self._ends_within(process, _POLL_SECONDS):
                self.kill()
                raise ServerFailed(f"{self._name} ended at its start, exit {process.returncode}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                waited = f"did not answer on port {self.port} within {self.start_seconds:g} s"
                raise ServerFailed(f"{self._name} {waited}\n{self.log_tail()}")

    def _answers(self, path: str | None) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.connect()
            if path is not None:
                connection.request("GET", path, headers={"Connection": "close"})
                connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    @staticmethod
    def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
        # WNOWAIT leaves the reaping to kill(): until then its number, which is its group's too, stays its own.
        deadline = time.monotonic() + seconds
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True


class Gunicorn(Server):
    """A WSGI app under gunicorn with threads, or any other command that serves one."""

    def __init__(
        self,
        folder: Path,
        app: str | Sequence[str],
        env: Mapping[str, str | None] | None = None,
        *,
        port: int | None = None,
        workers: int = 2,
        threads: int = 8,
        options: Sequence[str] = (),
        path: str | None = "/",
        python: str = sys.executable,
        name: str = "gunicorn",
    ) -> None:
        """Prepare the server; the arguments not named here are those of ``Server``.

        Args:
            app: What gunicorn is to serve, ``module:name`` or ``module:factory()``; or a whole command, in which
                ``{port}`` stands for the port, and which decides itself about workers and threads.
            env: Changes to the environment. The modules of this repository can be imported without being installed.
            workers: Worker processes.
            threads: Threads in each worker.
            options: More arguments for gunicorn.
            python: The Python that has gunicorn; of no account where ``app`` is a command.
        """
        argv = [app] if isinstance(app, str) else list(app)
        if isinstance(app, str):
            command = [python, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", "--worker-class", "gthread"]
            argv = [*command, f"--workers={workers}", f"--threads={threads}", "--no-control-socket", *options, app]
        search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        super().__init__(folder, argv, port=port, path=path, env={"PYTHONPATH": search, **(env or {})}, name=name)


_PROSODY_MODULES = Path("/usr/lib/prosody/modules")
_PROSODY_CONFIG = """\
run_as_root = {as_root}
data_path = {folder}
pidfile = {pidfile}
log = {{ info = "*console" }}
http_ports = {{ {http_port} }}
https_ports = {{}}; http_interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {c2s_port} }}; c2s_direct_tls_ports = {{}}; c2s_interfaces = {{ "127.0.0.1" }}; s2s_ports = {{}}
c2s_require_encryption = false; allow_unencrypted_plain_auth = true
allow_registration = true; registration_invite_only = true
plugin_paths = {{ {modules} }}
modules_enabled = {{
  "roster", "saslauth", "disco", "admin_shell", "http", "register",
  "invites", "invites_register", "invites_api", "invites_page",
}}
invites_page_external = true
invites_page = "https://example.com/invite?{{invite.token}}"
storage = {storage}
sql = {sql}
{extra}
"""


class Prosody(Server):
    """A Prosody with ``mod_invites_api`` and the modules that register with an invite, on data of its own.

    Needs Debian's packages ``prosody`` and ``prosody-modules``, and for ``storage="sql"`` ``lua-dbi-sqlite3``, or
    ``lua-dbi-postgresql`` with what `sql_on_postgresql` gives. Its HTTP server answers by host name, so send
    ``Host: example.com``.

    Attributes:
        http_port: Where ``/invites_api`` is; the same as ``port``.
        c2s_port: Where clients connect and register, without TLS.
        socket: Its admin socket.
        config_file: Its configuration.
    """

    def __init__(
        self,
        folder: Path,
        storage: Literal["internal", "sql"] = "internal",
        *,
        hosts: Sequence[str] = ("example.com",),
        sql: str = '{ driver = "SQLite3", database = "prosody.sqlite" }',
        extra: str = "",
    ) -> None:
        """Write its configuration; nothing runs before ``start``.

        Args:
            folder: Where its data, configuration, output and admin socket are.
            storage: ``internal``, its default, which is a file for each store, or ``sql``.
            hosts: The hosts that it serves.
            sql: The option ``sql`` as a Lua table, used with ``storage="sql"``.
            extra: More lines of configuration, for all hosts.

        Raises:
            ValueError: The path of the folder is too long for the admin socket.
        """
        self.http_port, self.c2s_port = free_ports(2)
        super().__init__(folder, [], port=self.http_port, path="/invites_api", name="prosody")
        self.socket = self.folder / "prosody.sock"
        self.config_file = self.folder / "prosody.cfg.lua"
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET_PATH:
            raise ValueError(f"too long a path for a socket: {self.socket}")
        self._argv = ["prosody", "-F", "--config", str(self.config_file)]
        config = _PROSODY_CONFIG.format(
            as_root="true" if os.geteuid() == 0 else "false",
            folder=quote_lua(self.folder),
            pidfile=quote_lua(self.folder / "prosody.pid"),
            http_port=self.http_port,
            c2s_port=self.c2s_port,
            modules=quote_lua(_PROSODY_MODULES),
            storage=quote_lua(storage),
            sql=sql,
            extra=extra,
        )
        config += "".join(f"VirtualHost {quote_lua(host)}\n" for host in hosts)
        self.config_file.write_text(config, "utf-8")

    @staticmethod
    def find_missing() -> str | None:
        """Say in a sentence what must be installed before a Prosody can start; None where nothing is missing."""
        if not (shutil.which("prosody") and shutil.which("prosodyctl")):
            return "Prosody is not installed (Debian: apt install prosody prosody-modules lua-dbi-sqlite3)"
        if not (_PROSODY_MODULES / "mod_invites_api").exists():
            return "Prosody's community modules are not installed (Debian: apt install prosody-modules)"
        return None

    @staticmethod
    def find_missing_postgresql() -> str | None:
        """Say the same of a Prosody that stores in PostgreSQL."""
        if missing := Prosody.find_missing():
            return missing
        # Debian puts the drivers of Lua's DBI into a folder for each version of Lua.
        if not glob.glob("/usr/lib/*/lua/*/dbd/postgresql.so"):
            return "Prosody's driver for PostgreSQL is not installed (Debian: apt install lua-dbi-postgresql)"
        return None

    @staticmethod
    def sql_on_postgresql(url: str) -> str:
        """Return the argument ``sql`` for a database, ``postgresql://USER[:PASSWORD]@HOST:PORT/DATABASE``."""
        parts = urllib.parse.urlsplit(url)
        fields = {
            "driver": "PostgreSQL",
            "database": parts.path.removeprefix("/"),
            "username": parts.username,
            "password": parts.password,
            "host": parts.hostname,
        }
        table = "".join(f"{name} = {quote_lua(value)}, " for name, value in fields.items() if value is not None)
        return f"{{ {table}port = {parts.port or 5432} }}"

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``prosodyctl`` on this Prosody, running or not, and give back its exit status and what it printed."""
        command = ["prosodyctl", "--config", str(self.config_file), *arguments]
        quiet = subprocess.DEVNULL
        return subprocess.run(command, cwd=self.folder, stdin=quiet, capture_output=True, text=True, timeout=60)

    def create_key(self, host: str, name: str) -> str:
        """Make an API key and return it, ``ID/SECRET``; with SQLite not under load, as it bears one writer only.

        Raises:
            ServerFailed: The command failed.
        """
        run = self.ctl("mod_invites_api", "create", host, name)
        # It prints its warnings on stdout too; the key is the last line that looks like one.
        found = re.findall(r"^[\w-]+/[\w-]+$", run.stdout, re.MULTILINE)
        if run.returncode != 0 or not found:
            raise ServerFailed(f"prosodyctl mod_invites_api create: exit {run.returncode}\n{run.stdout}{run.stderr}")
        return str(found[-1])


def quote_lua(text: str | Path) -> str:
    """Quote a string for Lua; a byte that could end it or begin an escape is written as a number."""
    escaped = re.sub(r'[\x00-\x1f"\\]', lambda match: f"\\{ord(match[0]):03d}", str(text))
    return f'"{escaped}"'


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    merged = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def list_members(group: int) -> list[int]:
    """Return the living processes of a process group."""
    return sorted(_group_members(group))


def _group_members(group: int) -> dict[int, int]:
    """Find the living processes of a process group in /proc, number -> number of its parent; none without a /proc."""
    members = {}
    for file in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in the second field may hold spaces and brackets; what follows its last bracket is plain.
            fields = Path(file).read_text("utf-8", "replace").rpartition(")")[2].split()
            state, parent, its_group, threads = fields[0], int(fields[1]), int(fields[2]), int(fields[17])
            # A zombie with threads is about to end: until the last of them has, its sockets and files are open.
            if its_group == group and (state != "Z" or threads > 1):
                members[int(file.split("/")[2])] = parent
    return members
