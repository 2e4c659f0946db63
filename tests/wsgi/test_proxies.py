"""Behind proxies: who the client is, and what a forwarded header can and cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from werkzeug.middleware.proxy_fix import ProxyFix

from invites_core import ApiKeys, SecretHasher
from invites_core.stores.sqlite import SqliteStore
from invites_wsgi import App, Settings, create_app
from tests.wsgi.support import LogBook, ask, ask_server, make_serve, read_json_log

PEER = "192.0.2.7"
FORWARDED = [
    pytest.param(0, None, PEER, id="0-none"),
    pytest.param(0, "203.0.113.9", PEER, id="0-ignores-it"),
    pytest.param(1, None, PEER, id="1-none"),
    pytest.param(1, "203.0.113.9", "203.0.113.9", id="1-takes-the-only-one"),
    pytest.param(1, "198.51.100.1, 203.0.113.9", "203.0.113.9", id="1-counts-from-the-right"),
    pytest.param(1, "198.51.100.1,10.0.0.1,203.0.113.9", "203.0.113.9", id="1-without-spaces"),
    pytest.param(2, "198.51.100.1, 203.0.113.9, 10.0.0.1", "203.0.113.9", id="2-counts-from-the-right"),
    pytest.param(2, "203.0.113.9", PEER, id="2-too-few"),
    pytest.param(1, "198.51.100.1, 2001:db8::1", "2001:db8::1", id="1-ipv6"),
    pytest.param(1, "", PEER, id="1-empty"),
]


@pytest.mark.parametrize(("proxies", "forwarded", "client"), FORWARDED)
def test_the_client_is_counted_from_the_right(
    database: Path, log: LogBook, proxies: int, forwarded: str | None, client: str
) -> None:
    """The client is whom the outermost trusted proxy has seen; what it sent itself is never taken for it."""
    app = create_app(Settings(database=f"sqlite:///{database}", trusted_proxies=proxies))
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    assert ask(app, "/healthz", headers=headers).status == 200
    assert log.requests[-1]["client"] == client


@pytest.mark.parametrize("proxies", [0, 1, 2])
def test_no_other_forwarded_header_is_trusted(database: Path, log: LogBook, proxies: int) -> None:
    """Host, scheme, port and prefix stay what they are: no proxy has to say them, and no client can."""
    store = SqliteStore(database)
    issued = ApiKeys(store, hasher=SecretHasher(time_cost=1, memory_kib=8)).create("example.com")
    app = create_app(Settings(database=f"sqlite:///{database}", trusted_proxies=proxies))
    seen: list[dict[str, Any]] = []

    def spy(environ: dict[str, Any], start_response: Any) -> Any:
        seen.append(environ)
        return app(environ, start_response)

    headers = {
        "Authorization": f"Bearer {issued.combined}",
        "Host": "127.0.0.1",
        "Forwarded": "for=203.0.113.9;host=evil.example;proto=https",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Port": "444",
        "X-Forwarded-Prefix": "/evil",
        "X-Real-IP": "203.0.113.9",
        "X-Original-URL": "/healthz",
    }
    answer = ask(spy, "/invites_api", headers=headers)
    assert (answer.status, answer["Location"]) == (201, f"https://example.com/invite?{answer.token}")
    assert log.requests[-1]["client"] == PEER
    assert (seen[0]["HTTP_HOST"], seen[0]["SCRIPT_NAME"], seen[0]["wsgi.url_scheme"]) == ("127.0.0.1", "", "http")
    store.close()


def test_without_proxies_the_app_stands_alone(database: Path) -> None:
    """Nothing that reads forwarded headers is put before the app unless proxies are in the settings."""
    url = f"sqlite:///{database}"
    assert isinstance(create_app(Settings(database=url)), App)
    assert isinstance(create_app(Settings(database=url, trusted_proxies=1)), ProxyFix)


@pytest.mark.real_server
@pytest.mark.parametrize(
    ("proxies", "client"),
    [
        pytest.param(0, "127.0.0.1", id="0"),
        pytest.param(1, "203.0.113.9", id="1"),
        pytest.param(2, "198.51.100.1", id="2"),
    ],
)
def test_gunicorn_leaves_the_counting_to_the_app(tmp_path: Path, database: Path, proxies: int, client: str) -> None:
    """Behind gunicorn too the client is counted from the right, and headers that gunicorn may honour change nothing."""
    settings = f'[http]\ntrusted_proxies = {proxies}\nworkers = 1\n[log]\nformat = "json"\n'
    headers = {
        "X-Forwarded-For": "198.51.100.1, 203.0.113.9",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Ssl": "on",
        "SCRIPT_NAME": "/healthz",
        "PATH_INFO": "/invite",
        "REMOTE_ADDR": "203.0.113.1",
    }
    with make_serve(tmp_path / "serve", database, settings) as server:
        assert ask_server(server.port, "/healthz", headers=headers).status == 200
        requests = [entry for entry in read_json_log(server) if "ms" in entry]
    assert requests[-1]["client"] == client
