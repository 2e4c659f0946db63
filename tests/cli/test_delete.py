"""`invites-api delete`: quiet when it worked, and right about which key it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from invites_core.stores.sqlite import SqliteStore
from tests.cli.support import Invoke, run_command, url_of
from tests.helpers import make_key


def test_a_deleted_key_is_gone(invoke: Invoke, store: SqliteStore) -> None:
    """Success prints nothing; the key is gone, the others are not, and a second time it is not found."""
    for key_id in ("aaaaaaaa", "bbbbbbbb"):
        store.add_key(make_key(id=key_id))
    run = invoke("delete", "example.com", "aaaaaaaa")
    assert (run.code, run.out, run.err) == (0, "", "")
    assert [key.id for key in store.list_keys()] == ["bbbbbbbb"]
    invoke("delete", "example.com", "aaaaaaaa").assert_failed(1, "key not found")


@pytest.mark.parametrize("host", ["bücher.example", "BÜCHER.example.", "xn--bcher-kva.example"])
def test_the_host_may_be_spelled_in_any_way(invoke: Invoke, store: SqliteStore, host: str) -> None:
    """The host is normalised before it is compared."""
    store.add_key(make_key(id="aaaaaaaa", host="bücher.example"))
    assert invoke("delete", host, "aaaaaaaa").code == 0
    assert store.list_keys() == []


def test_a_key_of_another_host_is_not_found(invoke: Invoke, store: SqliteStore) -> None:
    """The host has to be the key's own: an id alone deletes nothing."""
    store.add_key(make_key(id="aaaaaaaa"))
    invoke("delete", "other.example", "aaaaaaaa").assert_failed(1, "key not found")
    assert len(store.list_keys()) == 1


def test_a_key_of_a_host_that_is_no_longer_served_can_be_deleted(
    invoke: Invoke, store: SqliteStore, tmp_path: Path
) -> None:
    """What the settings no longer name can still be cleaned up."""
    store.add_key(make_key(id="aaaaaaaa", host="old.example"))
    config = tmp_path / "settings.toml"
    config.write_text('[hosts."example.com"]\n')
    assert invoke("--config", str(config), "delete", "old.example", "aaaaaaaa").code == 0


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("host", ["bad host", "", "a..b"], ids=ascii)
def test_a_bad_host_is_refused(invoke: Invoke, host: str) -> None:
    """What is no host name is said to be none, before the key is looked for."""
    invoke("delete", host, "aaaaaaaa").assert_failed(1, "please supply a valid host")


@pytest.mark.parametrize("key_id", ["-LihiCNf28-X", "--aBcDeF", "-", "---", "-h", "-LihiCNf28--X", "--ABCDEF", "-1"])
def test_an_id_may_begin_with_a_dash(invoke: Invoke, store: SqliteStore, key_id: str) -> None:
    """Ids of Prosody can begin with a dash, and are deleted like any other."""
    store.add_key(make_key(id=key_id))
    run = invoke("delete", "example.com", key_id)
    assert (run.code, run.out, run.err) == (0, "", "")
    assert store.list_keys() == []


@pytest.mark.parametrize("key_id", ["--json", "--help", "--database", "--abcdefgh", "--a-b", "--"])
def test_an_id_that_looks_like_an_option_comes_after_two_dashes(
    invoke: Invoke, store: SqliteStore, key_id: str
) -> None:
    """After `--` every argument is taken as it is."""
    store.add_key(make_key(id=key_id))
    run = invoke("delete", "--", "example.com", key_id)
    assert (run.code, run.out, run.err) == (0, "", "")
    assert store.list_keys() == []


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "key_id",
    ["unknown1", "", " ", "a/b", "%", "x" * 5000, "aaaaaaaa\n", "\x1b[31m", "é", "\udcff"],
    ids=lambda key_id: ascii(key_id)[:20],
)
def test_what_is_no_id_is_not_found(invoke: Invoke, key_id: str) -> None:
    """Anything that is not the id of a key is not found; it is not repeated, as it may be a secret."""
    invoke("delete", "example.com", key_id).assert_failed(1, "key not found")


def test_bytes_that_are_no_text_are_not_found(store: SqliteStore, database: Path) -> None:
    """The shell passes on any bytes, and those that are no text are the id of no key."""
    assert store.list_keys() == []
    run = run_command("--database", url_of(database), "delete", "example.com", b"\xff\xfe")
    assert (run.returncode, run.stdout, run.stderr) == (1, b"", b"Error: key not found\n")
