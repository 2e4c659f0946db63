"""`invites-api check` on a Prosody behind an agent: it says what has to be enabled there, and what may be disabled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from invites_core import open_store
from invites_core.stores.prosody import ProsodyStore
from tests.cli.support import run_command
from tests.helpers import PATIENCE
from tests.prosody import ConsoleProsody, make_live, start_prosody
from tests.stores.agents import serving

pytestmark = pytest.mark.real_server

BARE = 'modules_disabled = { "invites", "invites_register", "invites_api", "invites_page" }'
ADD = 'add "invites" to its modules_enabled'
HOSTS = frozenset({"example.com", "bare.example", "missing.example"})


@pytest.fixture
def own_prosody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleProsody]:
    """A Prosody with a host that has no module for invites."""
    extra = f'VirtualHost "example.com"\nVirtualHost "bare.example"\n{BARE}'
    with start_prosody(tmp_path_factory.mktemp("c"), hosts=(), extra=extra) as running:
        yield running


def check(prosody: ConsoleProsody, folder: Path, *hosts: str, max_rows: int = 5_000) -> tuple[int, Sequence[str]]:
    """Check the settings of a service for hosts, and return the exit code and the lines that are not ``ok``."""
    keys, config = folder / "keys.db", folder / "settings.toml"
    open_store(f"sqlite:///{keys}").close()
    listed = "".join(f'[hosts."{host}"]\n' for host in hosts)
    config.write_text(f'database = "sqlite:///{keys}"\ninvites = "agent:agent.sock"\n{listed}', "utf-8")
    config.chmod(0o600)
    store = ProsodyStore(prosody.socket, timeout=PATIENCE, max_rows=max_rows)
    with contextlib.closing(store), serving(store, folder / "agent.sock", hosts=HOSTS):
        ended = run_command("--config", str(config), "check")
    assert ended.stderr == b""
    return ended.returncode, [line for line in ended.stdout.decode().splitlines() if not line.startswith("ok")]


def test_what_prosody_lacks_is_found(own_prosody: ConsoleProsody, tmp_path: Path) -> None:
    """A host that it does not serve, and one without the module, are each told with what to do."""
    code, lines = check(own_prosody, tmp_path, "example.com")
    assert (code, lines) == (0, [])
    code, lines = check(own_prosody, tmp_path, "example.com", "bare.example", "missing.example")
    assert code == 1
    bare, missing = lines
    assert bare == f"bad  bare.example: Prosody has no mod_invites for bare.example: {ADD}"
    assert missing == (
        "bad  missing.example: please supply a valid host: Prosody does not serve missing.example; it must be among the"
        " hosts of the agent's settings, and one that Prosody serves"
    )


def test_keys_that_prosody_takes_itself_are_noted(own_prosody: ConsoleProsody, tmp_path: Path) -> None:
    """Prosody's own mod_invites_api is no fault, and noted while it has keys that it would take."""
    own_prosody.create_key("example.com", "An old bookmark")
    code, lines = check(own_prosody, tmp_path, "example.com")
    [line] = lines
    assert code == 0
    assert line == (
        "note example.com: Prosody's own mod_invites_api takes keys as well; import-keys --remove takes them out, then"
        " disable it"
    )
    own_prosody.run('module:unload("invites_api", "example.com")')
    assert check(own_prosody, tmp_path, "example.com") == (0, [])


def test_prosody_without_any_module_is_found(own_prosody: ConsoleProsody, tmp_path: Path) -> None:
    """Where no host has the module, the store does not answer, and the line says what to enable."""
    for name in ("invites_api", "invites_page", "invites_register", "invites"):
        own_prosody.run(f'module:unload("{name}", "example.com")')
    code, lines = check(own_prosody, tmp_path, "example.com")
    assert code == 1
    assert lines == [f"bad  Prosody has no mod_invites for a host: {ADD}"]


def test_more_rows_than_are_read_at_once_are_told_once(own_prosody: ConsoleProsody, tmp_path: Path) -> None:
    """Above the limit of lists one line says so."""
    store = ProsodyStore(own_prosody.socket, timeout=PATIENCE)
    store.add_invites([make_live() for _ in range(3)])
    store.close()
    code, lines = check(own_prosody, tmp_path, "example.com", max_rows=2)
    assert (code, len(lines)) == (1, 1)
    assert "more than 2 invites" in lines[0]
