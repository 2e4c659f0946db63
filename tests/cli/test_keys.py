"""`update`, `rotate`, `delete --with-invites` and what `find` shows of a policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta

import pytest

from invites_core import ApiKeys, InvalidKey, Invites, IssuedKey, KeyPolicy
from invites_core.clock import system_clock
from invites_core.keys import NEVER, SCOPES, Quota
from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke

EVERY_OPTION = [
    "--scope=create,read,revoke,redeem",
    "--quota=100/1d",
    "--kind=register,reset,roster",
    "--max-uses=10",
    "--max-expiry=30d",
    "--group=staff",
    "--group=friends",
    "--role=prosody:member",
    "--allow-username",
    "--all-invites",
    "--header-only",
]
EVERYTHING = KeyPolicy(
    scopes=SCOPES,
    quota=Quota(100, timedelta(days=1)),
    kinds=frozenset({"register", "reset", "roster"}),
    max_uses=10,
    max_expiry=timedelta(days=30),
    groups=frozenset({"staff", "friends"}),
    roles=frozenset({"prosody:member"}),
    allow_username=True,
    all_invites=True,
    header_only=True,
)


@pytest.fixture
def issued(store: SqliteStore) -> IssuedKey:
    """A plain key that is in the database."""
    return ApiKeys(store).create("example.com", name="My test key")


def policy_of(store: SqliteStore, issued: IssuedKey) -> KeyPolicy:
    """Return what a key may now."""
    key = store.find_key(issued.key.id)
    assert key is not None
    return key.policy


# update


def test_every_option_is_taken_by_create_and_update(invoke: Invoke, store: SqliteStore, issued: IssuedKey) -> None:
    """Both commands take the same options, and the policy is the same afterwards."""
    made = invoke("create", "example.com", *EVERY_OPTION).out.partition("/")[0]
    run = invoke("update", "example.com", issued.key.id, *EVERY_OPTION)
    assert (run.code, run.out, run.err) == (0, "", "")
    assert policy_of(store, issued) == EVERYTHING
    found = store.find_key(made)
    assert found is not None
    assert found.policy == EVERYTHING


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        pytest.param(["--scope", "read"], {"scopes": frozenset({"read"})}, id="scope"),
        pytest.param(["--quota", "none"], {"quota": None}, id="no-quota"),
        pytest.param(["--max-uses", "unlimited"], {"max_uses": None}, id="unlimited"),
        pytest.param(["--max-expiry", "never"], {"max_expiry": NEVER}, id="never"),
        pytest.param(["--group", ""], {"groups": frozenset()}, id="no-groups"),
        pytest.param(["--role", "a", "--role", "b"], {"roles": frozenset({"a", "b"})}, id="other-roles"),
        pytest.param(["--no-allow-username"], {"allow_username": False}, id="no-username"),
        pytest.param(["--no-all-invites"], {"all_invites": False}, id="own-invites"),
        pytest.param(["--no-header-only"], {"header_only": False}, id="query-too"),
    ],
)
def test_only_what_is_said_is_changed(
    invoke: Invoke, store: SqliteStore, options: Sequence[str], changed: dict[str, object]
) -> None:
    """What no option names stays as it was, name and end included."""
    issued = ApiKeys(store).create("example.com", name="n", policy=EVERYTHING, expires_in=timedelta(days=9))
    assert invoke("update", "example.com", issued.key.id, *options).code == 0
    key = store.find_key(issued.key.id)
    assert key is not None
    for name in KeyPolicy.__slots__:
        assert getattr(key.policy, name) == changed.get(name, getattr(EVERYTHING, name))
    assert (key.name, key.expires_at, key.secret_hash) == ("n", issued.key.expires_at, issued.key.secret_hash)


def test_name_and_end_are_changed(invoke: Invoke, store: SqliteStore, issued: IssuedKey) -> None:
    """--name "" takes the name away; --expires-in counts from now, and never takes the end away."""
    assert invoke("update", "example.com", issued.key.id, "--name", "", "--expires-in", "90d").code == 0
    key = store.find_key(issued.key.id)
    assert key is not None
    assert key.name is None
    assert key.expires_at is not None
    assert timedelta(days=90) <= key.expires_at - key.created_at < timedelta(days=90, minutes=1)
    assert invoke("update", "example.com", issued.key.id, "--expires-in", "never").code == 0
    key = store.find_key(issued.key.id)
    assert key is not None
    assert key.expires_at is None


@pytest.mark.parametrize("command", [("update", "--name", "x"), ("rotate",), ("delete",)], ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("host", "key_id"), [("example.com", "AAAAAAAA"), ("other.example", None)], ids=["unknown", "another-host"]
)
def test_a_key_that_is_not_there(
    invoke: Invoke, store: SqliteStore, issued: IssuedKey, command: tuple[str, ...], host: str, key_id: str | None
) -> None:
    """A key that is unknown, or another host's, is not found, and nothing changes."""
    verb, *options = command
    invoke(verb, host, key_id or issued.key.id, *options).assert_failed(1, "key not found")
    assert store.find_key(issued.key.id) == issued.key


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(("update",), "there is nothing to change; see update --help", id="nothing-to-change"),
        pytest.param(
            ("rotate", "--grace", "1h", "--no-grace"), "--grace and --no-grace say the opposite", id="opposites"
        ),
    ],
)
def test_an_order_that_says_nothing_or_two_things_is_refused(
    invoke: Invoke, store: SqliteStore, issued: IssuedKey, words: tuple[str, ...], message: str
) -> None:
    """What cannot be meant is a usage error, and nothing changes."""
    verb, *options = words
    invoke(verb, "example.com", issued.key.id, *options).assert_failed(2, message)
    assert store.find_key(issued.key.id) == issued.key


@pytest.mark.parametrize(
    "options",
    [
        ["--scope", ""],
        ["--scope", "admin"],
        ["--kind", "x"],
        ["--quota", "0/1d"],
        ["--quota", "5"],
        ["--max-uses", "0"],
        ["--max-expiry", "30"],
        ["--group", "x" * 256],
        ["--expires-in", "0d"],
        ["--name", "x" * 256],
        ["--unknown"],
    ],
    ids=" ".join,
)
def test_a_bad_value_is_a_usage_error(
    invoke: Invoke, store: SqliteStore, issued: IssuedKey, options: list[str]
) -> None:
    """What cannot be granted exits 2 with one line, and nothing changes."""
    run = invoke("update", "example.com", issued.key.id, *options)
    assert (run.code, run.out, run.err.count("\n")) == (2, "", 1)
    assert store.find_key(issued.key.id) == issued.key


# rotate


def test_both_secrets_hold_in_the_grace_period(invoke: Invoke, store: SqliteStore, issued: IssuedKey) -> None:
    """rotate prints the new ID/SECRET alone on standard output; the old secret holds for the time that is told."""
    run = invoke("rotate", "example.com", issued.key.id)
    combined = run.out.rstrip("\n")
    keys = ApiKeys(store)
    assert keys.verify(combined).id == keys.verify(issued.combined).id == issued.key.id
    previous = keys.verify(combined).previous
    assert previous is not None
    assert run.err == f"The old secret holds until {previous.valid_until:%Y-%m-%dT%H:%M:%SZ}.\n"
    later = previous.valid_until + timedelta(seconds=1)
    with pytest.raises(InvalidKey):
        ApiKeys(store, clock=lambda: later).verify(issued.combined)
    assert ApiKeys(store, clock=lambda: later).verify(combined)


def test_without_grace_the_old_secret_is_refused(invoke: Invoke, store: SqliteStore, issued: IssuedKey) -> None:
    """--no-grace refuses the old secret at once."""
    run = invoke("rotate", "example.com", issued.key.id, "--no-grace")
    assert run.err == "The old secret is refused.\n"
    with pytest.raises(InvalidKey):
        ApiKeys(store).verify(issued.combined)
    assert ApiKeys(store).verify(run.out.rstrip("\n"))


def test_a_second_rotation_ends_the_first_secret(invoke: Invoke, store: SqliteStore, issued: IssuedKey) -> None:
    """A key has two secrets at most."""
    for _ in range(2):
        invoke("rotate", "example.com", issued.key.id, "--grace", "1h")
    with pytest.raises(InvalidKey):
        ApiKeys(store).verify(issued.combined)


# delete --with-invites


def test_a_key_is_deleted_with_its_invites(invoke: Invoke, store: SqliteStore, issued: IssuedKey) -> None:
    """The number of invites that were taken back is printed; run again, it is 0; others' invites stay."""
    keys, invites = ApiKeys(store), Invites(store)
    made = invites.create_many(keys.verify(issued.combined), 3)
    invites.redeem(made[0].token)
    other = invites.create_for("example.com", source="command")
    run = invoke("delete", "example.com", issued.key.id, "--with-invites")
    assert (run.code, run.out, run.err) == (0, "2\n", "")
    assert keys.find(issued.key.id) is None
    states = [invites.get(invite.token).state_at(system_clock()) for invite in made]
    assert states == ["used", "revoked", "revoked"]
    assert invites.list("example.com", state="pending").invites == (other,)
    run = invoke("delete", "example.com", issued.key.id, "--with-invites")
    assert (run.code, run.out, run.err) == (0, "0\n", "")
    invoke("delete", "example.com", issued.key.id).assert_failed(1, "key not found")


@pytest.mark.usefixtures("store")
def test_a_key_that_never_was_has_no_invites(invoke: Invoke) -> None:
    """An id that no key ever had is not found, with --with-invites too."""
    invoke("delete", "example.com", "AAAAAAAA", "--with-invites").assert_failed(1, "key not found")


# find


def test_find_shows_the_policy(invoke: Invoke, store: SqliteStore) -> None:
    """For people a line for each field, for programs the policy as an object."""
    key_id = ApiKeys(store).create("example.com", policy=EVERYTHING).key.id
    lines = invoke("find", key_id).out.splitlines()
    for line in (
        "scopes: create, read, redeem, revoke",
        "kinds: register, reset, roster",
        "groups: friends, staff",
        "max_expiry: 30d",
        "max_uses: 10",
        "quota: 100/1d",
        "allow_username: yes",
        "header_only: yes",
    ):
        assert line in lines
    shown = json.loads(invoke("find", key_id, "--json").out)
    assert shown["policy"]["quota"] == "100/1d"
    assert shown["policy"]["scopes"] == sorted(SCOPES)
