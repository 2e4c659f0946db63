"""What Prosody says on its admin socket: an XML stream, read in pieces of any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from xml.parsers import expat
from xml.sax.saxutils import escape

__all__ = ["MAX_CALL", "STREAM_OPENING", "ProsodyStream", "StreamBroken", "StreamResult", "format_input"]

MAX_CALL: Final = 1_000_000
"""How many bytes one call may have: Prosody does nothing else while it reads them."""

MAX_ANSWER: Final = 64 * 1024 * 1024
MAX_DEPTH: Final = 16

_NAMESPACE: Final = "xmpp:prosody.im/admin"
_STREAM: Final = "http://etherx.jabber.org/streams stream"
_RESULT: Final = f"{_NAMESPACE} repl-result"

STREAM_OPENING: Final = f"<stream:stream xmlns:stream='http://etherx.jabber.org/streams' xmlns='{_NAMESPACE}'>".encode()


class StreamBroken(Exception):
    """What came is no stream of Prosody's, or its end."""


@dataclass(frozen=True, slots=True)
class StreamResult:
    """The result of a line.

    Attributes:
        text: What it says.
        is_error: Whether Prosody calls it an error.
    """

    text: str
    is_error: bool


def format_input(line: str) -> bytes:
    """Return a line of the console as it is sent."""
    return f"<repl-input>{escape(line)}</repl-input>".encode()


class ProsodyStream:
    """Reads one stream: its opening, and then the results of lines."""

    def __init__(self) -> None:
        """Wait for the opening of a stream."""
        self.is_open = False
        self._depth = 0
        self._size = 0
        self._text: list[str] | None = None
        self._is_error = False
        self._results: list[StreamResult] = []
        self._parser = expat.ParserCreate("utf-8", namespace_separator=" ")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._add_text
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.EntityDeclHandler = self._refuse
        # Expat 2.6 may keep back an element that came in small pieces until more follows, and nothing would follow.
        if hasattr(self._parser, "SetReparseDeferralEnabled"):
            self._parser.SetReparseDeferralEnabled(False)

    def feed(self, data: bytes) -> None:
        """Take what came.

        Raises:
            StreamBroken: It is not XML, no stream of Prosody's, too much, or the stream's end.
        """
        self._size += len(data)
        if self._size > MAX_ANSWER:
            raise StreamBroken("it sent too much")
        try:
            self._parser.Parse(data, False)
        except expat.ExpatError as error:
            raise StreamBroken("what it sent is not XML") from error

    def take_result(self) -> StreamResult | None:
        """Return the next result, or None where there is none yet."""
        if not self._results:
            return None
        self._size = 0
        return self._results.pop(0)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth == 1:
            if name != _STREAM:
                raise StreamBroken("it does not speak as Prosody's admin socket does")
            self.is_open = True
        elif self._depth > MAX_DEPTH:
            raise StreamBroken("what it sent is nested too deeply")
        elif self._depth == 2 and name == _RESULT:
            self._text, self._is_error = [], attributes.get("type") == "error"

    def _end(self, name: str) -> None:
        self._depth -= 1
        if self._depth == 0:
            raise StreamBroken("it ended the stream")
        if self._depth == 1 and self._text is not None:
            self._results.append(StreamResult("".join(self._text), self._is_error))
            self._text = None

    def _add_text(self, text: str) -> None:
        # What a line prints, and the spaces that keep a connection alive, are nobody's.
        if self._text is not None:
            self._text.append(text)

    def _refuse(self, *_: object) -> None:
        raise StreamBroken("it declares what no stream may")
