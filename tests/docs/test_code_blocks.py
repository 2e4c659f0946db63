"""Every block of code in README and docs does what the page says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from invites_wsgi import load_settings
from invites_wsgi.page.apps import load_apps
from tests.docs.conftest import FindProgram
from tests.docs.pages import PAGES, ROOT, Block, read_blocks
from tests.docs.sessions import Session, copy_checkout

# Text and JSON are looked at by test_reference, nginx by test_proxies, Lua by test_prosody_page; a toctree is Sphinx's.
LANGUAGES = {"python", "console", "toml", "nginx", "lua", "text", "json", "{toctree}"}
README = ROOT / "README.md"

# Runs the blocks of a page one after the other in one namespace; a traceback shows the line of the page.
RUN_BLOCKS = """\
import json, sys
namespace = {"__name__": "__main__"}
for page, line, text in json.load(sys.stdin):
    exec(compile("\\n" * (line - 1) + text, page, "exec"), namespace)
"""


def select(language: str) -> dict[Path, list[Block]]:
    """Return the blocks of a language that are run, by page."""
    found = {page: [block for block in read_blocks(page) if block.language == language] for page in PAGES}
    return {page: [block for block in blocks if not block.not_run_because] for page, blocks in found.items() if blocks}


PYTHON = {page: [block for block in blocks if block.file_name is None] for page, blocks in select("python").items()}


def name_page(value: object) -> str | None:
    return value.stem if isinstance(value, Path) else None


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_every_block_is_of_a_language_that_is_tested(page: Path) -> None:
    """No block of code is left out by a slip in its language, and one that is left out on purpose says why."""
    for block in read_blocks(page):
        assert block.language in LANGUAGES, block.place
        assert block.not_run_because is None or len(block.not_run_because.split()) > 2, block.place
    text = page.read_text("utf-8")
    assert text.count("<!-- not run") == sum(block.not_run_because is not None for block in read_blocks(page))


@pytest.mark.parametrize("page", [page for page, blocks in PYTHON.items() if blocks], ids=name_page)
def test_the_python_blocks_of_a_page_run_one_after_the_other(page: Path, tmp_path: Path) -> None:
    """The Python blocks of a page run in their order, in an empty folder, without a warning."""
    blocks = [(str(block.page), block.line, block.text) for block in PYTHON[page]]
    ended = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", RUN_BLOCKS],
        input=json.dumps(blocks),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.real_server
@pytest.mark.parametrize("page", select("console"), ids=name_page)
def test_the_sessions_of_a_page_print_what_it_shows(page: Path, home: Path, find_program: FindProgram) -> None:
    """Who types what a page says, from top to bottom, sees what the page shows."""
    for tool in ("bash", "curl"):
        find_program(tool, f"install it (Debian: apt install {tool})")
    folder = home
    if page == README:
        folder = home / "invites-api"
        copy_checkout(folder)
    with Session(home, folder) as session:
        for block in read_blocks(page):
            if block.not_run_because:
                continue
            if block.file_name and block.language in {"python", "toml"}:
                session.save(block)
            elif block.language == "console":
                session.run(block)


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_a_python_file_of_a_page_is_used_by_a_session_on_it(page: Path) -> None:
    """A Python block that is saved as a file, and so is not run by itself, is run by a session further down."""
    blocks = read_blocks(page)
    for number, block in enumerate(blocks):
        if block.language == "python" and block.file_name:
            later = blocks[number + 1 :]
            typed = "".join(other.text for other in later if other.language == "console")
            saved = "".join(other.text for other in later if other.language == "python" and other.file_name)
            stem = Path(block.file_name).stem
            used = (f"python {block.file_name}", f"pytest -q {block.file_name}", f"gunicorn {stem}:")
            assert any(use in typed for use in used) or f"from {stem} import" in saved, block.place


TOML = [block for blocks in select("toml").values() for block in blocks if block.file_name != "apps.toml"]
APPS = [block for blocks in select("toml").values() for block in blocks if block.file_name == "apps.toml"]


@pytest.mark.parametrize("block", TOML, ids=lambda block: block.place)
def test_the_settings_of_a_page_can_be_loaded(block: Block, tmp_path: Path) -> None:
    """Every block of settings is one that the service starts with."""
    file = tmp_path / "invites-api.toml"
    file.write_text(block.text, "utf-8")
    assert load_settings(file=str(file), environ={}).file == file


@pytest.mark.parametrize("block", APPS, ids=lambda block: block.place)
def test_the_apps_of_a_page_can_be_loaded(block: Block, tmp_path: Path) -> None:
    """Every block of apps is one that the invite page can show."""
    file = tmp_path / "apps.toml"
    file.write_text(block.text, "utf-8")
    assert load_apps(file)
