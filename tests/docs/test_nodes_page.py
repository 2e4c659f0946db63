"""The files of the page on several nodes fit together, and its nginx spreads requests over two nodes."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from invites_core.stores.postgresql_url import DEFAULT_CONNECTIONS, MOST_CONNECTIONS
from invites_wsgi import load_settings
from tests.docs.conftest import FindProgram
from tests.docs.pages import ROOT
from tests.helpers import wait_until
from tests.servers import Server, free_port

EXAMPLES: Final = ROOT / "docs" / "examples"
NGINX: Final = (EXAMPLES / "nginx.conf").read_text("utf-8")
PAGE: Final = (ROOT / "docs" / "nodes.md").read_text("utf-8")


@pytest.fixture
def compose() -> Any:
    """The compose file, read."""
    yaml = pytest.importorskip("yaml", reason="needs PyYAML (pip install pyyaml)")
    return yaml.safe_load((EXAMPLES / "compose.yaml").read_text("utf-8"))


def test_the_compose_file_names_what_is_there(compose: Any) -> None:
    """Whatever the compose file takes from its folder is there, or the page says how to make it."""
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (EXAMPLES / source).exists() or source == "./tls", (name, source)
        assert set(service.get("depends_on", [])) <= compose["services"].keys()
    build = compose["services"]["node-a"]["build"]
    assert (EXAMPLES / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == EXAMPLES / "Containerfile"
    for name in ("compose.yaml", "nginx.conf", "invites-api.toml", "Containerfile"):
        assert f"](examples/{name})" in PAGE


def test_the_nodes_of_the_compose_file_are_those_of_nginx_and_the_settings(compose: Any) -> None:
    """The nodes are alike, nginx knows their names and the port of the settings, and the settings their database."""
    services = compose["services"]
    assert services["node-a"] == services["node-b"]
    environment = services["node-a"]["environment"]
    mounted = dict(volume.split(":")[:2] for volume in services["node-a"]["volumes"])
    assert list(mounted.values()) == [environment["INVITES_CONFIG"]]
    settings = load_settings(file=str(EXAMPLES / next(iter(mounted))), environ={})
    [database] = services["db"]["environment"].items() & {("POSTGRES_DB", "invites")}
    assert settings.database == f"postgresql://{services['db']['environment']['POSTGRES_USER']}@db/{database[1]}"
    port = settings.listen.rpartition(":")[2]
    assert re.findall(r"server (node-\S+);", NGINX) == [f"node-a:{port}", f"node-b:{port}"]
    assert f"127.0.0.1:{port}/healthz" in services["node-a"]["healthcheck"]["test"][-1]
    assert settings.trusted_proxies == 1
    assert re.findall(r"server_name (\S+);", NGINX) == list(settings.hosts.listed)


def test_no_password_is_in_the_example(compose: Any) -> None:
    """The password of the example comes from a file that is no part of it."""
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name or value.startswith("${POSTGRES_PASSWORD:?")


def test_the_numbers_of_connections_on_the_page_are_the_programs() -> None:
    """The page gives the default and the bounds of `max_connections` as they are."""
    assert f"from 1 to {MOST_CONNECTIONS}; {DEFAULT_CONNECTIONS} without it" in PAGE
    assert f"2 × 2 × {DEFAULT_CONNECTIONS} = {4 * DEFAULT_CONNECTIONS}," in PAGE


class Node(http.server.ThreadingHTTPServer):
    """Stands for a node: counts what it is asked, and can go away in the middle of a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), NodeHandler)
        self.asked: list[str] = []
        self.is_dying = False

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class NodeHandler(http.server.BaseHTTPRequestHandler):
    """Answers with 201, or with nothing."""

    server: Node

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.is_dying:
            return
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """What nginx has behind it."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(Node()) for _ in range(2)]
        for node in started:
            thread = threading.Thread(target=node.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            stack.callback(thread.join)
            stack.callback(node.shutdown)
        yield started


def make_nginx(folder: Path, binary: str, openssl: str, nodes: list[Node]) -> tuple[Server, ssl.SSLContext]:
    """Return an nginx with the file of the page, on the nodes of the test."""
    chain, key = folder / "fullchain.pem", folder / "privkey.pem"
    request = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=example.com"]
    subprocess.run([*request, "-keyout", key, "-out", chain], check=True, capture_output=True, timeout=30)
    port, text = free_port(), NGINX
    changes = [("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"), ("/etc/ssl/example.com", str(folder))]
    changes += [("/var/log/nginx", str(folder)), ("node-a:5280", f"127.0.0.1:{nodes[0].port}")]
    for shown, here in [*changes, ("node-b:5280", f"127.0.0.1:{nodes[1].port}")]:
        assert shown in text
        text = text.replace(shown, here)
    (folder / "nodes.conf").write_text(text, "utf-8")
    paths = "".join(
        f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\npid {folder / 'nginx.pid'};\nerror_log {folder / 'main.log'};\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}include {folder / 'nodes.conf'};\n}}\n",
        "utf-8",
    )
    context = ssl.create_default_context(cafile=str(chain))
    context.check_hostname = False
    argv = [binary, "-p", str(folder), "-e", "stderr", "-c", "nginx.conf"]
    return Server(folder, argv, port=port, path=None, name="nginx"), context


@pytest.fixture
def ask(tmp_path: Path, find_program: FindProgram, nodes: list[Node]) -> Iterator[Callable[[str], int]]:
    """Asks the nginx of the page, in front of the nodes, and returns the status."""
    binary = find_program("nginx", "install it (Debian: apt install nginx-light)")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.fail("there is nginx, and no openssl to make a certificate: install openssl")
    server, context = make_nginx(tmp_path, binary, openssl, nodes)

    def get(target: str) -> int:
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=context)
        with contextlib.closing(connection):
            connection.request("GET", target, headers={"Host": "example.com"})
            return connection.getresponse().status

    with server:
        yield get


@pytest.mark.real_server
def test_nginx_spreads_requests_and_sends_none_again(
    ask: Callable[[str], int], nodes: list[Node], tmp_path: Path
) -> None:
    """Both nodes are asked; where one goes away its request is not sent to the other, which gets those after it."""
    assert [ask("/invites_api?key=id/secret") for _ in range(6)] == [201] * 6
    assert [len(node.asked) for node in nodes] == [3, 3]
    nodes[0].is_dying = True
    answers = [ask("/invites_api?key=id/secret") for _ in range(8)]
    assert sorted(answers) == [201] * 7 + [502]
    assert [len(node.asked) for node in nodes] == [4, 10]
    log = tmp_path / "access.log"
    wait_until(lambda: log.read_text("utf-8").count("/invites_api") == 14)
    for written in (log.read_text("utf-8"), (tmp_path / "error.log").read_text("utf-8")):
        assert "key=" not in written
        assert "secret" not in written
