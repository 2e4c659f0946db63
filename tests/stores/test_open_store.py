"""Stores by URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from invites_core.errors import InvalidRequest, StorageError
from invites_core.stores import find_max_rows, open_invite_store, open_store, parse_socket_path, parse_sqlite_path
from invites_core.stores.memory import MemoryStore
from tests.helpers import make_key


def test_memory() -> None:
    """`memory:` is an empty store each time."""
    one, other = open_store("memory:"), open_store("memory:")
    assert isinstance(one, MemoryStore)
    assert one is not other


@pytest.mark.parametrize(
    ("url", "path"),
    [
        pytest.param("sqlite:///invites.db", Path("invites.db"), id="relative"),
        pytest.param("sqlite:///var/invites.db", Path("var/invites.db"), id="relative-in-a-folder"),
        pytest.param("sqlite:////var/lib/invites.db", Path("/var/lib/invites.db"), id="absolute"),
        pytest.param("sqlite:///a b?mode=memory#c%20d", Path("a b?mode=memory#c%20d"), id="nothing-is-decoded"),
        pytest.param("memory:", None, id="memory"),
        pytest.param("postgresql://host/db", None, id="another-store"),
    ],
)
def test_path_in_a_url(url: str, path: Path | None) -> None:
    """What follows sqlite:/// is a path, as it stands."""
    assert parse_sqlite_path(url) == path


@pytest.mark.parametrize(
    "url", ["sqlite:", "sqlite://", "sqlite:///", "sqlite:/x.db", "sqlite://x.db", "sqlite:///a\0b"]
)
def test_sqlite_without_a_path_is_refused(url: str) -> None:
    """A URL that begins with sqlite: and names no path is an InvalidRequest that shows the two forms."""
    with pytest.raises(InvalidRequest, match="sqlite:///relative.db or sqlite:////absolute.db") as caught:
        open_store(url)
    assert caught.value.field == "database"


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("", id="empty"),
        pytest.param("invites.db", id="path"),
        pytest.param("mysql://admin:canary@host/db", id="unknown-scheme"),
        pytest.param("MEMORY:", id="upper-case"),
        pytest.param("://canary", id="no-scheme"),
        pytest.param("canary\n", id="newline"),
    ],
)
def test_unknown_store_is_refused(url: str) -> None:
    """A URL of no store is an InvalidRequest in one line, which shows no password."""
    with pytest.raises(InvalidRequest) as caught:
        open_store(url)
    assert caught.value.field == "database"
    assert "canary" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_relative_path_is_kept_when_the_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is of the folder that was current when the store was opened."""
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///invites.db")
    key = make_key()
    store.add_key(key)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert store.location == f"{tmp_path}/invites.db"
    store.add_key(make_key())
    assert store.find_key(key.id) == key
    store.close()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_database_is_made_only_when_asked_for(tmp_path: Path) -> None:
    """Without `create` a missing database is an error that names it, and nothing is made."""
    path = tmp_path / "invites.db"
    with pytest.raises(StorageError, match=f"^no database at {path}$"):
        open_store(f"sqlite:///{path}", create=False)
    assert list(tmp_path.iterdir()) == []
    open_store(f"sqlite:///{path}").close()
    open_store(f"sqlite:///{path}", create=False).close()


@pytest.mark.parametrize("scheme", ["agent", "prosody"])
@pytest.mark.parametrize(
    ("rest", "path"),
    [
        pytest.param("///run/a.sock", Path("/run/a.sock"), id="absolute"),
        pytest.param("a.sock", Path("a.sock"), id="relative"),
        pytest.param("../run/a b?c", Path("../run/a b?c"), id="nothing-is-decoded"),
    ],
)
def test_path_of_a_socket_in_a_url(scheme: str, rest: str, path: Path) -> None:
    """What follows // is an absolute path, what follows the scheme at once a relative one."""
    assert parse_socket_path(f"{scheme}:{rest}") == path
    assert parse_socket_path(f"sqlite:{rest}") is None


@pytest.mark.parametrize("url", ["agent:", "agent://", "agent:///", "agent:/x", "agent://host/x", "prosody:a\0b"])
def test_socket_without_a_path_is_refused(url: str) -> None:
    """A URL of a socket that names no path is an InvalidRequest that shows the two forms."""
    for open_url in (open_store, open_invite_store):
        with pytest.raises(InvalidRequest, match=r"must be \w+:///absolute.sock or \w+:relative.sock") as caught:
            open_url(url)
        assert caught.value.field == "database"


def test_a_store_of_invites_alone_is_none_of_keys() -> None:
    """`open_store` opens what holds both; `open_invite_store` opens that too."""
    for url in ("agent:///run/a.sock", "prosody:///run/a.sock"):
        with pytest.raises(InvalidRequest, match="holds invites only, no keys"):
            open_store(url)
    assert isinstance(open_invite_store("memory:"), MemoryStore)


def test_number_of_rows_is_no_part_of_the_path() -> None:
    """How many rows a running Prosody may be asked to read stands at the end of its URL, and nowhere else."""
    url = "prosody:///run/prosody.sock?max_rows=20000"
    assert (parse_socket_path(url), find_max_rows(url)) == (Path("/run/prosody.sock"), 20000)
    assert find_max_rows("prosody:///run/prosody.sock") is None
    for other in ("prosody:///run/x?max_rows=0", "agent:///run/x?max_rows=5", "prosody:///run/x?max_rows=1?"):
        assert parse_socket_path(other) == Path(other.partition("//")[2])
