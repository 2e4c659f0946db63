"""Bodies that do not keep to HTTP, sent to a real gunicorn over a bare socket: each is 400, and does nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from invites_core import ApiKeys, Invites, KeyPolicy
from invites_core.stores.sqlite import SqliteStore
from tests.wsgi.support import count_rows, make_serve, read_json_log, send_raw

pytestmark = pytest.mark.real_server

JSON_LOG = '[log]\nformat = "json"\nlevel = "debug"\n'
CHUNKED = b"Transfer-Encoding: chunked\r\n"
BROKEN = {
    "bad size": (CHUNKED, b"zz\r\n{}\r\n0\r\n\r\n"),
    "negative size": (CHUNKED, b"-2\r\n{}\r\n0\r\n\r\n"),
    "cut short within a chunk": (CHUNKED, b"5\r\n{}"),
    "no end of a chunk": (CHUNKED, b"2\r\n{}XX0\r\n\r\n"),
    "no last chunk": (CHUNKED, b"2\r\n{}\r\n"),
    "bad extension": (CHUNKED, b"2;\x00=a\r\n{}\r\n0\r\n\r\n"),
    "bad trailer": (CHUNKED, b"2\r\n{}\r\n0\r\nbad trailer\x00\r\n\r\n"),
    "body that never came": (b"Content-Length: 60\r\n", b""),
    "body that ended early": (b"Content-Length: 60\r\n", b"{}"),
}


def test_a_broken_body_is_400_and_does_nothing(tmp_path: Path, database: Path) -> None:
    """Nothing is made or redeemed by a body that is malformed or ends early, and the server is not to blame."""
    store = SqliteStore(database)
    try:
        policy = KeyPolicy(scopes=frozenset({"create", "redeem"}))
        issued = ApiKeys(store).create("example.com", policy=policy)
        invite = Invites(store).create(issued.key)
    finally:
        store.close()
    statuses: dict[str, str] = {}
    with make_serve(tmp_path / "serve", database, JSON_LOG) as server:
        for path in ("/invites_api", f"/invites_api/invites/{invite.token}/redeem"):
            head = (
                f"POST {path} HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n"
                f"Authorization: Bearer {issued.combined}\r\nContent-Type: application/json\r\n"
            )
            for name, (framing, body) in BROKEN.items():
                answer = send_raw(server.port, head.encode() + framing + b"\r\n" + body)
                statuses[f"{name}: {path}"] = answer[:12].decode("latin-1")
    assert {name: status for name, status in statuses.items() if status != "HTTP/1.1 400"} == {}
    assert len(statuses) == 2 * len(BROKEN)
    assert count_rows(database) == 1
    assert count_rows(database, "redemptions") == 0
    assert [entry for entry in read_json_log(server) if entry["level"].lower() == "error"] == []
