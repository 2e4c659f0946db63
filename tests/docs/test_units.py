"""The units for systemd are what systemd takes, are closed, and do what their comments say."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from invites_core import ApiKeys, open_store
from tests.docs.pages import ROOT
from tests.helpers import PATIENCE, wait_until
from tests.servers import free_port
from tests.wsgi.support import CLEAN_ENVIRONMENT, COMMAND, ask_server

UNITS: Final = ROOT / "docs" / "examples" / "systemd"
SERVICES: Final = ("invites-api-agent.service", "invites-api-backup.service", "invites-api.service")
PROGRAM: Final = "/opt/invites-api/bin/invites-api"


class Unit(configparser.RawConfigParser):
    """A unit file: names may be given several times, and the last one counts here."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, interpolation=None, delimiters=("=",))
        self.optionxform = str  # type: ignore[assignment,method-assign]  # the letters of a name count
        self.read_string(path.read_text("utf-8").replace("\\\n", " "))

    def get_words(self, name: str) -> list[str]:
        """Return the words of an option of the service."""
        return self["Service"][name].split()


def get_script(unit: Unit, name: str) -> str:
    """Return what an option of the service gives the shell to run, as systemd hands it on."""
    found = re.fullmatch(r"/bin/sh -c '([^']+)'", unit["Service"][name])
    assert found, unit["Service"][name]
    return found[1].replace("\\\\", "\\").replace("%%", "%").replace("$$", "$")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with all units as they are installed, with a program that is there in the place of ours."""
    for file in UNITS.iterdir():
        target = tmp_path / file.name
        if file.suffix == ".conf":
            (tmp_path / "invites-api.service.d").mkdir()
            target = tmp_path / "invites-api.service.d" / file.name
        target.write_text(file.read_text("utf-8").replace(PROGRAM, "/bin/true"), "utf-8")
    return tmp_path


def analyze(*arguments: str) -> str:
    """Run systemd-analyze, which must find nothing wrong; return what it printed."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze: install systemd")
    ended = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    return ended.stdout


@pytest.mark.parametrize("name", [*SERVICES, "invites-api-backup.timer"])
def test_units_are_what_systemd_takes(name: str, installed: Path) -> None:
    """systemd finds nothing to complain of in the units."""
    assert analyze("verify", "--man=no", "--recursive-errors=one", str(installed / name)) == ""


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_counts_the_units_among_the_safe(name: str, installed: Path) -> None:
    """systemd's own measure of how much a service is exposed is 1.5 of 10 at most."""
    analyze("security", "--offline=true", "--no-pager", "--threshold=15", str(installed / name))


@pytest.mark.parametrize("name", SERVICES)
def test_units_are_hardened(name: str) -> None:
    """No process can gain rights, see homes, or write anything that is not its own."""
    service = Unit(UNITS / name)["Service"]
    assert service["User"] not in {"", "root"}
    expected = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "CapabilityBoundingSet": ""}
    assert {key: service[key] for key in expected} == expected
    assert service["UMask"] == "0077"
    assert not [key for key in service if key.startswith("ReadWrite")]


def test_what_is_backed_up_is_what_is_served() -> None:
    """The backup has the settings and the user of the service, and its folder beside that of the database."""
    service, backup = (
        Unit(UNITS / "invites-api.service")["Service"],
        Unit(UNITS / "invites-api-backup.service")["Service"],
    )
    assert "Environment=INVITES_CONFIG=/etc/invites-api/invites-api.toml\n" in (
        UNITS / "invites-api-backup.service"
    ).read_text("utf-8")
    assert service["Environment"] == "INVITES_CONFIG=/etc/invites-api/invites-api.toml"
    assert (backup["User"], backup["Group"]) == (service["User"], service["Group"])
    assert backup["StateDirectory"].split() == [service["StateDirectory"], "invites-api-backups"]
    assert backup["WorkingDirectory"] == "%S/invites-api-backups"


def run_script(script: str, folder: Path, database: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of the backup's unit in a folder, with the limit and the mask of the unit."""
    keep = re.search(
        r"^Environment=KEEP=(\d+)$", (UNITS / "invites-api-backup.service").read_text("utf-8"), re.MULTILINE
    )
    assert keep
    environment = make_environment({"KEEP": keep[1], "INVITES_DATABASE": f"sqlite:///{database}"})
    command = script.replace(PROGRAM, " ".join(COMMAND))
    return subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=environment,
        umask=0o077,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def make_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return this environment without what a developer has set for himself."""
    return {**{name: value for name, value in os.environ.items() if name not in CLEAN_ENVIRONMENT}, **changes}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with a key."""
    path = tmp_path / "data" / "invites.db"
    path.parent.mkdir(mode=0o700)
    store = open_store(f"sqlite:///{path}")
    ApiKeys(store).create("example.com")
    store.close()
    return path


def test_the_backup_keeps_the_newest_and_leaves_other_files_alone(tmp_path: Path, database: Path) -> None:
    """A dated, private backup is made; as many stay as the unit says, and what is no backup is left alone."""
    folder = tmp_path / "backups"
    folder.mkdir(mode=0o700)
    old = [f"invites-202001{day:02}T033000Z.db" for day in range(1, 21)]
    for name in [*old, "before-the-upgrade.db", "invites-notes.db"]:
        (folder / name).touch()
    unit = Unit(UNITS / "invites-api-backup.service")
    made = run_script(get_script(unit, "ExecStart"), folder, database)
    assert (made.returncode, made.stdout) == (0, ""), made.stderr
    [new] = {path.name for path in folder.iterdir()} - {*old, "before-the-upgrade.db", "invites-notes.db"}
    assert re.fullmatch(r"invites-20\d{6}T\d{6}Z\.db", new)
    assert stat.S_IMODE((folder / new).stat().st_mode) == 0o600
    copy = open_store(f"sqlite:///{folder / new}", create=False)
    assert len(ApiKeys(copy).list()) == 1
    copy.close()
    pruned = run_script(get_script(unit, "ExecStartPost"), folder, database)
    assert (pruned.returncode, pruned.stdout, pruned.stderr) == (0, "", "")
    left = {path.name for path in folder.iterdir() if not path.name.startswith(f"{new}-")}
    assert left == {new, "before-the-upgrade.db", "invites-notes.db", *old[-13:]}


def test_a_backup_that_fails_is_a_failure(tmp_path: Path) -> None:
    """Where no backup can be made the unit fails, so that systemd deletes none of the old ones."""
    ended = run_script(
        get_script(Unit(UNITS / "invites-api-backup.service"), "ExecStart"), tmp_path, tmp_path / "none.db"
    )
    assert ended.returncode != 0
    assert ended.stderr.startswith("Error: no database at ")


@pytest.mark.real_server
def test_the_service_tells_systemd_that_it_listens_and_obeys_its_signals(tmp_path: Path, database: Path) -> None:
    """READY comes once it listens; ExecReload's signal replaces the workers; SIGTERM ends it within the limit."""
    unit = Unit(UNITS / "invites-api.service")["Service"]
    assert unit["Type"] == "notify"
    port = free_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "n"))
        notified.settimeout(PATIENCE)
        settings = tmp_path / "invites-api.toml"
        settings.write_text(f'database = "sqlite:///{database}"\n[http]\nlisten = "127.0.0.1:{port}"\n')
        environment = make_environment({"NOTIFY_SOCKET": str(tmp_path / "n"), "INVITES_CONFIG": str(settings)})
        words = unit["ExecStart"].split()
        assert words[0] == PROGRAM
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen([*COMMAND, *words[1:]], env=environment, stdin=subprocess.DEVNULL, stderr=log)
        try:
            assert notified.recv(4096).startswith(b"READY=1")
            assert ask_server(port, "/healthz").status == 200
            [name] = re.findall(r"/bin/kill -(\w+) \$MAINPID", unit["ExecReload"])
            process.send_signal(getattr(signal, f"SIG{name}"))
            wait_until(lambda: (tmp_path / "log").read_text().count("Worker exiting") == 2)
            assert ask_server(port, "/healthz").status == 200
            process.terminate()
            assert process.wait(int(unit["TimeoutStopSec"])) == 0
        finally:
            process.kill()


def test_the_page_installs_what_is_there() -> None:
    """The files that the page on serving installs are there, and it names the lines for PostgreSQL."""
    page = (ROOT / "docs" / "serving.md").read_text("utf-8")
    for pattern in re.findall(r"docs/examples/systemd/(\S+)", page):
        assert list(UNITS.glob(pattern)), pattern
    assert "](examples/systemd/postgresql.conf)" in page
    keep = re.search(
        r"^Environment=KEEP=(\d+)$", (UNITS / "invites-api-backup.service").read_text("utf-8"), re.MULTILINE
    )
    assert keep
    assert f"[keeps {keep[1]}](examples/systemd/invites-api-backup.service)" in (ROOT / "docs" / "backup.md").read_text(
        "utf-8"
    )
