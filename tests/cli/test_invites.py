"""`invite …` and `purge`: what an admin does with invites, without a key."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import segno

from invites_core import Invite, Invites
from invites_core.clock import system_clock
from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke, Run, url_of
from tests.helpers import PATIENCE, make_invite
from tests.wsgi.support import CLEAN_ENVIRONMENT, COMMAND

LINK = re.compile(r"https://example\.com/invite\?([A-Za-z0-9_-]{24})")


@pytest.fixture
def invites(store: SqliteStore) -> Invites:
    """The invites of the test's database."""
    return Invites(store)


@pytest.fixture
def pending(invites: Invites) -> Invite:
    """An invite that is pending."""
    return invites.create_for("example.com", source="command")


# create


@pytest.mark.usefixtures("store")
def test_the_link_is_printed(invoke: Invoke, invites: Invites) -> None:
    """Without options it is an invite to register, and only its link is printed."""
    run = invoke("invite", "create", "example.com")
    found = LINK.fullmatch(run.out.rstrip("\n"))
    assert (run.code, run.err) == (0, "")
    assert found
    made = invites.get(found[1])
    assert (made.source, made.kind, made.max_uses) == ("command", "register", 1)
    assert made.expires_at == made.created_at + timedelta(days=7)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(["--username", "ALICE"], {"username": "alice", "jid": "alice@example.com"}, id="username"),
        pytest.param(
            ["--kind=roster", "--username=bob", "--registration"],
            {"kind": "roster", "registration": True},
            id="roster-registers",
        ),
        pytest.param(
            ["--kind=roster", "--username=bob", "--no-registration"], {"registration": False}, id="roster-alone"
        ),
        pytest.param(["--kind", "reset", "--username", "carol"], {"kind": "reset", "max_uses": 1}, id="reset"),
        pytest.param(["--expires-in", "never"], {"expires_at": None}, id="never"),
        pytest.param(["--max-uses", "5"], {"max_uses": 5}, id="uses"),
        pytest.param(["--max-uses", "unlimited"], {"max_uses": None}, id="unlimited"),
        pytest.param(["--group=a", "--group=b", "--role=r"], {"groups": ["a", "b"], "roles": ["r"]}, id="labels"),
        pytest.param(["--note", "für Zoë"], {"note": "für Zoë"}, id="note"),
    ],
)
def test_each_option_makes_what_it_says(invoke: Invoke, options: list[str], expected: dict[str, object]) -> None:
    """An option is a field of the invite; --json prints one object."""
    shown = json.loads(invoke("invite", "create", "example.com", *options, "--json").out)
    assert {name: shown[name] for name in expected} == expected
    assert json.loads(invoke("invite", "show", "--json", "--", shown["token"]).out)["uri"] == shown["uri"]


@pytest.mark.usefixtures("store")
def test_count_makes_many(invoke: Invoke, invites: Invites) -> None:
    """A link a line, or with --json a list, of one too."""
    assert len(LINK.findall(invoke("invite", "create", "example.com", "--count", "3").out)) == 3
    assert len(json.loads(invoke("invite", "create", "example.com", "--count", "1", "--json").out)) == 1
    assert len(invites.list("example.com").invites) == 4


@pytest.mark.usefixtures("store")
def test_the_link_is_drawn(invoke: Invoke) -> None:
    """--qr prints the link and draws the code that holds it."""
    run = invoke("invite", "create", "example.com", "--qr")
    link, _, drawn = run.out.partition("\n")
    assert LINK.fullmatch(link)
    expected = io.StringIO()
    segno.make(link, micro=False).terminal(out=expected, compact=True)
    assert drawn == expected.getvalue()
    assert len(drawn.splitlines()) > 15


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(["bad host"], 1, id="host"),
        pytest.param(["example.com", "--kind", "x"], 2, id="kind"),
        pytest.param(["example.com", "--kind", "reset"], 2, id="reset-of-nobody"),
        pytest.param(["example.com", "--expires-in", "7"], 2, id="bare-number"),
        pytest.param(["example.com", "--max-uses", "0"], 2, id="no-uses"),
        pytest.param(["example.com", "--max-uses", "x"], 2, id="uses"),
        pytest.param(["example.com", "--count", "0"], 2, id="none"),
        pytest.param(["example.com", "--count", "1001"], 2, id="too-many"),
        pytest.param(["example.com", "--count", "2", "--username", "a"], 2, id="two-for-one"),
        pytest.param(["example.com", "--username", "a b"], 2, id="username"),
        pytest.param(["example.com", "--note", "x" * 1001], 2, id="note"),
        pytest.param(["example.com", "--quota", "1/1d"], 2, id="unknown-option"),
    ],
)
def test_what_cannot_be_made_is_refused(invoke: Invoke, invites: Invites, arguments: list[str], code: int) -> None:
    """One line says what is wrong, and nothing is made."""
    run = invoke("invite", "create", *arguments)
    assert (run.code, run.out, run.err.count("\n")) == (code, "", 1)
    assert invites.list("example.com").invites == ()


# list


def columns_of(run: Run) -> list[list[str]]:
    """Return the lines that a list printed, taken apart."""
    assert run.code == 0
    return [line.split("\t") for line in run.out.splitlines()]


def test_a_list_has_a_line_for_each_invite(invoke: Invoke, store: SqliteStore) -> None:
    """Token, kind, what for, state, since, uses and source, with tabs between, newest first."""
    now = system_clock().replace(microsecond=0)
    old = make_invite(created_at=now - timedelta(hours=2), expires_at=None, source="command", max_uses=None)
    new = make_invite(created_at=now - timedelta(hours=1), expires_at=None, source="a\tb\n")
    store.add_invites([old, new])
    since = [f"{invite.created_at:%Y-%m-%d %H:%M}" for invite in (new, old)]
    assert columns_of(invoke("invite", "list", "example.com")) == [
        [new.token, "register", "example.com", "pending", since[0], "0/1", r"a\tb\n"],
        [old.token, "register", "example.com", "pending", since[1], "0/∞", "command"],
    ]


def test_a_list_of_some(invoke: Invoke, invites: Invites) -> None:
    """--state and --source choose; --limit ends the list, and --cursor goes on where it ended."""
    made = [invites.create_for("example.com", source=f"s{number}") for number in range(5)]
    invites.revoke(made[0].token, by="me")
    assert [row[0] for row in columns_of(invoke("invite", "list", "example.com", "--state", "revoked"))] == [
        made[0].token
    ]
    assert [row[6] for row in columns_of(invoke("invite", "list", "example.com", "--source", "s3"))] == ["s3"]
    run = invoke("invite", "list", "example.com", "--limit", "3")
    cursor = re.fullmatch(r"There are more: --cursor (\S+)\n", run.err)
    assert cursor
    rest = invoke("invite", "list", "example.com", "--cursor", cursor[1])
    assert rest.err == ""
    assert sorted(row[0] for row in [*columns_of(run), *columns_of(rest)]) == sorted(one.token for one in made)
    shown = json.loads(invoke("invite", "list", "example.com", "--limit", "3", "--json").out)
    assert (len(shown["invites"]), shown["next"]) == (3, cursor[1])


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(["bad host"], 1, id="host"),
        pytest.param(["example.com", "--state", "gone"], 2, id="state"),
        pytest.param(["example.com", "--limit", "0"], 2, id="limit"),
        pytest.param(["example.com", "--cursor", "x"], 2, id="cursor"),
    ],
)
def test_a_list_that_cannot_be(invoke: Invoke, arguments: list[str], code: int) -> None:
    """One line says what is wrong."""
    run = invoke("invite", "list", *arguments)
    assert (run.code, run.out, run.err.count("\n")) == (code, "", 1)


def test_a_terminal_shows_a_table(database: Path, pending: Invite) -> None:
    """On a terminal the columns have headings and stand in line."""
    primary, secondary = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in CLEAN_ENVIRONMENT}
    command = [*COMMAND, "--database", url_of(database), "invite", "list", "example.com"]
    try:
        done = subprocess.run(
            command, env=environment, stdin=secondary, stdout=secondary, stderr=secondary, timeout=PATIENCE
        )
        heading, row = os.read(primary, 65_536).decode().splitlines()
    finally:
        os.close(primary)
        os.close(secondary)
    assert done.returncode == 0
    assert re.split(r"  +", heading) == ["TOKEN", "KIND", "FOR", "STATE", "SINCE (UTC)", "USES", "SOURCE"]
    assert row.startswith(f"{pending.token}  register  example.com  pending  ")
    assert row.index("pending") == heading.index("STATE")


# By token


def test_show_tells_all(invoke: Invoke, invites: Invites) -> None:
    """State, since when, by whom, link and every use, for people and for programs."""
    invite = invites.create_for("example.com", source="command", max_uses=3)
    invites.redeem(invite.token, redeemer="alice", redemption_id="r1")
    invites.redeem(invite.token, redeemer="bob\n", redemption_id="r2")
    invites.release(invite.token, redemption_id="r2")
    invites.release(invite.token, redemption_id="r3")
    invites.revoke(invite.token, by="me")
    lines = invoke("invite", "show", "--", invite.token).out.splitlines()
    for line in ("state: revoked", "revoked_by: me", "uses: 1", f"landing_page: {invite.landing_page}"):
        assert line in lines
    uses = [line for line in lines if line.startswith("use ")]
    assert len(uses) == 3
    assert uses[0].startswith("use r1: alice, 20")
    assert re.fullmatch(r"use r2: bob\\n, 20\S+Z, released 20\S+Z", uses[1])
    assert re.fullmatch(r"use r3: -, never redeemed, released 20\S+Z", uses[2])
    shown = json.loads(invoke("invite", "show", "--json", "--", invite.token).out)
    assert (shown["state"], len(shown["redemptions"])) == ("revoked", 3)


def test_a_use_is_taken_and_given_back(invoke: Invoke, invites: Invites, pending: Invite) -> None:
    """redeem prints the redemption's id, a repeat the same; release prints nothing and frees the use."""
    run = invoke("invite", "redeem", "--redeemer", "alice", "--", pending.token)
    identity = run.out.rstrip("\n")
    assert (run.code, run.err) == (0, "")
    assert identity
    again = invoke("invite", "redeem", "--redeemer", "alice", "--redemption", identity, "--json", "--", pending.token)
    assert json.loads(again.out)["redemption_id"] == identity
    invoke("invite", "redeem", "--", pending.token).assert_failed(1, "this invite has been used")
    for _ in range(2):
        run = invoke("invite", "release", "--redemption", identity, "--", pending.token)
        assert (run.code, run.out, run.err) == (0, "", "")
    assert invites.get(pending.token).uses == 0
    run = invoke("invite", "redeem", "--redemption", identity, "--", pending.token)
    run.assert_failed(1, "this redemption was released")


def test_a_revoked_invite_stays_revoked(invoke: Invoke, invites: Invites, pending: Invite) -> None:
    """revoke prints nothing; a second time it says that it was done."""
    run = invoke("invite", "revoke", "--", pending.token)
    assert (run.code, run.out, run.err) == (0, "", "")
    assert invites.get(pending.token).revoked_by == "command"
    invoke("invite", "revoke", "--", pending.token).assert_failed(1, "this invite has been revoked")
    invoke("invite", "redeem", "--", pending.token).assert_failed(1, "this invite has been revoked")


COMMANDS: dict[str, list[str]] = {"show": [], "revoke": [], "redeem": [], "release": ["--redemption", "r1"]}


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("token", ["A" * 24, "x", "", "é" * 20], ids=ascii)
def test_an_unknown_token(invoke: Invoke, command: str, token: str) -> None:
    """What is no token of an invite is no invite, and it is not repeated in the message."""
    invoke("invite", command, token, *COMMANDS[command]).assert_failed(1, "there is no such invite")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("token", ["-" + "A" * 23, "--" + "A" * 22, "-LihiCNf28-XAAAAAAAAAAAA"])
def test_a_token_may_begin_with_a_dash(invoke: Invoke, store: SqliteStore, command: str, token: str) -> None:
    """A token is no option, whatever it begins with."""
    store.add_invites([make_invite(token=token, expires_at=None)])
    assert invoke("invite", command, token, *COMMANDS[command]).code == 0


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("ending", ["\n", "", "\r\n", "\nmore\n"], ids=ascii)
def test_a_token_can_come_by_standard_input(
    invoke: Invoke, pending: Invite, monkeypatch: pytest.MonkeyPatch, command: str, ending: str
) -> None:
    """With - the token is the first line of standard input, and stands in no argument."""
    monkeypatch.setattr("sys.stdin", io.StringIO(pending.token + ending))
    assert invoke("invite", command, "-", *COMMANDS[command]).code == 0


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["invite"], id="group-alone"),
        pytest.param(["invite", "mend"], id="unknown"),
        pytest.param(["invite", "show"], id="no-token"),
        pytest.param(["invite", "show", "A" * 24, "x"], id="two-tokens"),
        pytest.param(["invite", "release", "A" * 24], id="release-of-nothing"),
        pytest.param(["invite", "redeem", "A" * 24, "--redemption", "a b"], id="bad-identity"),
        pytest.param(["purge"], id="purge-without-an-age"),
        pytest.param(["purge", "--older-than", "90"], id="purge-bare-number"),
    ],
)
def test_a_usage_error_exits_2(invoke: Invoke, arguments: list[str]) -> None:
    """What is not understood exits 2, with nothing on standard output and no token in the message."""
    run = invoke(*arguments)
    assert (run.code, run.out) == (2, "")
    assert "A" * 24 not in run.err


# purge


@pytest.fixture
def aged(store: SqliteStore) -> dict[str, str]:
    """Tokens of invites that are over for a while, by what they are."""
    now = system_clock().replace(microsecond=0)

    def ago(days: int) -> datetime:
        return now - timedelta(days=days)

    made = {
        "expired": make_invite(created_at=ago(200), expires_at=ago(100)),
        "revoked": make_invite(created_at=ago(200), expires_at=None, closed_at=ago(100), revoked_by="me"),
        "fresh": make_invite(created_at=ago(200), expires_at=ago(10)),
        "pending": make_invite(created_at=ago(200), expires_at=None),
    }
    store.add_invites(list(made.values()))
    return {name: invite.token for name, invite in made.items()}


def test_what_is_long_over_is_purged(invoke: Invoke, store: SqliteStore, aged: dict[str, str]) -> None:
    """The number is printed; what is pending or over for a shorter time stays; a second time there is nothing."""
    run = invoke("purge", "--older-than", "90d")
    assert (run.code, run.out, run.err) == (0, "2\n", "")
    assert [name for name, token in aged.items() if store.find_invite(token)] == ["fresh", "pending"]
    assert invoke("purge", "--older-than", "90d").out == "0\n"


def test_the_age_can_be_a_setting(invoke: Invoke, tmp_path: Path, aged: dict[str, str]) -> None:
    """Without --older-than the setting purge_after counts, which --older-than outweighs."""
    config = tmp_path / "settings.toml"
    config.write_text('purge_after = "5d"\n')
    assert invoke("--config", str(config), "purge", "--older-than", "101d").out == "0\n"
    assert invoke("--config", str(config), "purge").out == f"{len(aged) - 1}\n"
