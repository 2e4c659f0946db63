"""A PostgreSQL server of the tests' own: made, started, killed, started again, and gone afterwards.

It is made by the programs of the system, in a folder under /tmp, and listens on a Unix socket there and on 127.0.0.1::

    with PostgresqlServer() as server:
        store = open_store(server.url)

Nothing here needs pytest, and nothing touches a server that the system runs.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

import psycopg
from psycopg import sql

from tests.servers import Server, ServerFailed, free_port

__all__ = ["APPLICATION", "INSTALL", "PostgresqlServer", "find_programs", "list_connections", "new_database"]

APPLICATION = "invites-api"
"""What the application names of all connections of the product begin with."""

INSTALL = "PostgreSQL is not installed (Debian: apt install postgresql)"
_POLL_SECONDS = 0.01
# A connection that was closed is listed until its process has ended.
_SECONDS_TO_LEAVE = 5.0
# What one process of a crashed server holds must be in its folder: /dev/shm would keep it.
_SETTINGS = {"dynamic_shared_memory_type": "mmap", "shared_buffers": "32MB", "log_min_messages": "warning"}
# What is written reaches the kernel and outlives any process, only not the machine's end.
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}


def find_programs(place: Path | None = None) -> Path | None:
    """Find the folder in which ``initdb`` and ``postgres`` are; None if there is none.

    Args:
        place: That folder, or either program; None looks on PATH, asks ``pg_config``, and then looks where Debian has
            them, which is not on PATH, for the newest version.
    """
    if place is not None:
        return next((folder for folder in (place, place.parent) if _has_programs(folder)), None)
    found = [Path(program).resolve().parent for name in ("postgres", "initdb") if (program := shutil.which(name))]
    if config := shutil.which("pg_config"):
        asked = subprocess.run([config, "--bindir"], capture_output=True, text=True, timeout=10)
        found.append(Path(asked.stdout.strip()))
    debian = glob.glob("/usr/lib/postgresql/*/bin")
    found += map(Path, sorted(debian, key=lambda name: [int(part) for part in re.findall(r"\d+", name)], reverse=True))
    return next(filter(_has_programs, found), None)


def _has_programs(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) and (folder / name).is_file() for name in ("initdb", "postgres"))


class PostgresqlServer(Server):
    """A PostgreSQL with an empty database ``postgres`` and the superuser ``postgres``, on data of its own.

    ``with`` starts it; leaving stops it and removes all it had. ``stop``, ``kill`` and ``start`` in between keep the
    data, the port and the folder. Root runs it as another user, as PostgreSQL asks for.

    Attributes:
        password: The superuser's, or None where everybody is trusted.
        socket_folder: Where its Unix socket is: the ``host`` of a connection.
        log_file: What it says: errors of statements too.
    """

    start_seconds = 60.0
    stop_seconds = 30.0

    def __init__(
        self,
        *,
        durable: bool = False,
        auth: Literal["trust", "scram-sha-256"] = "trust",
        settings: Mapping[str, str] | None = None,
        programs: Path | None = None,
    ) -> None:
        """Make its folder and its data; nothing runs before ``start``.

        Args:
            durable: Whether a commit waits for the disk. Without, it outlives every process but no loss of power.
            auth: What a client must show.
            settings: More settings, as in ``postgresql.conf``; they win.
            programs: The folder of ``initdb`` and ``postgres``; None finds it.

        Raises:
            ServerFailed: PostgreSQL is not installed, or ``initdb`` failed. Nothing is left behind.
        """
        found = programs or find_programs()
        if found is None:
            raise ServerFailed(INSTALL)
        self.programs = found
        self._user = _other_user() if os.geteuid() == 0 else None
        # A short path, for the socket's sake, and not below a folder of pytest, which is closed to another user.
        folder = Path(tempfile.mkdtemp(prefix="invites-pg-", dir="/tmp"))
        super().__init__(folder, [], port=free_port(), path="postmaster.pid", name="postgresql")
        self.password = secrets.token_hex(16) if auth != "trust" else None
        self.socket_folder = self.folder
        self.log_file = self.stderr_file
        self._data = self.folder / "data"
        options = {**_SETTINGS, **({} if durable else _NOT_DURABLE), **(settings or {})}
        options |= {"port": str(self.port), "listen_addresses": "127.0.0.1", "unix_socket_directories": str(folder)}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        self._argv = self._as_user("postgres", "-D", str(self._data), *arguments)
        try:
            self._make_data(auth)
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address of its database ``postgres``, over TCP."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The address of one of its databases, over TCP."""
        password = f":{self.password}" if self.password else ""
        return f"postgresql://postgres{password}@127.0.0.1:{self.port}/{database}"

    def stop(self) -> None:
        """End it in order, without waiting for its clients to leave. Twice is once."""
        # SIGTERM would wait until the last client has gone.
        self.kill(signal.SIGINT)

    def restart(self) -> None:
        """Stop it in order and start it again; its clients lose their connections."""
        self.stop()
        self.start()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it by a signal, and wait until it has ended. Twice is once.

        Args:
            number: SIGKILL goes to all its processes, as if the machine had crashed. SIGQUIT is PostgreSQL's immediate
                shutdown, SIGINT its fast one; whatever is left after ``stop_seconds`` is killed.
        """
        if self._process is None:
            return
        if number != signal.SIGKILL:
            os.kill(self._process.pid, number)
            self._ends_within(self._process, self.stop_seconds)
        # Each of its processes is in a group of its own. Stopped, the first of them makes no more.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGSTOP)
        processes = _children_of(self._process.pid)
        super().kill()
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        while any(Path(f"/proc/{process}/cwd").exists() for process in processes):
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.stop()
        with contextlib.suppress(OSError, IndexError, ValueError):
            # A killed server leaves the shared memory behind that guards its folder; its number stands in this file.
            segment = (self._data / "postmaster.pid").read_text().splitlines()[6].split()[1]
            subprocess.run(["ipcrm", "-m", str(int(segment))], capture_output=True, timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_data(self, auth: str) -> None:
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        # Others may look in: the socket is guarded by what a client must show.
        self.folder.chmod(0o755)
        secret_file = self.folder / "password"
        secret_file.write_text(self.password or "unused", "utf-8")
        options = ["--username=postgres", f"--auth={auth}", f"--pwfile={secret_file}", "--no-sync", "--no-instructions"]
        argv = self._as_user("initdb", "-D", str(self._data), "--encoding=UTF8", "--locale=C", *options)
        made = subprocess.run(argv, cwd=self.folder, capture_output=True, text=True, timeout=120)
        secret_file.unlink()
        if made.returncode != 0:
            raise ServerFailed(f"initdb: exit {made.returncode}\n{made.stdout}{made.stderr}")

    def _as_user(self, program: str, *arguments: str) -> list[str]:
        # It is replaced by the program, so that the number of the process is the program's.
        change = ["setpriv", f"--reuid={self._user}", f"--regid={_group_of(self._user)}", "--clear-groups", "--"]
        return [*(change if self._user else []), str(self.programs / program), *arguments]

    def _answers(self, path: str | None) -> bool:
        if path is None:
            return super()._answers(None)
        # The port accepts before it can serve; this file says when it can, and a killed server leaves one behind too.
        with contextlib.suppress(OSError, IndexError):
            lines = (self._data / path).read_text().splitlines()
            return lines[0] == str(self.pid) and lines[7].strip() == "ready"
        return False


def _other_user() -> str:
    names = {account.pw_name for account in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _group_of(user: str | None) -> int:
    return pwd.getpwnam(user).pw_gid if user else os.getegid()


def _children_of(parent: int) -> list[int]:
    children = []
    for file in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in the second field may hold spaces and brackets; what follows its last bracket is plain.
            if int(Path(file).read_text("utf-8", "replace").rpartition(")")[2].split()[1]) == parent:
                children.append(int(file.split("/")[2]))
    return children


@contextlib.contextmanager
def new_database(url: str, *, seconds_to_leave: float = _SECONDS_TO_LEAVE) -> Iterator[str]:
    """Make an empty database on a server, give its address, and drop it at the end.

    Args:
        url: A database of that server whose user may create others.
        seconds_to_leave: How long to wait at the end for the product's last connection to go.

    Raises:
        AssertionError: At the end a connection of the product was open. The database is gone all the same.
    """
    name = f"invites_test_{secrets.token_hex(6)}"
    database = sql.Identifier(name)
    with _connect(url) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0").format(database))
    left: list[str] = []
    try:
        yield re.sub(r"^(\w+://[^/?]*)(/[^?]*)?", rf"\g<1>/{name}", url)
        left = list_connections(url, name, seconds_to_leave)
    finally:
        with _connect(url) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
    assert left == [], f"connections were left open: {left}"


def list_connections(url: str, database: str, seconds_to_leave: float = _SECONDS_TO_LEAVE) -> list[str]:
    """Say what the product's open connections to a database are doing; one line for each, and empty if there is none.

    Args:
        url: A database of the same server; another one, since whoever is connected to a database delays its end.
        database: The name of the database.
        seconds_to_leave: How long to wait for the last of them to go.
    """
    query = """
        SELECT concat_ws(' ', pid, application_name, state, left(query, 80)) FROM pg_stat_activity
        WHERE datname = %s AND starts_with(application_name, %s) ORDER BY pid
    """
    deadline = time.monotonic() + seconds_to_leave
    with _connect(url) as connection:
        while True:
            lines = [str(line) for (line,) in connection.execute(query, [database, APPLICATION])]
            if not lines or time.monotonic() > deadline:
                return lines
            time.sleep(_POLL_SECONDS)


def _connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url, autocommit=True, application_name="tests")
