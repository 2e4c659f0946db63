"""The messages that the code can log, or raise as an error of a store, found in its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from tests.docs.pages import ROOT

ERRORS: Final = {"Busy", "ClickException", "CorruptRecord", "OutcomeUnknown", "StorageBusy", "StorageError"}
LEVELS: Final = {"critical", "error", "exception", "tell", "warning"}
LOGGERS: Final = {"_complaints", "_log", "log"}
TEXTS: Final = {"NOT_NEW", "message"}
"""Names that hold a message before it is raised."""
_LEFT_OUT: Final = re.compile(r"%[sd]")


def find_messages() -> dict[str, str]:
    """Return the messages of both packages with the place of one of them; ``…`` stands for what is put in."""
    found: dict[str, str] = {}
    for package in ("invites_core", "invites_wsgi"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "testing" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                for message in read_call(node):
                    found.setdefault(message, f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}")
    return found


def read_call(node: ast.AST) -> Iterator[str]:
    """Return the messages of a call that logs or makes an error, and of a name that holds one."""
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id in TEXTS for target in targets):
            yield from read_sentences(node.value)
    if not isinstance(node, ast.Call):
        return
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    logs = name in LEVELS and isinstance(function, ast.Attribute) and is_logger(function.value)
    if not (logs or name in ERRORS) or not node.args:
        return
    parts = [node.args[0].body, node.args[0].orelse] if isinstance(node.args[0], ast.IfExp) else [node.args[0]]
    for part in parts:
        if text := read_text(part):
            yield text


def read_sentences(node: ast.AST) -> Iterator[str]:
    """Return the texts of several words in an expression, which may choose one of them."""
    if " " in (text := read_text(node)):
        yield text
    elif not isinstance(node, ast.JoinedStr):
        for child in ast.iter_child_nodes(node):
            yield from read_sentences(child)


def is_logger(node: ast.AST) -> bool:
    """Tell whether something is a logger, by its name."""
    return (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")) in LOGGERS


def read_text(node: ast.AST) -> str:
    """Return the text of a literal with ``…`` for what is put in; empty where there is none but what is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = _LEFT_OUT.sub("…", node.value)
    elif isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    else:
        return ""
    # What ends with a space is a piece of something.
    return text if text.strip("… :,") and not text.endswith(" ") else ""
