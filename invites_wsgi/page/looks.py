"""A site's own logo and colour."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Final

from invites_wsgi.config_values import SettingsError

__all__ = ["find_text_color", "load_logo"]

MOST_BYTES: Final = 16_384
"""The largest logo: it stands in every page, which is one small request."""

# By their first bytes, because a name can be anything. An image in an img runs no script, SVG neither (SVG 2, 2.2.2).
_SIGNATURES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
)
_SVG: Final = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>|<!--.*?-->|<!DOCTYPE\s+svg[^>]*>|\s)*<svg[\s>/]", re.DOTALL)


def load_logo(path: Path) -> str:
    """Return an image as a ``data:`` URL (RFC 2397).

    Raises:
        SettingsError: It cannot be read, is no image that browsers show, or is too large.
    """
    try:
        with path.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"cannot read the logo {path}: {(error.strerror or 'error').lower()}") from error
    if len(content) > MOST_BYTES:
        raise SettingsError(f"the logo {path} has more than {MOST_BYTES // 1024} KiB")
    kind = next((kind for signature, kind in _SIGNATURES if content.startswith(signature)), None)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kind = "image/webp"
    elif _SVG.match(content):
        kind = "image/svg+xml"
    if kind is None:
        raise SettingsError(f"the logo {path} is neither SVG nor PNG, JPEG, GIF or WebP")
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def find_text_color(background: str) -> str:
    """Return black or white, whichever is read better on a colour (WCAG 2.2, relative luminance; at least 4.5 to 1).

    Args:
        background: As ``#rrggbb``.
    """
    red, green, blue = (_linearize(int(background[at : at + 2], 16) / 255) for at in (1, 3, 5))
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#fff"


def _linearize(channel: float) -> float:
    linear: float = channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
    return linear
