"""What the tests of HTTP share: requests sent as they are, answers, a whole service in one object, and its log."""

from __future__ import annotations

import http.client
import io
import json
import logging
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

import apsw
from werkzeug.test import Client

from invites_core import ApiKeys, Hosts, Invite, InvitesError, IssuedKey
from invites_core.stores.memory import MemoryStore
from invites_core.stores.sqlite import SqliteStore
from invites_wsgi.logs import JsonFormatter, TextFormatter
from tests.helpers import PATIENCE, FakeClock
from tests.servers import Server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

Headers = Mapping[str, str] | Iterable[tuple[str, str]]

COMMAND: Final = (sys.executable, "-W", "error", "-m", "invites_wsgi.cli")
"""The command, in the interpreter that runs the tests; a warning is an error in it too."""

CLEAN_ENVIRONMENT: Final[dict[str, str | None]] = {
    "INVITES_CONFIG": None,
    "INVITES_DATABASE": None,
    "WEB_CONCURRENCY": None,
    "GUNICORN_CMD_ARGS": None,
}
"""Changes to the environment: what the developer has set has no say in the tests."""


@dataclass(frozen=True)
class Answer:
    """What came back, with its headers in the order in which they came."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def get(self, name: str) -> str | None:
        """Return the value of a header that is there at most once."""
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) <= 1, f"{name} is there {len(found)} times"
        return found[0] if found else None

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        assert value is not None, f"there is no {name} in {self}"
        return value

    def json(self) -> Any:
        """Return what the JSON in the body says."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8")

    @property
    def token(self) -> str:
        """The token at the end of the link to the landing page."""
        return self["Location"].rpartition("?")[2]


def _pairs(headers: Headers) -> list[tuple[str, str]]:
    return list(headers.items() if isinstance(headers, Mapping) else headers)


def make_environ(method: str, target: str, headers: Headers = (), body: bytes = b"") -> dict[str, Any]:
    """Return the WSGI environment in which a server hands on a request, its target taken as it stands (PEP 3333)."""
    path, _, query = target.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": target,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "5280",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.7",
        "HTTP_HOST": "127.0.0.1:5280",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if body:
        environ["CONTENT_LENGTH"] = str(len(body))
    for name, value in _pairs(headers):
        key = name.upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    return environ


def ask(
    app: WSGIApplication, target: str = "/", *, method: str = "GET", headers: Headers = (), body: bytes = b""
) -> Answer:
    """Send a request to an app, and return its answer."""
    chunks, status, found = Client(app).run_wsgi_app(make_environ(method, target, headers, body), buffered=True)
    return Answer(int(status.split()[0]), tuple(found), b"".join(chunks))


def ask_server(
    port: int, target: str = "/", *, method: str = "GET", headers: Headers = (), body: bytes = b""
) -> Answer:
    """Send a request to a server, on a connection of its own, and return its answer."""
    pairs = _pairs(headers)
    names = {name.lower() for name, _ in pairs}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.putrequest(method, target, skip_host="host" in names, skip_accept_encoding=True)
        for name, value in pairs:
            connection.putheader(name, value.encode("latin-1"))
        if body and "content-length" not in names:
            connection.putheader("Content-Length", str(len(body)))
        connection.putheader("Connection", "close")
        connection.endheaders(body or None)
        response = connection.getresponse()
        return Answer(response.status, tuple(response.getheaders()), response.read())
    finally:
        connection.close()


def send_raw(port: int, request: bytes) -> bytes:
    """Send bytes that need be no request, and return all that comes back until the server hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        received = b""
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65_536):
                received += chunk
        except ConnectionError:
            pass  # The server need not read to the end what it refuses.
        return received


@dataclass
class Service:
    """A whole service in this process: an app, its store, its clock, and a key of example.com."""

    app: WSGIApplication
    store: MemoryStore | SqliteStore
    clock: FakeClock
    keys: ApiKeys
    issued: IssuedKey

    @property
    def key(self) -> str:
        """The key as ``ID/SECRET``."""
        return self.issued.combined

    @property
    def bearer(self) -> dict[str, str]:
        """The header that carries the key."""
        return {"Authorization": f"Bearer {self.key}"}

    def ask(
        self, target: str = "/invites_api", *, method: str = "GET", headers: Headers = (), body: bytes = b""
    ) -> Answer:
        """Send a request as it is."""
        return ask(self.app, target, method=method, headers=headers, body=body)

    def create(self, target: str = "/invites_api", *, method: str = "GET", headers: Headers = ()) -> Answer:
        """Send a request with the key in the header."""
        return self.ask(target, method=method, headers=[*self.bearer.items(), *_pairs(headers)])

    def count(self) -> int:
        """Return how many invites there are."""
        return count_invites(self.store)

    def get_invite(self, token: str) -> Invite:
        """Return the stored invite of this token."""
        invite = self.store.find_invite(token)
        assert invite is not None, "there is no such invite"
        return invite


class FailingStore(MemoryStore):
    """A store that fails in every verb that a request uses, for as long as it has a failure."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__()
        self.failure = failure
        self.pings = 0

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def ping(self) -> None:
        self.pings += 1
        self._fail()

    def find_key(self, key_id: str) -> Any:
        self._fail()
        return super().find_key(key_id)

    def find_invite(self, token: str) -> Any:
        self._fail()
        return super().find_invite(token)

    def list_keys(self, host: str | None = None) -> Any:
        self._fail()
        return super().list_keys(host)


def count_invites(store: MemoryStore | SqliteStore) -> int:
    """Return how many invites a store holds."""
    if isinstance(store, MemoryStore):
        return len(store._invites)
    return count_rows(Path(store.location))


def count_rows(path: Path, table: str = "invites") -> int:
    """Return how many rows a table of a database holds, read by a connection of its own."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        [(count,)] = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
        assert isinstance(count, int)
        return count
    finally:
        connection.close()


class LogBook:
    """What this package logs during a test, in both formats."""

    def __init__(self) -> None:
        self._streams = io.StringIO(), io.StringIO()
        self.handlers: list[logging.Handler] = []
        for stream, formatter in zip(self._streams, (TextFormatter(), JsonFormatter()), strict=True):
            handler = logging.StreamHandler(stream)
            handler.setFormatter(formatter)
            self.handlers.append(handler)

    @property
    def text(self) -> str:
        """Everything, in the text format."""
        return self._streams[0].getvalue()

    @property
    def json(self) -> str:
        """Everything, in the JSON format."""
        return self._streams[1].getvalue()

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries of the JSON format, a line each."""
        return [json.loads(line) for line in self.json.split("\n")[:-1]]

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The entries on requests alone."""
        return [entry for entry in self.entries if "ms" in entry]


@contextmanager
def restored_logger(name: str = "invites_wsgi") -> Iterator[logging.Logger]:
    """Give a logger back the handlers and the level that it had."""
    logger = logging.getLogger(name)
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        yield logger
    finally:
        logger.handlers[:], logger.level, logger.propagate = before


@contextmanager
def restored_hooks() -> Iterator[None]:
    """Give Python back what it does with errors that nobody catches."""
    before = sys.excepthook, threading.excepthook, sys.unraisablehook
    try:
        yield
    finally:
        sys.excepthook, threading.excepthook, sys.unraisablehook = before


def read_json_log(server: Server) -> list[dict[str, Any]]:
    """Return the entries that a server has logged so far, every line of its log but the first words being JSON."""
    lines = server.stderr_file.read_text("utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line.startswith("{")]


def make_serve(
    folder: Path,
    database: Path,
    settings: str = "",
    *,
    workers: int = 1,
    options: Sequence[str] = (),
    path: str = "/healthz",
    command: Sequence[str] = COMMAND,
    env: Mapping[str, str] | None = None,
    prelude: str | None = None,
) -> Server:
    """Return ``invites-api serve`` on a free port, not started yet, with its own settings file and an empty home.

    Args:
        folder: Where it runs, and where its output goes.
        database: The database, which is there.
        settings: More lines of TOML.
        workers: Its processes; 0 leaves it to the settings.
        options: More arguments.
        path: What to ask for until it answers.
        command: What is run as ``invites-api``.
        env: More changes to its environment.
        prelude: Lines of Python that its process runs before anything else.
    """
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    config = folder / "settings.toml"
    config.write_text(f'database = "sqlite:///{database}"\n{settings}', "utf-8")
    if workers:
        options = [f"--workers={workers}", *options]
    if prelude is not None:
        command = (*COMMAND[:3], "-c", f"{prelude}\nfrom invites_wsgi.cli import main\nmain()")
    return Server(
        folder,
        [*command, "--config", str(config), "serve", "--listen", "127.0.0.1:{port}", *options],
        path=path,
        env={**CLEAN_ENVIRONMENT, "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "TMPDIR": str(home), **(env or {})},
        name="serve",
    )


def get_sample_errors() -> dict[str, InvitesError]:
    """Return one error of every class that leaves the library, by its name."""
    from invites_core import errors

    sample_arguments: dict[str, tuple[Any, ...]] = {
        "InvalidKey": ("wrong secret", "AAAAAAAA"),
        "ScopeMissing": ("read",),
        "PolicyRefused": ("groups", "not granted"),
        "InvalidRequest": ("count", "must be a number"),
        "QuotaSpent": (17,),
        "StorageError": ("the database /srv/secret-place/invites.db failed",),
        "OutcomeUnknown": ("the database /srv/secret-place/invites.db failed while committing",),
        "CorruptRecord": ("the database /srv/secret-place/invites.db is damaged",),
        "Unsupported": ("this store keeps no history",),
    }
    names = set(errors.__all__) - {"InvitesError", "KeyExists", "InviteExists"}
    return {name: getattr(errors, name)(*sample_arguments.get(name, ())) for name in sorted(names)}


def hosts_of(**settings: Any) -> Hosts:
    """Return hosts that serve example.com alone, set as given."""
    from invites_core import HostSettings

    return Hosts({"example.com": HostSettings(**settings)})
