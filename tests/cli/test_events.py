"""The command's events: kept in a file where the settings name one, and nowhere else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke, Run
from tests.helpers import make_invite
from tests.privileges import without_power_over_files

InvokeWith = Callable[..., Run]


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """The file for the events, which is not there yet."""
    return tmp_path / "etc" / "command.log"


@pytest.fixture
def invoke_with(invoke: Invoke, events: Path) -> InvokeWith:
    """Runs the command with settings that name the file, relative to theirs."""
    events.parent.mkdir()
    settings = events.parent / "settings.toml"
    settings.write_text('[log]\ncommand_file = "command.log"\nformat = "json"\nlevel = "error"\n')
    return lambda *arguments: invoke("--config", str(settings), *arguments)


def read(events: Path) -> list[dict[str, Any]]:
    """Return the lines of the file without what every line has, and empty it."""
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    events.write_text("")
    every = ("time", "level", "pid")
    for line in lines:
        assert [line.pop(name) for name in every][1:] == ["info", os.getpid()]
    return lines


def test_each_command_that_changes_something_leaves_a_line(
    invoke_with: InvokeWith, store: SqliteStore, events: Path
) -> None:
    """Keys and invites that are made, changed and ended by the command are lines in the file."""
    combined = invoke_with("create", "example.com").out.strip()
    key_id, _, secret = combined.partition("/")
    key = {"key": key_id, "host": "example.com"}
    assert read(events) == [{"message": "key.created", **key}]
    invoke_with("update", "example.com", key_id, "--name", "A bot")
    rotated = invoke_with("rotate", "example.com", key_id).out.strip().partition("/")[2]
    assert read(events) == [{"message": "key.updated", **key}, {"message": "key.rotated", **key}]
    link = invoke_with("invite", "create", "example.com", "--note", "canary").out.strip()
    token = link.partition("?")[2]
    invite = {"host": "example.com", "kind": "register", "count": 1}
    invoke_with("invite", "redeem", token, "--redeemer", "alice")
    identity = store.list_redemptions(token)[0].redemption_id
    invoke_with("invite", "release", token, "--redemption", identity)
    invoke_with("invite", "revoke", token)
    text = events.read_text()
    assert read(events) == [
        {"message": "invite.created", **invite, "source": "command"},
        {"message": "invite.redeemed", **invite},
        {"message": "invite.released", **invite},
        {"message": "invite.revoked", **invite, "source": "command"},
    ]
    store.add_invites([make_invite(source=f"api/token/{key_id}", created_at=store.find_invite(token).created_at)])  # type: ignore[union-attr]  # it is there
    invoke_with("delete", "example.com", key_id, "--with-invites")
    invoke_with("purge", "--older-than", "1s")
    text += events.read_text()
    names = [line["message"] for line in read(events)]
    assert names[0] == "key.deleted"
    assert set(names) <= {"key.deleted", "invite.revoked", "invite.purged"}
    for hidden in (secret, rotated, token, identity, "canary", "alice"):
        assert hidden not in text


def test_what_changes_nothing_leaves_no_line(invoke_with: InvokeWith, store: SqliteStore, events: Path) -> None:
    """Looking and failing are no events."""
    for arguments in (("list",), ("check",), ("delete", "example.com", "AAAAAAAA"), ("invite", "list", "example.com")):
        invoke_with(*arguments)
    assert not events.exists() or events.read_text() == ""


def test_the_file_is_private(invoke_with: InvokeWith, events: Path) -> None:
    """A file that the command makes is for its owner alone."""
    invoke_with("create", "example.com")
    assert events.stat().st_mode & 0o777 == 0o600


def test_without_the_setting_nothing_is_told(invoke: Invoke, database: Path) -> None:
    """A command without settings says what it has always said, and writes no file."""
    run = invoke("create", "example.com")
    assert "key.created" not in run.out + run.err
    assert [path.name.partition("-")[0] for path in database.parent.iterdir()] == ["invites.db"] * len(
        list(database.parent.iterdir())
    )


def test_a_file_that_cannot_be_written_stops_the_command(
    invoke_with: InvokeWith, store: SqliteStore, events: Path
) -> None:
    """What could not be kept is not done."""
    events.touch(mode=0o400)
    with without_power_over_files():
        run = invoke_with("create", "example.com")
    run.assert_failed(1, f"{events}: permission denied")
    assert store.list_keys() == []


def test_a_line_that_cannot_be_written_is_told(invoke_with: InvokeWith, store: SqliteStore, events: Path) -> None:
    """On a full disk the key is made and printed, and standard error says that its line is missing."""
    events.symlink_to("/dev/full")
    run = invoke_with("create", "example.com")
    assert run.code == 0
    assert run.out.strip()
    assert f"key.created could not be written to {events}: No space left on device" in run.err
    assert len(store.list_keys()) == 1
