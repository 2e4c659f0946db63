"""`invites-api find`: one key, whichever host it is for."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from invites_core.keys import NEVER, KeyPolicy
from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke
from tests.helpers import FULL_POLICY, NOON, make_key


def test_a_plain_key_is_shown_line_by_line(invoke: Invoke, store: SqliteStore) -> None:
    """Every field has a line, with a dash for what is not there, and nothing of the secret."""
    key = make_key(id="aaaaaaaa", host="bücher.example")
    store.add_key(key)
    run = invoke("find", "aaaaaaaa")
    assert (run.code, run.err) == (0, "")
    assert run.out == (
        "id: aaaaaaaa\n"
        "host: bücher.example\n"
        "name: My test key\n"
        "created_at: 2026-03-01T12:00:00Z\n"
        "expires_at: -\n"
        "last_used_at: -\n"
        "scopes: create\n"
        "kinds: register\n"
        "groups: -\n"
        "roles: -\n"
        "allow_username: no\n"
        "max_expiry: -\n"
        "max_uses: 1\n"
        "quota: -\n"
        "all_invites: no\n"
        "header_only: no\n"
    )


def test_a_key_that_may_more_shows_it(invoke: Invoke, store: SqliteStore) -> None:
    """What was granted is shown in the words in which it is granted."""
    store.add_key(make_key(id="aaaaaaaa", policy=FULL_POLICY, expires_at=NOON + timedelta(days=1)))
    lines = dict(line.split(": ", 1) for line in invoke("find", "aaaaaaaa").out.splitlines())
    assert lines["expires_at"] == "2026-03-02T12:00:00Z"
    assert lines["scopes"] == "create, read, redeem, revoke"
    assert lines["groups"] == "Gäste, staff"
    assert (lines["max_expiry"], lines["quota"], lines["header_only"]) == ("30d", "100/1d", "yes")


def test_a_bound_that_is_none_is_told_apart(invoke: Invoke, store: SqliteStore) -> None:
    """No bound on the lifetime of invites is `never` in JSON too, unlike the default of the host."""
    store.add_key(make_key(id="aaaaaaaa", policy=KeyPolicy(max_expiry=NEVER, max_uses=None)))
    policy = json.loads(invoke("find", "aaaaaaaa", "--json").out)["policy"]
    assert (policy["max_expiry"], policy["max_uses"]) == ("never", None)


def test_json_is_what_list_shows(invoke: Invoke, store: SqliteStore) -> None:
    """With --json a key is the same object that `list --json` has of it."""
    store.add_key(make_key(id="aaaaaaaa", name="😀\x1b"))
    run = invoke("find", "--json", "aaaaaaaa")
    assert json.loads(run.out) == json.loads(invoke("list", "--json").out)[0]
    assert run.out.isascii()


@pytest.mark.parametrize("name", ["a\nb: c", "\x1b[31m", "\u202e", "a\u2028b"], ids=ascii)
def test_a_name_stays_on_its_line(invoke: Invoke, store: SqliteStore, name: str) -> None:
    """No name adds a line or steers the terminal."""
    store.add_key(make_key(id="aaaaaaaa", name=name))
    out = invoke("find", "aaaaaaaa").out
    assert len(out.splitlines()) == 16
    assert out.replace("\n", "").isprintable()


@pytest.mark.parametrize("key_id", ["-LihiCNf28-X", "--aBcDeF", "-", "-h"])
def test_an_id_may_begin_with_a_dash(invoke: Invoke, store: SqliteStore, key_id: str) -> None:
    """An id of Prosody is found as it is."""
    store.add_key(make_key(id=key_id))
    assert invoke("find", key_id).out.startswith(f"id: {key_id}\n")
    assert invoke("find", key_id, "--json").code == 0
    assert invoke("find", "--json", "--", key_id).code == 0


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "key_id", ["unknown1", "", "a/b", "\x1b[31m", "\udcff", "x" * 5000], ids=lambda key_id: ascii(key_id)[:20]
)
def test_an_unknown_key_is_not_found(invoke: Invoke, key_id: str) -> None:
    """What is no id of a key here is not found, in one line, and is not repeated."""
    invoke("find", key_id).assert_failed(1, "key not found")
    invoke("find", "--json", "--", key_id).assert_failed(1, "key not found")
