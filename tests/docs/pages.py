"""The pages of the documentation, taken apart into their code blocks and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE: Final = re.compile(r"^( *)```(\S*)$")
_NOT_RUN: Final = re.compile(r"^<!-- not run: (.+) -->$")
_FILE_NAME: Final = re.compile(r"(?:#|--) ([\w.-]+\.(?:py|toml|conf|lua)|Caddyfile)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code.

    Attributes:
        page: The file that it stands in.
        line: The number of its first line of code, from 1.
        language: What stands behind the fence.
        text: The code, with a newline at the end.
        not_run_because: The reason in a ``<!-- not run: REASON -->`` in front of it, or None.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run_because: str | None

    @property
    def file_name(self) -> str | None:
        """The name that a reader saves the block under, which is a comment in its first line; None for most blocks."""
        found = _FILE_NAME.fullmatch(self.text.partition("\n")[0])
        return found[1] if found else None

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path) -> Sequence[Block]:
    """Return the code blocks of a page, from top to bottom."""
    blocks: list[Block] = []
    lines = page.read_text("utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = _FENCE.fullmatch(lines[number])
        number += 1
        if opening is None:
            continue
        first = number
        while lines[number].strip() != "```":
            number += 1
        reason = _NOT_RUN.fullmatch(lines[first - 2]) if first >= 2 else None
        text = "".join(f"{line.removeprefix(opening[1])}\n" for line in lines[first:number])
        blocks.append(Block(page, first + 1, opening[2], text, reason[1] if reason else None))
        number += 1
    return blocks


def get_block(page: Path, file_name: str) -> Block:
    """Return the one block that a reader of the page saves under this name."""
    [found] = [block for block in read_blocks(page) if block.file_name == file_name]
    return found


def read_sections(page: Path) -> dict[str, str]:
    """Return the text under each heading of a page, up to the next heading of whatever level; code is left out."""
    sections: dict[str, str] = {}
    heading, inside = "", False
    for line in page.read_text("utf-8").splitlines():
        if _FENCE.fullmatch(line):
            inside = not inside
        elif not inside and line.startswith("#"):
            heading = line.lstrip("#").strip()
            assert heading not in sections, f"{page.name} has two headings {heading!r}"
            sections[heading] = ""
        elif not inside and heading:
            sections[heading] += f"{line}\n"
    return sections


def read_rows(text: str) -> list[list[str]]:
    """Return the cells of all rows of all tables in a text, without the heads and the lines under them."""
    rows: list[list[str]] = []
    previous_is_row = False
    for line in map(str.strip, text.splitlines()):
        is_row = line.startswith("|") and line.endswith("|")
        if is_row and re.fullmatch(r"[|:-]+", line):
            rows.pop()
        elif is_row:
            rows.append([cell.strip() for cell in line[1:-1].split("|")])
        assert is_row or not previous_is_row or not line, f"a table without an empty line after it: {line}"
        previous_is_row = is_row
    return rows


def find_code(cell: str) -> list[str]:
    """Return what stands between backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)
