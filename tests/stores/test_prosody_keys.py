"""The files of Prosody's keys: which rows are keys, and how what is no such file is refused."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from invites_core.errors import CorruptRecord, InvalidHost, StorageError, Unsupported
from invites_core.foreign_keys import ForeignKey, UnreadableKey
from invites_core.stores import prosody_keys
from invites_core.stores.prosody_keys import ProsodyKeyFile, ProsodyKeys
from tests.stores.test_lua_tables import write_file

SECRET = "PZnBH2Qxkju3OL_UDrZZq-aWFXq4HxFhImmH"
ROW: dict[str, Any] = {
    "id": "a",
    "token": SECRET,
    "name": "A bot",
    "created_at": 1795484359,
    "allowed_methods": {"GET": True, "POST": True},
}


@pytest.fixture
def dat(tmp_path: Path) -> Path:
    """Where the file is, as Prosody lays it."""
    folder = tmp_path / "example%2ecom"
    folder.mkdir()
    return folder / "invite_api_keys.dat"


def without(name: str) -> dict[str, Any]:
    return {field: value for field, value in ROW.items() if field != name}


@pytest.mark.parametrize(
    ("row", "name", "created_at"),
    [
        pytest.param(ROW, "A bot", datetime(2026, 11, 24, 1, 39, 19, tzinfo=UTC), id="whole"),
        pytest.param(without("name"), None, datetime(2026, 11, 24, 1, 39, 19, tzinfo=UTC), id="no-name"),
        pytest.param(ROW | {"name": True}, None, datetime(2026, 11, 24, 1, 39, 19, tzinfo=UTC), id="odd-name"),
        pytest.param(ROW | {"created_at": 1.5}, "A bot", datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), id="fraction"),
        pytest.param(without("created_at"), "A bot", None, id="no-time"),
    ],
)
def test_a_row_is_a_key(dat: Path, row: dict[str, Any], name: str | None, created_at: datetime | None) -> None:
    """What Prosody itself would take as a key is one, also where it has no name or no time."""
    dat.write_bytes(write_file({"a": row}))
    assert ProsodyKeyFile(dat).list_keys("example.com") == [
        ForeignKey(id="a", secret=SECRET, name=name, created_at=created_at)
    ]


def test_a_key_without_methods_may_use_all(dat: Path) -> None:
    """To Prosody a row that names no methods allows them all."""
    dat.write_bytes(write_file({"a": without("allowed_methods")}))
    [key] = ProsodyKeyFile(dat).list_keys("example.com")
    assert isinstance(key, ForeignKey)


@pytest.mark.parametrize(
    ("key_id", "row", "reason"),
    [
        pytest.param("a", "text", "is not a key", id="no-table"),
        pytest.param(5, ROW, "is not a key", id="numbered"),
        pytest.param("b", ROW, "its row names another id", id="another-id"),
        pytest.param("a", without("id"), "its row names another id", id="no-id"),
        pytest.param("a", without("token"), "has no secret", id="no-secret"),
        pytest.param("a", ROW | {"token": 5}, "has no secret", id="number-as-secret"),
        pytest.param("a", ROW | {"allowed_methods": {"POST": True}}, "may make no invites", id="no-method"),
        pytest.param("a", ROW | {"allowed_methods": {"GET": False}}, "may make no invites", id="method-refused"),
        pytest.param("a", ROW | {"allowed_methods": "GET"}, "may make no invites", id="odd-methods"),
        pytest.param("a", ROW | {"created_at": -1}, "at no time that there is", id="before-1970"),
        pytest.param("a", ROW | {"created_at": 10**18}, "at no time that there is", id="after-9999"),
        pytest.param("a", ROW | {"created_at": float("inf")}, "at no time that there is", id="infinite"),
        pytest.param("a", ROW | {"created_at": "1"}, "at no time that there is", id="text-as-time"),
        pytest.param("a", ROW | {"created_at": True}, "at no time that there is", id="truth-as-time"),
    ],
)
def test_a_row_that_is_no_key_is_named(dat: Path, key_id: str | int, row: object, reason: str) -> None:
    """What could do nothing in Prosody is no key: it is named with the reason, and hides no other."""
    dat.write_bytes(write_file({key_id: row, "good": ROW | {"id": "good"}}))
    odd, good = ProsodyKeyFile(dat).list_keys("example.com")
    assert isinstance(odd, UnreadableKey)
    # One that is perhaps no id, but the token of an invite in a file given by mistake, is not shown whole.
    assert odd.id == (f"{key_id}…" if reason == "its row names another id" else str(key_id))
    assert reason in odd.reason
    assert isinstance(good, ForeignKey)


def test_a_mistake_names_file_and_line(dat: Path) -> None:
    """A file that is damaged is refused in one line, which holds nothing of its content."""
    dat.write_bytes(write_file({"a": ROW})[:-40])
    with pytest.raises(CorruptRecord) as caught:
        ProsodyKeyFile(dat).list_keys("example.com")
    assert str(caught.value).startswith(f"{dat}, line ")
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_the_folder_of_another_host_is_refused(dat: Path) -> None:
    """A file in Prosody's folder of another host is not taken for this one's; elsewhere it may lie in any folder."""
    dat.write_bytes(write_file({"a": ROW}))
    with pytest.raises(InvalidHost, match="folder of example.com, not of example.org"):
        ProsodyKeyFile(dat).list_keys("example.org")
    elsewhere = dat.parent.parent / "keys.dat"
    dat.rename(elsewhere)
    assert len(ProsodyKeyFile(elsewhere).list_keys("example.org")) == 1


def test_the_folder_of_a_host_beyond_ascii_is_its_own(tmp_path: Path) -> None:
    """Prosody writes the bytes of a name one by one; so they are read."""
    folder = tmp_path / "b%c3%bccher%2eexample"
    folder.mkdir()
    (folder / "invite_api_keys.dat").write_bytes(write_file({}))
    assert ProsodyKeyFile(folder / "invite_api_keys.dat").list_keys("bücher.example") == []


def test_what_cannot_be_read_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are not there, folders, pipes and files without end are refused at once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    large = tmp_path / "large"
    large.write_bytes(b"return {" + b" " * 2000)
    monkeypatch.setattr(prosody_keys, "MAX_FILE", 1024)
    for path, why in (
        (tmp_path / "none", "no such file"),
        (tmp_path, "directory|not a file"),
        (pipe, "not a file"),
        (large, "larger than"),
    ):
        with pytest.raises(StorageError, match=why):
            ProsodyKeyFile(path).list_keys("example.com")


def test_nothing_is_taken_out_of_a_file(dat: Path) -> None:
    """A file stays as it is."""
    with pytest.raises(Unsupported):
        ProsodyKeyFile(dat).remove_key("example.com", "a", SECRET)


def test_a_prosody_that_is_not_there_says_so(tmp_path: Path) -> None:
    """Without a Prosody behind the socket the error names its path."""
    with pytest.raises(StorageError, match="prosody.sock: No such file"):
        ProsodyKeys(tmp_path / "prosody.sock").list_keys("example.com")
