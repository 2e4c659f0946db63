"""Secrets and tokens in every place of a request: none comes out anywhere but where it is meant to."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from werkzeug.middleware.proxy_fix import ProxyFix

from invites_core import ApiKeys, IssuedKey, KeyPolicy
from invites_core.keys import DEFAULT_POLICY
from invites_core.stores.memory import MemoryStore
from invites_core.stores.sqlite import SqliteStore
from invites_wsgi import App, Settings
from tests.helpers import make_invite
from tests.servers import Server, free_port, list_members
from tests.wsgi.callers import EVERYTHING
from tests.wsgi.support import Answer, LogBook, ask, ask_server, make_serve, send_raw

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

WINDOW = 10
"""A piece of a secret of this length is a leak too."""


@dataclass(frozen=True)
class Shape:
    """One request with a canary somewhere in it."""

    method: str = "GET"
    target: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""

    def to_bytes(self) -> bytes:
        """Return the request as it goes over the wire."""
        names = {name.lower() for name, _ in self.headers}
        headers = list(self.headers)
        if "host" not in names:
            headers.append(("Host", "127.0.0.1"))
        if self.body:
            headers.append(("Content-Length", str(len(self.body))))
        if "connection" not in names:
            headers.append(("Connection", "close"))
        lines = [
            f"{self.method} {self.target} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers),
            "",
            self.body,
        ]
        return "\r\n".join(lines).encode("latin-1")


@dataclass
class Canaries:
    """A key that works and an invite that is there: what must not come out."""

    issued: IssuedKey
    token: str
    new_tokens: list[str] = field(default_factory=list)

    @property
    def values(self) -> dict[str, str]:
        """The canaries in the spellings in which they are sent."""
        key, secret, key_id = self.issued.combined, self.issued.secret, self.issued.key.id
        return {
            "key": key,
            "secret": secret,
            "token": self.token,
            "quoted": key.replace("/", "%2F"),
            "escaped": "".join(f"%{ord(char):02x}" for char in secret),
            "wrong": f"AAAAAAAA/{secret}",
            "swapped": f"{secret}/{key_id}",
            "as-id": f"{self.token}/{secret}",
            "basic": base64.b64encode(f"{key_id}:{secret}".encode()).decode(),
            "longer": f"{key}x",
        }

    @property
    def pieces(self) -> list[str]:
        """Every piece of a canary that must be nowhere."""
        values = self.values
        whole = [self.issued.secret, self.token, values["escaped"], values["basic"], *self.new_tokens]
        return [text[start : start + WINDOW] for text in whole for start in range(len(text) - WINDOW + 1)]

    def assert_not_in(self, text: str, *, meant: Iterable[str] = ()) -> None:
        """Fail if a piece of a canary is in a text, once what is meant to be there is taken out."""
        for allowed in meant:
            text = text.replace(allowed, "")
        found = [piece for piece in self.pieces if piece in text]
        if found:
            where = text.index(found[0])
            pytest.fail(f"{found[0]!r} is in …{text[max(0, where - 100) : where + 100]!r}…")


def make_shapes(values: dict[str, str]) -> Iterator[Shape]:
    """Put every canary in every place of a request that an app gets to see."""
    paths = ["/invites_api", "/invite", "/healthz", "/", "/invites_api/", "/nothing"]
    for value, method, path in itertools.product(values.values(), ("GET", "POST", "HEAD", "PUT"), paths):
        yield Shape(method, f"{path}?key={value}")
    for value in values.values():
        for query in (
            "{}",
            "token={}",
            "x={}&key=a/b",
            "key=a/b&x={}",
            "key={}&key={}",
            "redirect={}",
            "&{}",
            "KEY={}",
            "{}=1",
        ):
            for path in ("/invites_api", "/invite"):
                yield Shape(target=f"{path}?{query.format(value, value)}")
        for path in (
            "/{}",
            "/invites_api/{}",
            "/invites_api/invites/{}",
            "/invite/{}",
            "//{}/invites_api",
            "/x;{}",
            "/{}?{}",
        ):
            for method in ("GET", "DELETE"):
                yield Shape(method, path.format(value, value))
        for scheme in (
            "Bearer {}",
            "bearer {}",
            "Basic {}",
            "Token {}",
            "{}",
            "Digest username={}",
            "Bearer {} {}",
            "{} x",
        ):
            yield Shape("GET", "/invites_api", (("Authorization", scheme.format(value, value)),))
            yield Shape("POST", "/invites_api?redirect=1", (("Authorization", scheme.format(value, value)),))
        for name in (
            "Cookie Referer User-Agent X-Api-Key X-Request-Id X-Forwarded-For Forwarded Origin Accept Content-Type"
            " Purpose Sec-Purpose Idempotency-Key From Range If-None-Match Upgrade Proxy-Authorization X-Moz Host"
        ).split():
            yield Shape("GET", "/invites_api", ((name, value),))
        yield Shape("GET", "/invites_api", ((f"X-{value.replace('/', '-').replace('=', '')}", "x"),))
        yield Shape("POST", "/invites_api", (), f'{{"key": "{value}"}}')
        for rest in ("", "/redeem", "/release", "/x"):
            for method in ("GET", "POST", "DELETE", "PUT"):
                yield Shape(method, f"/invites_api/invites/{value}{rest}?key={value}")
        for query in ("state={}", "limit={}", "cursor={}"):
            yield Shape(target=f"/invites_api/invites?{query.format(value)}")
        yield Shape("POST", f"/invites_api?key={value}", (("Content-Type", "application/json"),), value)
        yield Shape("POST", "/invite", (("Content-Type", "application/x-www-form-urlencoded"),), f"key={value}")
        for accept in ("text/html", "application/json"):
            yield Shape("GET", f"/invites_api?key={value}", (("Accept", accept),))
            yield Shape("GET", f"/{value}", (("Accept", accept), ("Referer", f"http://x/?key={value}")))


def make_malformed(values: dict[str, str]) -> Iterator[bytes]:
    """Requests that no app gets to see, because the server cannot read them; each with a canary."""
    for value in values.values():
        for request in (
            "{} / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /invites_api?key={}\r\n\r\n",
            "GET /invites_api?key={} HTTP/9.9\r\nHost: x\r\n\r\n",
            "GET /invites_api?key={} {} HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /invites_api?key={}\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET  {}\r\n\r\n",
            "{}\r\n\r\n",
            "\r\n{}",
            "GET / HTTP/1.1\r\nHost: x\r\nAuthorization Bearer {}\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer {}\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nX {}: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nX: y\r\n folded {}\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nX: a\x00{}\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nExpect: {}\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {}\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{}\r\n\r\n",
            "POST /invites_api HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n{}",
            "PRI * HTTP/2.0\r\n\r\n{}\r\n\r\n",
            "PROXY TCP4 {} 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "http://{}@127.0.0.1/ GET HTTP/1.1\r\n\r\n",
            "GET http://{}@127.0.0.1/invites_api?{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "CONNECT {}:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "GET /" + "x" * 5000 + "?key={} HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\nX: {}" + "x" * 9000 + "\r\n\r\n",
            "GET / HTTP/1.1\r\n" + "X: {}\r\n" * 120 + "\r\n",
        ):
            yield request.replace("{}", value).encode("latin-1")
    # Who hangs up in the middle of the secret leaves a piece of it behind that does not look like one.
    for request in (
        f"GET /invites_api?key={values['key']} HTTP/1.1\r\n",
        f"GET /invites_api HTTP/1.1\r\nAuthorization: Bearer {values['key']}\r\n\r\n",
    ):
        for length in range(10, len(request) - 2, 3):
            yield request[:length].encode("latin-1")


def check_answers(canaries: Canaries, shapes: Iterable[Shape], send: Callable[[Shape], str]) -> int:
    """Send every shape, check what comes back, and return how many were sent."""
    count = 0
    for shape in shapes:
        text = send(shape)
        count += 1
        created = (
            text.partition("https://example.com/invite?")[2][:24] if "https://example.com/invite?" in text else None
        )
        meant = [created] if created else []
        query = shape.target.partition("?")[2].partition("&")[0]
        if shape.target.startswith("/invite?") and query == canaries.token:
            meant.append(canaries.token)
        canaries.assert_not_in(text, meant=meant)
        if created:
            canaries.new_tokens.append(created)
    return count


def make_canaries(store: MemoryStore | SqliteStore, policy: KeyPolicy = DEFAULT_POLICY) -> Canaries:
    """Put the key and the invite there."""
    issued = ApiKeys(store).create("example.com", name="My test key", policy=policy)
    invite = make_invite(expires_at=None)
    store.add_invites([invite])
    return Canaries(issued, invite.token)


@pytest.mark.parametrize("trusted_proxies", [0, 1])
def test_no_request_makes_the_app_tell_a_secret(log: LogBook, trusted_proxies: int) -> None:
    """Whatever place of a request holds a secret or a token, neither the log nor any answer does."""
    store = MemoryStore()
    canaries = make_canaries(store)
    settings = Settings(database="memory:", trusted_proxies=trusted_proxies)
    app: WSGIApplication = App(settings, key_store=store, invite_store=store)
    if trusted_proxies:
        app = ProxyFix(app, x_for=trusted_proxies)

    def send(shape: Shape) -> str:
        answer = ask(app, shape.target, method=shape.method, headers=shape.headers, body=shape.body.encode("latin-1"))
        assert answer.status < 500
        return to_text(answer)

    # A proxy that is trusted may name the request as it likes, and is trusted not to name it after a secret.
    shapes = [
        shape
        for shape in make_shapes(canaries.values)
        if not (trusted_proxies and "X-Request-Id" in dict(shape.headers))
    ]
    sent = check_answers(canaries, shapes, send)

    assert sent >= 1000
    assert len(canaries.new_tokens) > 10
    assert len(log.requests) == sent
    canaries.assert_not_in(log.text)
    canaries.assert_not_in(log.json)


def check_processes(server: Server, folder: Path, metrics_port: int, canaries: Canaries) -> None:
    """Check the metrics, as they are shown and in every worker's files, and the arguments of every process."""
    shown = ask_server(metrics_port, "/metrics").text
    files = [file for file in folder.glob("home/invites-api-metrics-*/*") if file.suffix == ".db"]
    assert "invites_api_requests_total" in shown
    assert len({file.stem.rpartition("_")[2] for file in files} - {"0"}) == 2
    processes = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in list_members(server.pid)]
    assert len(processes) >= 4
    # A database's URL may hold a password, and every user of the machine can list arguments.
    assert not any(b"sqlite:" in process for process in processes)
    for written in (shown.encode(), *(file.read_bytes() for file in files), *processes):
        canaries.assert_not_in(written.decode("latin-1"))
        assert canaries.issued.key.id.encode() not in written


def make_calls(canaries: Canaries) -> Iterator[Shape]:
    """Every route below /invites_api, with the key that works, and the canaries in every place that is read."""
    token, key = canaries.token, canaries.issued.combined
    headers = (("Authorization", f"Bearer {key}"), ("Content-Type", "application/json"))
    for value in canaries.values.values():
        yield Shape("GET", f"/invites_api/invites/{value}", headers)
        yield Shape("GET", f"/invites_api/invites?cursor={value}&state={value}", headers)
        for name in ("note", "kind", "username", "expires_in", "groups", "count"):
            yield Shape("POST", "/invites_api", (*headers, ("Accept", "application/json")), f'{{"{name}": "{value}"}}')
        yield Shape("POST", "/invites_api", (*headers, ("Idempotency-Key", value)), "{}")
        for action in ("redeem", "release"):
            for body in (f'{{"redemption_id": "{value}"}}', f'{{"redemption_id": 1, "{value}": 1}}', value):
                yield Shape("POST", f"/invites_api/invites/{token}/{action}", headers, body)
    yield Shape("GET", f"/invites_api/invites/{token}", headers)
    yield Shape("GET", "/invites_api/invites", headers)
    yield Shape("GET", "/invites_api/key", headers)
    yield Shape("DELETE", f"/invites_api/invites/{token}", headers)
    yield Shape("DELETE", f"/invites_api/invites/{token}?key={key}", headers)


@pytest.mark.real_server
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_call_makes_the_server_log_a_secret(tmp_path: Path, database: Path, log_format: str) -> None:
    """Calls that work tell tokens to who asked, and the log at its most talkative has the route's template instead."""
    store = SqliteStore(database)
    canaries = make_canaries(store, EVERYTHING)
    store.close()
    port = free_port()
    settings = f'[log]\nlevel = "debug"\nformat = "{log_format}"\n[http]\nmetrics_listen = "127.0.0.1:{port}"\n'
    statuses = set()
    with make_serve(tmp_path / "serve", database, settings, workers=2) as server:
        for shape in make_calls(canaries):
            answer = ask_server(
                server.port, shape.target, method=shape.method, headers=shape.headers, body=shape.body.encode()
            )
            statuses.add(answer.status)
            if answer.status == 201:
                canaries.new_tokens.append(answer.token)
        check_processes(server, tmp_path / "serve", port, canaries)
    log = server.stderr_file.read_text()
    assert {200, 201, 204, 400, 404, 410} <= statuses
    for template in ("<token>", "<token>/redeem", "<token>/release"):
        assert f"/invites_api/invites/{template} " in log
    canaries.assert_not_in(log)


def to_text(answer: Answer) -> str:
    """Return all of an answer in one text."""
    return "\n".join([*(f"{name}: {value}" for name, value in answer.headers), answer.body.decode("utf-8", "replace")])


def test_no_failure_makes_the_app_tell_a_secret(log: LogBook) -> None:
    """An error that carries the secret in its message, through however many causes, is logged without it."""

    class Careless(MemoryStore):
        def find_key(self, key_id: str) -> None:
            try:
                raise KeyError(canaries.issued.combined)
            except KeyError as error:
                raise RuntimeError(f"GET /invites_api?key={canaries.issued.combined}") from error

        def find_invite(self, token: str) -> None:
            raise ValueError(f"no row for {token}")

    store = Careless()
    canaries = make_canaries(store)
    app = App(Settings(database="memory:"), key_store=store, invite_store=store)
    for target in (f"/invites_api?key={canaries.issued.combined}", f"/invite?{canaries.token}"):
        answer = ask(app, target)
        assert answer.status == 500
        canaries.assert_not_in(to_text(answer))
    assert len([entry for entry in log.entries if "trace" in entry]) == 2
    canaries.assert_not_in(log.text)
    canaries.assert_not_in(log.json)


@pytest.mark.real_server
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_request_makes_the_server_tell_a_secret(tmp_path: Path, database: Path, log_format: str) -> None:
    """A real server at its most talkative writes no secret and no token, whatever it is sent, readable or not."""
    store = SqliteStore(database)
    canaries = make_canaries(store)
    store.close()
    port = free_port()
    settings = f'[log]\nlevel = "debug"\nformat = "{log_format}"\n[http]\nmetrics_listen = "127.0.0.1:{port}"\n'
    with make_serve(tmp_path / "serve", database, settings, workers=2) as server:
        sent = check_answers(
            canaries,
            make_shapes(canaries.values),
            lambda shape: send_raw(server.port, shape.to_bytes()).decode("utf-8", "replace"),
        )
        malformed = list(make_malformed(canaries.values))
        for request in malformed:
            # What cannot be read is answered by gunicorn, which repeats it to whoever has sent it, and to nobody else.
            send_raw(server.port, request)
        assert ask_server(server.port, "/healthz").status == 200
        check_processes(server, tmp_path / "serve", port, canaries)
    assert sent >= 1000
    assert len(malformed) > 250
    log = server.stderr_file.read_text()
    assert log.count("Invalid request from") > 50
    assert log.count("Ignored premature client disconnection") > 20
    canaries.assert_not_in(log)
    assert server.stdout_file.read_text() == ""
