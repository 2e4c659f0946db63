"""The languages of the page: catalogs of gettext, read as their translators write them."""

from __future__ import annotations

import functools
import gettext
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Final

from babel import Locale
from babel.dates import format_date, format_time
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from werkzeug.datastructures import LanguageAccept

from invites_wsgi.page.settings import DEFAULT_LANGUAGE

__all__ = ["Language", "choose_language", "load_languages"]

_SOURCE: Final = DEFAULT_LANGUAGE
"""The language in which the texts stand in the templates, so that there is no catalog of it."""

_REGIONS: Final = {_SOURCE: "en-GB"}
"""Where times are written as in one region: a clock of 24 hours, which UTC is told in, and the day before the month."""


MOST_TAGS: Final = 20
LONGEST_TAG: Final = 35
"""How long a tag is that RFC 5646 (section 4.4.1) wants to be held; one that is longer names no language of ours."""


@dataclass(frozen=True, slots=True)
class Language:
    """A language that the page can be read in.

    Attributes:
        code: Its tag (RFC 5646), as in ``lang`` and ``Accept-Language``.
        catalog: Its texts.
    """

    code: str
    catalog: gettext.NullTranslations

    @property
    def direction(self) -> str:
        """The direction of its script: ``ltr`` or ``rtl``."""
        return Locale.parse(self.code, sep="-").text_direction

    def format_time(self, time: datetime) -> str:
        """Return a time as it is written in this language, in UTC: the server does not know the visitor's zone."""
        return _format_time(time, self.code)


@functools.lru_cache(maxsize=1024)
def _format_time(time: datetime, code: str) -> str:
    # Many invites end in the same second, and one is looked at more than once; CLDR's patterns take their time.
    locale = Locale.parse(_REGIONS.get(code, code), sep="-")
    return f"{format_date(time, 'long', locale)}, {format_time(time, 'short', locale=locale)}"


def choose_language(accepted: LanguageAccept, languages: Mapping[str, Language], default: str) -> Language:
    """Return the language that a visitor likes best of those that there are (RFC 4647, section 3.4, lookup).

    Args:
        accepted: What their browser says, in its order. Of a list that no browser sends only the beginning counts.
        languages: What there is, by tag in small letters.
        default: The tag of the language for whoever likes none of them.
    """
    for tag, quality in accepted[:MOST_TAGS]:
        known = _look_up(tag.lower(), languages) if quality > 0 and len(tag) <= LONGEST_TAG else None
        if known is not None:
            return known
    return languages[default.lower()]


def _look_up(tag: str, languages: Mapping[str, Language]) -> Language | None:
    while tag:
        if tag in languages:
            return languages[tag]
        tag = tag.rpartition("-")[0]
    return None


def load_languages() -> Sequence[Language]:
    """Return the languages that there are: English, and one for each catalog in the folder of translations.

    A catalog is compiled here and not when a package is built: what is translated is what is shown.
    """
    found = [Language(_SOURCE, gettext.NullTranslations())]
    for entry in sorted(files("invites_wsgi").joinpath("translations").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".po"):
            code = entry.name.removesuffix(".po")
            compiled = io.BytesIO()
            # One that there is not is an error here, and not for its first visitor.
            locale = Locale.parse(code, sep="-")
            write_mo(compiled, read_po(io.StringIO(entry.read_text("utf-8")), locale=locale))
            compiled.seek(0)
            found.append(Language(code, gettext.GNUTranslations(compiled)))
    return tuple(found)
