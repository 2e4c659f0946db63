"""Which platform a visitor is on, as the request tells it, so that it works without JavaScript."""

from __future__ import annotations

from typing import Final

from werkzeug.datastructures import Headers

__all__ = ["PHONES", "PLATFORMS", "find_platform"]

PLATFORMS: Final = ("android", "ios", "windows", "macos", "linux", "web")
"""The platforms that apps are made for, in the order in which the page names them."""

PHONES: Final = frozenset({"android", "ios"})

# A Chromebook runs the apps of Android.
_HINTS: Final = {
    "android": "android",
    "chrome os": "android",
    "chromeos": "android",
    "ios": "ios",
    "windows": "windows",
    "macos": "macos",
    "linux": "linux",
}

# In this order: an Android device also says Linux, and an iPhone that it is like Mac OS X.
_WORDS: Final = (
    ("Android", "android"),
    ("iPhone", "ios"),
    ("iPad", "ios"),
    ("iPod", "ios"),
    ("Windows", "windows"),
    ("Macintosh", "macos"),
    ("CrOS", "android"),
    ("Linux", "linux"),
    ("X11", "linux"),
)


def find_platform(headers: Headers) -> str | None:
    """Return the platform of whoever sent these headers, or None where they do not say or it is another one.

    What a browser says of itself in ``Sec-CH-UA-Platform`` (User-Agent Client Hints, section 3.6) comes before what can
    be read out of its name. An iPad that asks for desktop pages passes for a Mac: it says nothing else.
    """
    hint = headers.get("Sec-CH-UA-Platform", "").strip('"').lower()
    if hint and hint != "unknown":
        return _HINTS.get(hint)
    agent = headers.get("User-Agent", "")
    return next((platform for word, platform in _WORDS if word in agent), None)
