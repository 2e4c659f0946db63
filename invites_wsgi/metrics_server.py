"""The process that shows the metrics of all workers, beside them: it holds no key, no store and no port of theirs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

__all__ = ["MetricsProcess", "bind"]

LOOK_SECONDS: Final = 1.0
CLIENT_SECONDS: Final = 10.0
END_SECONDS: Final = 5.0


def bind(listen: str) -> socket.socket:
    """Return a socket that listens.

    Args:
        listen: ``ADDRESS:PORT`` or ``unix:PATH``.

    Raises:
        OSError: It cannot be had.
    """
    path = listen.removeprefix("unix:")
    if path != listen:
        with contextlib.suppress(FileNotFoundError):
            if Path(path).is_socket():
                os.unlink(path)
        bound = socket.socket(socket.AF_UNIX)
        before = os.umask(0o007)
        try:
            bound.bind(path)
        finally:
            os.umask(before)
    else:
        address, _, port = listen.rpartition(":")
        address = address.removeprefix("[").removesuffix("]")
        family, kind, protocol, _, place = socket.getaddrinfo(address, int(port), type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(place)
        except OSError:
            bound.close()
            raise
    bound.listen(16)
    return bound


class MetricsProcess:
    """Starts that process and ends it, and keeps the folder that the workers count in, for their user alone.

    It is a program of its own and no thread of gunicorn's arbiter, which forks new workers at any time: what another
    thread held at that moment would stay held in them.
    """

    def __init__(self, listen: str) -> None:
        """Take where it listens; `start` starts it."""
        self._listen = listen
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = ""

    def start(self) -> None:
        """Start it.

        Raises:
            OSError: It cannot listen there.
        """
        with bind(self._listen) as bound:
            self.folder = tempfile.mkdtemp(prefix="invites-api-metrics-")
            descriptor = bound.fileno()
            self._process = subprocess.Popen(  # noqa: S603 (a program of our own, with numbers and a path of our own)
                [sys.executable, "-m", "invites_wsgi.metrics_server", str(descriptor), self.folder, str(self._owner)],
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
            )

    def stop(self) -> None:
        """End it and remove the folder; does nothing in a process that was forked from the one that started it."""
        if os.getpid() != self._owner or self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._listen.startswith("unix:"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._listen.removeprefix("unix:"))


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name there)
        """Write nothing: a line for each scrape is no use to anybody."""

    def address_string(self) -> str:
        """Return the client's address, which a Unix socket has none of."""
        return "-"


class _Server(WSGIServer):
    """Serves on a socket that is bound already, one request after the other."""

    def __init__(self, bound: socket.socket) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.timeout = LOOK_SECONDS
        self.server_name, self.server_port = "metrics", 0
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Take a connection; a Unix socket's has no address."""
        connection, address = self.socket.accept()
        return connection, address or ("-", 0)


def _end(*_: object) -> None:
    raise SystemExit(0)


def main(descriptor: int, folder: str, service: int) -> None:
    """Show the metrics in a folder until told to stop, or until the service has ended without saying so.

    Args:
        descriptor: The number of the socket that listens.
        folder: The folder.
        service: The process that started this one. Asked for only here, it could have gone already.
    """
    from invites_wsgi.metrics_folder import FOLDER_VARIABLE

    os.environ[FOLDER_VARIABLE] = folder
    from invites_wsgi.metrics import make_metrics_app

    # Ctrl-C in a terminal is for the service, which ends this one last.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    server = _Server(socket.socket(fileno=descriptor))
    server.set_app(make_metrics_app())
    while os.getppid() == service:
        server.handle_request()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
