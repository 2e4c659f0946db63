"""What the page "In front of a running Prosody" sets up works: on a real Prosody, behind a real nginx."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from invites_core import ApiKeys, open_store
from tests.docs.conftest import FindProgram
from tests.docs.pages import ROOT, get_block
from tests.docs.test_proxies import SERVING, replace
from tests.docs.test_units import UNITS, Unit
from tests.helpers import wait_until
from tests.prosody import ConsoleProsody, start_prosody
from tests.servers import Gunicorn, Server, free_ports
from tests.wsgi.support import COMMAND

PAGE: Final = ROOT / "docs" / "prosody.md"
NAMES: Final = ("invites-api-agent.service", "invites-api.service")


def test_units_and_page_say_the_same() -> None:
    """The paths, users and commands of the units are those of the settings on the page."""
    agent, service = (Unit(UNITS / name) for name in NAMES)
    settings = get_block(PAGE, "invites-api.toml").text
    socket = re.findall(r'invites = "agent://(.+)"', settings)
    argv = agent.get_words("ExecStart")
    assert argv[argv.index("--listen") + 1 :] == socket
    assert argv[argv.index("--store") + 1] == "prosody:///var/lib/prosody/prosody.sock"
    assert argv[argv.index("--config") + 1] == "/etc/invites-api/agent.toml"
    assert service["Service"]["Environment"] == "INVITES_CONFIG=/etc/invites-api/invites-api.toml"
    assert (agent["Service"]["User"], agent["Service"]["Group"]) == ("prosody", service["Service"]["Group"])
    assert f"/run/{agent['Service']['RuntimeDirectory']}/agent.sock" == socket[0]
    assert f"test -S {socket[0]};" in agent["Service"]["ExecStartPost"]
    assert f"sqlite:////var/lib/{service['Service']['StateDirectory']}/" in settings
    # Who starts the service starts the agent, and it is the first of the two.
    assert agent["Unit"]["Before"] == "invites-api.service"
    assert "invites-api.service" in agent["Install"]["WantedBy"].split()
    text = PAGE.read_text("utf-8")
    for name in NAMES:
        assert f"](examples/systemd/{name})" in text
    assert "/var/lib/prosody" in service.get_words("InaccessiblePaths")[0]


@pytest.fixture
def ports() -> dict[str, int]:
    """The ports of the page, each with one that is free here."""
    return dict(zip(("443", "5281", "5280", "5290"), free_ports(4), strict=True))


@pytest.fixture
def prosody(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, int]) -> Iterator[ConsoleProsody]:
    """A Prosody as the page configures it."""
    shown = replace(get_block(PAGE, "prosody.cfg.lua").text, ("5290", str(ports["5290"])))
    # The tests' own list of modules has those that are there already.
    extra = shown.replace('"invites_api",', '"invites_api", "invites_page", "roster", "saslauth", "disco",')
    made = start_prosody(
        tmp_path_factory.mktemp("d"), hosts=["example.com"], extra=extra + "invites_page_external = false\n"
    )
    made.port = made.http_port = ports["5290"]
    with made:
        yield made


@contextlib.contextmanager
def running_agent(folder: Path, prosody: ConsoleProsody) -> Iterator[None]:
    """The agent of the unit, with the settings of the page."""
    (folder / "agent.toml").write_text(get_block(PAGE, "agent.toml").text, "utf-8")
    words = Unit(UNITS / NAMES[0]).get_words("ExecStart")[1:]
    places = {
        "/etc/invites-api/agent.toml": str(folder / "agent.toml"),
        "prosody:///var/lib/prosody/prosody.sock": f"prosody://{prosody.socket}",
        "/run/invites-api/agent.sock": str(folder / "agent.sock"),
    }
    assert places.keys() <= set(words)
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen([*COMMAND, *(places.get(word, word) for word in words)], stdout=log, stderr=log)
    with process:
        try:
            wait_until((folder / "agent.sock").exists)
            yield
        finally:
            process.terminate()


@contextlib.contextmanager
def running_service(folder: Path, ports: dict[str, int]) -> Iterator[str]:
    """The service with the settings of the page; gives a key."""
    changes = (
        ("/var/lib/invites-api/invites.db", str(folder / "keys.db")),
        ("/run/invites-api/agent.sock", str(folder / "agent.sock")),
        ("5280", str(ports["5280"])),
    )
    settings = folder / "invites-api.toml"
    settings.write_text(replace(get_block(PAGE, "invites-api.toml").text, *changes), "utf-8")
    store = open_store(f"sqlite:///{folder / 'keys.db'}")
    key = ApiKeys(store).create("example.com").combined
    store.close()
    command = [sys.executable, "-P", "-m", "invites_wsgi.cli", "serve"]
    environment = {"INVITES_CONFIG": str(settings), "INVITES_DATABASE": None}
    with Gunicorn(folder, command, environment, port=ports["5280"], path="/healthz"):
        yield key


def make_nginx(folder: Path, binary: str, openssl: str, ports: dict[str, int]) -> Server:
    """An nginx with both server blocks: that of the site on the page on serving, and that of the old address."""
    (folder / "log").mkdir()
    request = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=example.com"]
    made = [*request, "-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")]
    subprocess.run(made, check=True, capture_output=True, timeout=30)
    # As nginx reads them in conf.d: by name.
    files = {"invites.conf": SERVING, "prosody-invites.conf": PAGE}
    text = "".join(get_block(page, name).text for name, page in sorted(files.items()))
    site = replace(
        text,
        ("listen 443 ssl", f"listen 127.0.0.1:{ports['443']} ssl"),
        ("listen 5281 ssl", f"listen 127.0.0.1:{ports['5281']} ssl"),
        ("127.0.0.1:5280", f"127.0.0.1:{ports['5280']}"),
        ("127.0.0.1:5290", f"127.0.0.1:{ports['5290']}"),
        ("/etc/ssl/example.com", str(folder)),
        ("/var/log/nginx", str(folder / "log")),
    )
    temporary = "".join(
        f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\npid {folder / 'nginx.pid'};\nerror_log {folder / 'log' / 'error.log'};\nevents {{}}\n"
        f"http {{\naccess_log {folder / 'log' / 'access.log'};\n{temporary}{site}}}\n",
        "utf-8",
    )
    argv = [binary, "-p", str(folder), "-e", "stderr", "-c", "nginx.conf"]
    ended = subprocess.run([*argv, "-t"], cwd=folder, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 0, ended.stderr
    return Server(folder, argv, port=ports["5281"], path=None, name="nginx")


def ask(folder: Path, port: int, target: str) -> http.client.HTTPResponse:
    """Ask nginx over TLS for an address of example.com; the answer's body is its ``text``."""
    context = ssl.create_default_context(cafile=str(folder / "fullchain.pem"))
    context.check_hostname = False
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    connection.request("GET", target, headers={"Host": "example.com:5281", "Connection": "close"})
    response = connection.getresponse()
    response.text = response.read().decode()  # type: ignore[attr-defined]  # for the tests
    return response


@pytest.mark.real_server
def test_old_address_works(
    prosody: ConsoleProsody, ports: dict[str, int], tmp_path: Path, find_program: FindProgram
) -> None:
    """As the page sets it up, the old URL makes invites that Prosody has, and its other pages are served as before."""
    nginx = find_program("nginx", "install it (Debian: apt install nginx-light)")
    openssl = find_program("openssl", "install it (Debian: apt install openssl)")
    with contextlib.ExitStack() as stack:
        stack.enter_context(running_agent(tmp_path, prosody))
        key = stack.enter_context(running_service(tmp_path, ports))
        stack.enter_context(make_nginx(tmp_path, nginx, openssl, ports))
        created = ask(tmp_path, ports["5281"], f"/invites_api?key={key}")
        assert created.status == 201
        token = created.headers["Location"].removeprefix("https://example.com/invite?")
        assert list(prosody.find_rows()) == [token]
        # The page of this service on the site, and Prosody's own at the old address.
        uri = f"xmpp:example.com?register;preauth={token}"
        for port, path in (("443", "/invite"), ("5281", "/invite"), ("5281", "/invites_page")):
            shown = ask(tmp_path, ports[port], f"{path}?{token}")
            assert (shown.status, token in shown.text) == (200, True), path  # type: ignore[attr-defined]
            assert uri.partition("?")[0] in shown.text  # type: ignore[attr-defined]
        # A key that only Prosody knows is none here: its module has nothing to say at this address any more.
        foreign = prosody.create_key("example.com", "Left behind")
        assert ask(tmp_path, ports["5281"], f"/invites_api?key={foreign}").status == 403
    logs = "".join(file.read_text("utf-8") for file in (tmp_path / "log").iterdir())
    assert logs.count("/invites_api") >= 2
    for secret in (key, foreign, token):
        assert secret not in logs
