"""The configurations of nginx and Caddy in the docs work, and keep keys and tokens out of their logs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from invites_core import ApiKeys, IssuedKey, KeyPolicy, open_store
from tests.docs.conftest import FindProgram
from tests.docs.pages import ROOT, get_block
from tests.helpers import wait_until
from tests.servers import Gunicorn, Server, free_port

pytestmark = pytest.mark.real_server

SERVING = ROOT / "docs" / "serving.md"
# All of 127.0.0.0/8 is this machine: with another address than the proxy's the client can be told from it.
CLIENT = "127.0.0.2"
FORGED = "203.0.113.9"


@dataclass(frozen=True, slots=True)
class Service:
    """The service of the page, behind whatever proxy: a gunicorn with a key."""

    server: Server
    issued: IssuedKey

    @property
    def log(self) -> str:
        return self.server.stderr_file.read_text("utf-8")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that runs as the page configures it.

    Attributes:
        server: Its process.
        access_log: The log of its requests.
        read_id: Finds the request id in a line of that log.
        context: For TLS, or None.
    """

    server: Server
    access_log: Path
    read_id: Callable[[str], str]
    context: ssl.SSLContext | None = None

    def ask(self, target: str, **headers: str) -> http.client.HTTPResponse:
        """Ask through the proxy, as a client that forges an address."""
        where, source = ("127.0.0.1", self.server.port), (CLIENT, 0)
        connection: http.client.HTTPConnection
        if self.context is None:
            connection = http.client.HTTPConnection(*where, timeout=10, source_address=source)
        else:
            connection = http.client.HTTPSConnection(*where, timeout=10, source_address=source, context=self.context)
        forged = {"Host": "example.com", "X-Forwarded-For": FORGED, "X-Request-Id": "forged", "Connection": "close"}
        connection.request("GET", target, headers={**forged, **headers})
        response = connection.getresponse()
        response.read()
        return response

    @property
    def logs(self) -> str:
        """All that it has written."""
        files = {self.access_log, *self.access_log.parent.iterdir(), self.server.stdout_file, self.server.stderr_file}
        return "".join(file.read_text("utf-8") for file in files if file.exists())


def replace(text: str, *changes: tuple[str, str]) -> str:
    """Put paths and ports of the test in the place of those of the page; each must be there."""
    for shown, here in changes:
        assert shown in text, f"the page does not say {shown!r}"
        text = text.replace(shown, here)
    return text


class Dropping(socketserver.ThreadingTCPServer):
    """Counts the requests that it gets; the first is answered with 201, and all others by closing the connection."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), DroppingHandler)
        self.requests: list[bytes] = []


class DroppingHandler(socketserver.StreamRequestHandler):
    """One connection, which stays open after an answer."""

    server: Dropping

    def handle(self) -> None:
        while line := self.rfile.readline():
            while self.rfile.readline().strip():
                pass
            self.server.requests.append(line)
            if len(self.server.requests) > 1:
                return
            self.wfile.write(b"HTTP/1.1 201 Created\r\nX-Request-Id: 1\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """The service as the page sets it up, with the settings of the page."""
    folder = tmp_path / "service"
    folder.mkdir()
    port, database = free_port(), folder / "invites.db"
    settings = folder / "invites-api.toml"
    changes = (("/var/lib/invites-api/invites.db", str(database)), ("5280", str(port)))
    settings.write_text(replace(get_block(SERVING, "invites-api.toml").text, *changes), "utf-8")
    store = open_store(f"sqlite:///{database}")
    issued = ApiKeys(store).create("example.com", policy=KeyPolicy(scopes=frozenset({"create", "read"})))
    store.close()
    command = [sys.executable, "-P", "-m", "invites_wsgi.cli", "serve"]
    env = {"INVITES_CONFIG": str(settings), "INVITES_DATABASE": None}
    with Gunicorn(folder, command, env, port=port, path="/healthz") as server:
        yield Service(server, issued)


def make_nginx(folder: Path, binary: str, upstream: int) -> Proxy:
    """An nginx with the server block of the page, and with the logs that it has by default.

    It is told of the service twice, so that it could send a request again.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.fail("there is nginx, and no openssl to make a certificate: install openssl")
    chain, key = folder / "fullchain.pem", folder / "privkey.pem"
    request = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=example.com"]
    subprocess.run([*request, "-keyout", key, "-out", chain], check=True, capture_output=True, timeout=30)
    port = free_port()
    page = replace(
        get_block(SERVING, "invites.conf").text,
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/example.com", str(folder)),
        ("/var/log/nginx", str(folder / "log")),
        ("http://127.0.0.1:5280", "http://service"),
    )
    temporary = "".join(
        f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # It needs no rights of root. Started by root it would change to a user who cannot look into the folder.
    user = "user root;\n" if os.geteuid() == 0 else ""
    address = f"server 127.0.0.1:{upstream};\n"
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\npid {folder / 'nginx.pid'};\nerror_log {folder / 'log' / 'error.log'};\nevents {{}}\n"
        f"http {{\naccess_log {folder / 'log' / 'access.log'};\nupstream service {{\n{address}{address}}}\n"
        f"{temporary}{page}}}\n",
        "utf-8",
    )
    argv = [binary, "-p", str(folder), "-e", "stderr", "-c", "nginx.conf"]
    context = ssl.create_default_context(cafile=str(chain))
    context.check_hostname = False
    server = Server(folder, argv, port=port, path=None, name="nginx")
    return Proxy(server, folder / "log" / "invites.log", lambda line: line.split()[-1], context)


def make_caddy(folder: Path, binary: str, upstream: int) -> Proxy:
    """A Caddy with the configuration of the page, without TLS and without its admin interface."""
    port = free_port()
    page = replace(
        get_block(SERVING, "Caddyfile").text,
        ("# Caddyfile\n{", "{\nadmin off"),
        ("example.com {", f"http://:{port} {{\nbind 127.0.0.1"),
        ("/var/log/caddy", str(folder / "log")),
        ("127.0.0.1:5280", f"127.0.0.1:{upstream}"),
    )
    (folder / "Caddyfile").write_text(page, "utf-8")
    argv = [binary, "run", "--config", "Caddyfile", "--adapter", "caddyfile"]
    env = {"HOME": str(folder), "XDG_DATA_HOME": None, "XDG_CONFIG_HOME": None}
    server = Server(folder, argv, port=port, path=None, env=env, name="caddy")
    return Proxy(server, folder / "log" / "invites.log", read_caddy_id)


def read_caddy_id(line: str) -> str:
    [request_id] = json.loads(line)["resp_headers"]["X-Request-Id"]
    return str(request_id)


StartProxy = Callable[[int], Proxy]
"""The fixture ``start_proxy``: starts a proxy in front of a port."""


@pytest.fixture(
    params=[
        pytest.param(("nginx", "nginx-light", make_nginx), id="nginx"),
        pytest.param(("caddy", "caddy", make_caddy), id="caddy"),
    ]
)
def start_proxy(request: pytest.FixtureRequest, tmp_path: Path, find_program: FindProgram) -> Iterator[StartProxy]:
    """Starts each of the proxies."""
    name, package, make = request.param
    binary = find_program(name, f"install it (Debian: apt install {package})")
    folder = tmp_path / name
    (folder / "log").mkdir(parents=True)
    with contextlib.ExitStack() as stack:

        def start(upstream: int) -> Proxy:
            proxy: Proxy = make(folder, binary, upstream)
            stack.enter_context(proxy.server)
            return proxy

        yield start


@pytest.fixture
def dropping() -> Iterator[Dropping]:
    """A service that answers its first request, and goes away in the middle of each one after that."""
    with Dropping() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["invites.conf", "Caddyfile"])
def test_the_files_of_the_examples_are_the_pages(name: str) -> None:
    """What can be taken as a file is what the page shows, which the tests below run."""
    assert (ROOT / "docs" / "examples" / "proxies" / name).read_text("utf-8") == get_block(SERVING, name).text
    assert f"](examples/proxies/{name})" in SERVING.read_text("utf-8")


def test_a_proxy_as_the_page_sets_it_up(start_proxy: StartProxy, service: Service) -> None:
    """Invites are made and shown through it, and its logs hold neither key nor token, also when the service is gone."""
    proxy = start_proxy(service.server.port)
    combined = service.issued.combined
    created = proxy.ask(f"/invites_api?key={combined}")
    assert created.status == 201
    location = created.headers["Location"]
    token = location.removeprefix("https://example.com/invite?")
    assert re.fullmatch(r"[\w-]{24}", token)
    assert proxy.ask("/invites_api", Authorization=f"Bearer {combined}").status == 201
    assert proxy.ask(f"/invites_api?key={combined}&redirect=true").status == 303
    assert proxy.ask(f"/invite?{token}", Referer=location).status == 200
    assert proxy.ask(f"/invites_api?key={combined}x").status == 403
    assert proxy.ask(f"/invites_api/?key={combined}").status == 404
    assert proxy.ask("/healthz").status == 404
    shown = f"/invites_api/invites/{token}"
    assert proxy.ask(f"{shown}?key={combined}").status == 200
    assert proxy.ask(f"{shown}/redeem", Authorization=f"Bearer {combined}").status == 405

    wait_until(lambda: service.log.count(" GET /invite") == 7)
    lines = [line for line in service.log.splitlines() if " GET /invite" in line]
    assert all(f" client={CLIENT} " in line for line in lines), lines
    assert FORGED not in service.log

    service.server.stop()
    assert proxy.ask(f"/invites_api?key={combined}", Referer=location).status == 502
    assert proxy.ask(shown, Authorization=f"Bearer {combined}").status == 502
    wait_until(lambda: sum("/invites_api" in line for line in proxy.access_log.read_text("utf-8").splitlines()) == 9)
    proxy.server.stop()
    for secret in (service.issued.secret, service.issued.key.id, token, "key=", "redirect"):
        assert secret not in proxy.logs
    # The id of a request is the same in both logs, and never the client's own.
    created_lines = [line for line in proxy.access_log.read_text("utf-8").splitlines() if "/invites_api" in line]
    assert f"request_id={proxy.read_id(created_lines[0])}\n" in service.log
    assert "forged" not in service.log


def test_a_proxy_sends_no_request_again(start_proxy: StartProxy, dropping: Dropping) -> None:
    """A request whose answer is lost is not repeated by the proxy, since it may have made an invite."""
    proxy = start_proxy(dropping.server_address[1])
    assert proxy.ask("/invites_api?key=a/b").status == 201
    assert proxy.ask("/invites_api?key=a/b").status == 502
    assert len(dropping.requests) == 2
