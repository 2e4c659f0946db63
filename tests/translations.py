"""The texts of the invite page for its translators: ``python -m tests.translations``, or ``bin/translations``."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

from babel import Locale, UnknownLocaleError
from babel.messages import Catalog
from babel.messages.catalog import TranslationError
from babel.messages.checkers import checkers
from babel.messages.extract import extract
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ROOT / "invites_wsgi" / "templates"
CATALOGS = ROOT / "invites_wsgi" / "translations"

PASSING = tuple(
    f'"{name}:'.encode()
    for name in (
        "Generated-By",
        "Language-Team",
        "Last-Translator",
        "PO-Revision-Date",
        "POT-Creation-Date",
        "Project-Id-Version",
        "Report-Msgid-Bugs-To",
    )
)
"""How lines of a catalog's head begin that say when and by whom, which the history of the repository does better."""


def extract_texts() -> Catalog:
    """Return every text of the templates, untranslated, with the comments for translators."""
    catalog = Catalog(project="invites-api", copyright_holder="the maintainers of invites-api", charset="utf-8")
    options = {"trimmed": "true", "silent": "false", "newstyle_gettext": "true"}
    for template in sorted(TEMPLATES.glob("*.html")):
        with template.open("rb") as opened:
            found = extract("jinja2.ext:babel_extract", opened, comment_tags=["Translators:"], options=options)
            for line, message, comments, context in found:
                catalog.add(message, None, [(template.name, line)], auto_comments=comments, context=context)
    return catalog


def list_catalogs() -> list[Path]:
    """Return the files of the languages."""
    return sorted(CATALOGS.glob("*.po"))


def read_catalog(path: Path) -> Catalog:
    """Read one language."""
    return read_po(io.StringIO(path.read_text("utf-8")), locale=path.stem.replace("-", "_"))


def find_faults(catalog: Catalog, texts: Catalog) -> Iterator[str]:
    """Say what a catalog lacks, has too much of, or would show wrong, a line each."""
    ids = {message.id for message in texts if message.id}
    for message in catalog:
        if not message.id:
            continue
        if message.id not in ids:
            yield f"is in no template any more: {message.id!r}"
        if message.fuzzy:
            yield f"has to be looked at: {message.id!r}"
        ids.discard(message.id)
        if not message.string:
            yield f"is not translated: {message.id!r}"
            continue
        for check in checkers:
            try:
                check(catalog, message)
            except TranslationError as error:
                yield f"{error}: {message.id!r}"
    yield from (f"is missing: {text!r}" for text in sorted(map(str, ids)))


def update(languages: list[str]) -> None:
    """Bring the catalogs up to date with the templates, and begin those that are not there yet."""
    texts = extract_texts()
    paths = {path.stem: path for path in list_catalogs()} | {code: CATALOGS / f"{code}.po" for code in languages}
    for code, path in sorted(paths.items()):
        catalog = read_catalog(path) if path.exists() else Catalog(locale=code.replace("-", "_"), charset="utf-8")
        catalog.update(texts, no_fuzzy_matching=True)
        catalog.fuzzy = False
        catalog.header_comment = f"# The invite page in {catalog.locale.english_name if catalog.locale else code}."
        written = io.BytesIO()
        write_po(written, catalog, width=120, ignore_obsolete=True, include_lineno=False)
        # Without what changes at every run, though nothing else has.
        lines = [line for line in written.getvalue().splitlines(keepends=True) if not line.startswith(PASSING)]
        path.write_bytes(b"".join(lines).rstrip() + b"\n")


def check() -> int:
    """Print every fault, and return how many there are."""
    texts = extract_texts()
    faults = [f"{path.name}: {fault}" for path in list_catalogs() for fault in find_faults(read_catalog(path), texts)]
    print("\n".join(faults) or "translations: no complaints")
    return len(faults)


def main(argv: list[str]) -> int:
    """Do what the arguments say, and return the exit status: 1 where something is missing, 2 for wrong arguments."""
    languages = [argument for argument in argv if argument != "--check"]
    for language in languages:
        try:
            Locale.parse(language, sep="-")
        except (UnknownLocaleError, ValueError):
            print(f"translations: not the tag of a language: {language}", file=sys.stderr)
            return 2
    if "--check" not in argv:
        update(languages)
    return min(check(), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
