"""QR codes as SVG, to stand in the page itself."""

from __future__ import annotations

import functools
import re
from typing import Final

import segno
from markupsafe import Markup

__all__ = ["draw_qr"]

QUIET_ZONE: Final = 4
"""How many modules of the background are left around a code (ISO/IEC 18004, section 6.3.8)."""

LONGEST: Final = 350
"""How many characters a code holds at most: a larger one no camera reads off a screen."""

_DARK: Final = re.compile(b"\x01+")


@functools.lru_cache(maxsize=256)
def draw_qr(text: str) -> Markup | None:
    """Return a QR code as SVG, from the attributes of the element on; None for what is too long for one.

    The mask is a fixed one. A reader takes any; trying all eight for the best, as the standard has it, would cost five
    times as much as all the rest of the page.
    """
    if len(text) > LONGEST:
        return None
    code = segno.make_qr(text, error="m", boost_error=False, mask=3)
    # A line through the middle of each run of dark modules is shorter to write than its outline.
    path, end = [], (-1, 0)
    for line, row in enumerate(code.matrix):
        for dark in _DARK.finditer(bytes(row)):
            start, length = dark.start(), dark.end() - dark.start()
            to = f"m{start - end[1]} 0" if end[0] == line else f"M{start + QUIET_ZONE} {line + QUIET_ZONE}.5"
            path.append(f"{to}h{length}")
            end = (line, dark.end())
    size = len(code.matrix) + 2 * QUIET_ZONE
    # The colours stand here and not in the style: dark on light is what every camera reads, in the dark and in print.
    return Markup(  # noqa: S704 (numbers alone go into it)
        f'viewBox="0 0 {size} {size}" shape-rendering="crispEdges">'
        f'<path fill="#fff" d="M0 0h{size}v{size}H0z"/><path stroke="#000" d="{"".join(path)}"/>'
    )
