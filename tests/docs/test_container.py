"""The image of the examples is made of what is there, runs without rights, and its commands work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, Final

import pytest

from invites_core import ApiKeys, open_store
from tests.docs.pages import ROOT
from tests.helpers import PATIENCE
from tests.servers import Server, free_port
from tests.wsgi.support import CLEAN_ENVIRONMENT, ask_server

EXAMPLES: Final = ROOT / "docs" / "examples"
KNOWN: Final = {"CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER"}


@pytest.fixture
def stages() -> list[list[tuple[str, str]]]:
    """The stages of the image: instructions, and what follows them."""
    text = (EXAMPLES / "Containerfile").read_text("utf-8")
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    found: list[list[tuple[str, str]]] = []
    for line in filter(None, lines):
        name, _, rest = line.partition(" ")
        assert name in KNOWN, line
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest.strip()))
    return found


def get_last(stage: list[tuple[str, str]], name: str) -> str:
    """Return what follows the one instruction of a name."""
    [found] = [rest for one, rest in stage if one == name]
    return found


def find_sources(stage: list[tuple[str, str]]) -> list[Path]:
    """Return what a stage takes of the checkout."""
    copied = [rest.split()[:-1] for name, rest in stage if name == "COPY" and not rest.startswith("--from")]
    return [ROOT / source for sources in copied for source in sources]


def test_the_image_is_not_root_and_holds_nothing_to_build_with(stages: list[list[tuple[str, str]]]) -> None:
    """The last stage takes what the first one built and nothing else; it has no pip, and a user by number."""
    build, image = stages
    name = get_last(build, "FROM").partition(" AS ")[2]
    assert [rest for one, rest in image if one == "COPY"] == [f"--from={name} /opt/invites-api /opt/invites-api"]
    runs = " ".join(rest for one, rest in image if one == "RUN")
    assert "pip uninstall" in runs
    assert not re.search(r"apt|curl|pip install|gcc", runs)
    assert "--without-pip" in get_last(build, "RUN")
    # Nobody becomes root after this, and nothing is run after it either.
    order = [one for one, _ in image]
    assert "RUN" not in order[order.index("USER") :]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", get_last(image, "USER"))
    for stage in stages:
        assert re.fullmatch(r"[\w.-]+:[\w.-]+( AS \w+)?", get_last(stage, "FROM")), "a base image without a tag"


def test_only_what_is_installed_is_copied(stages: list[list[tuple[str, str]]]) -> None:
    """Nothing above the folder of the example is copied: it holds a password and a private key once it is in use."""
    sources = find_sources(stages[0])
    assert sources
    assert all(source.exists() and source not in EXAMPLES.parents for source in sources)


def test_nodes_of_the_compose_file_are_closed() -> None:
    """The nodes cannot write to their image, have no capability, and are checked as the image checks itself."""
    yaml = pytest.importorskip("yaml", reason="needs PyYAML (pip install pyyaml)")
    services: dict[str, Any] = yaml.safe_load((EXAMPLES / "compose.yaml").read_text("utf-8"))["services"]
    for name in ("node-a", "node-b"):
        node = services[name]
        assert (node["read_only"], node["cap_drop"]) == (True, ["ALL"])
        assert node["security_opt"] == ["no-new-privileges:true"]
        assert node["stop_grace_period"] == "40s"
        assert "ports" not in node
        assert json.dumps(node["healthcheck"]["test"][1:]) in (EXAMPLES / "Containerfile").read_text("utf-8")


@pytest.mark.real_server
def test_the_commands_of_the_image_work(stages: list[list[tuple[str, str]]], tmp_path: Path) -> None:
    """What is copied can be built and served with the image's command, and its check of health is right about it."""
    source, installed = tmp_path / "src", tmp_path / "installed"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for path in find_sources(stages[0]):
        if path.is_dir():
            shutil.copytree(path, source / path.name, ignore=ignore)
        else:
            shutil.copy(path, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*command, "-w", str(tmp_path), str(source)], check=True, timeout=120, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)

    store = open_store(f"sqlite:///{tmp_path}/invites.db")
    key = ApiKeys(store).create("example.com").combined
    store.close()
    port = free_port()
    (tmp_path / "settings.toml").write_text(
        f'database = "sqlite:///{tmp_path}/invites.db"\n[http]\nlisten = "0.0.0.0:{port}"\n'
    )
    image = stages[1]
    assert json.loads(get_last(image, "ENTRYPOINT")) == ["invites-api"]
    environment: dict[str, str | None] = {
        **CLEAN_ENVIRONMENT,
        "HOME": "/nonexistent",
        "INVITES_CONFIG": str(tmp_path / "settings.toml"),
        "PYTHONPATH": str(installed),
    }
    argv = [sys.executable, "-P", "-m", "invites_wsgi.cli", *json.loads(get_last(image, "CMD"))]
    health = json.loads(get_last(image, "HEALTHCHECK").partition(" CMD ")[2])
    assert health[0] == "python"
    check = [sys.executable, *(word.replace(":5280/", f":{port}/") for word in health[1:])]

    def is_healthy() -> bool:
        return subprocess.run(check, env=dict(os.environ), capture_output=True, timeout=PATIENCE).returncode == 0

    assert not is_healthy()
    with Server(tmp_path / "run", argv, port=port, path="/healthz", env=environment) as server:
        assert ask_server(port, f"/invites_api?key={key}").status == 201
        assert is_healthy()
        assert server.stdout_file.read_text() == ""
