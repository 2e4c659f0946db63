"""How far a request has come: whether a thread that is given it would have to wait for more of it."""

from __future__ import annotations

import enum
import re
from typing import Final

from invites_wsgi.bodies import MAX_BODY

__all__ = ["MAX_HEAD", "Progress", "ReceivedRequest"]

MAX_HEAD: Final = 64 * 1024
# gunicorn reads a body in steps of 1 KiB at least: so much more makes it see that a body in chunks is too large.
_ENOUGH: Final = MAX_BODY + 4 * 1024
# No program cuts a body into such small pieces that these are too few; each takes the parser several microseconds.
_MOST_CHUNKS: Final = 4096
_MAX_CHUNKED: Final = 2 * MAX_BODY
"""A body with the sizes of its chunks and whatever stands beside them."""

_END: Final = b"\r\n\r\n"
_FRAMING: Final = (b"\r\ncontent-length", b"\r\ntransfer-encoding", b"\r\nexpect")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?=\r\n)")
_EXPECT: Final = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)")
_CHUNK_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,8}")
_LONGEST_SIZE_LINE: Final = 8192


class Progress(enum.Enum):
    """What is to be done with a request."""

    WAITING = enum.auto()
    """More of it must come."""
    READY = enum.auto()
    """All has come that is needed to answer it: it is whole, or too large, or not HTTP, which the parser will say."""
    HEAD_TOO_LARGE = enum.auto()
    """It cannot be given to the parser, which would go on reading."""


class ReceivedRequest:
    """The bytes of one request, and perhaps of those that follow it, as they come in.

    It finds the end and judges nothing: whatever looks odd is READY, and gunicorn's parser, which never has to wait for
    it, refuses it. Where the two should see different ends, the request is cut off; nothing else depends on them.
    """

    __slots__ = ("_body_at", "_body_bytes", "_chunk_at", "_chunks", "_length", "data", "expects_continue")

    def __init__(self) -> None:
        self.data = bytearray()
        self.expects_continue = False
        """Whether the client waits to be told to go on; once it has been told, whoever told it sets this to false."""
        self._body_at = 0
        self._length: int | None = 0
        self._chunk_at = 0
        self._body_bytes = 0
        self._chunks = 0

    def __len__(self) -> int:
        return len(self.data)

    def add(self, more: bytes) -> Progress:
        """Take what has come, and tell what is to be done."""
        searched = max(0, len(self.data) - len(_END) + 1)
        self.data += more
        if not self._body_at:
            # An empty line may come before a request (RFC 9112, section 2.2), and is not its end.
            end = self.data.find(_END, max(searched, 2 if self.data.startswith(b"\r\n") else 0))
            if end < 0:
                return Progress.WAITING if len(self.data) <= MAX_HEAD else Progress.HEAD_TOO_LARGE
            self._read_head(end + len(b"\r\n"))
        return Progress.READY if self._has_body() else Progress.WAITING

    def _read_head(self, end: int) -> None:
        """Find out how the body ends; `end` is where the last line of the head does."""
        self._body_at = self._chunk_at = end + len(b"\r\n")
        head = self.data[:end].lower()
        if not any(name in head for name in _FRAMING):
            return
        lengths = _LENGTH.findall(head)
        if head.count(_FRAMING[0]) == len(lengths) == 1 and _FRAMING[1] not in head:
            self._length = int(lengths[0])
        elif _FRAMING[0] not in head and _FRAMING[1] in head:
            self._length = None
        if expect := _EXPECT.search(head):
            # Answered here if the body is waited for. Whoever gets the request later has nothing left to answer.
            self.expects_continue = True
            del self.data[expect.start() : expect.end()]
            self._body_at = self._chunk_at = self._body_at - (expect.end() - expect.start())

    def _has_body(self) -> bool:
        if self._length is None:
            return self._has_chunks()
        # Of one that is too large no byte is needed to refuse it.
        return self._length > MAX_BODY or len(self.data) - self._body_at >= self._length

    def _has_chunks(self) -> bool:
        while len(self.data) - self._body_at <= _MAX_CHUNKED and self._chunks < _MOST_CHUNKS:
            line_end = self.data.find(b"\r\n", self._chunk_at)
            if line_end < 0:
                return len(self.data) - self._chunk_at > _LONGEST_SIZE_LINE
            found = _CHUNK_SIZE.match(self.data, self._chunk_at, line_end)
            if found is None:
                return True
            size = int(found[0], 16)
            if size == 0:
                # Right after it, or after the trailers: an empty line.
                return self.data.find(_END, line_end) >= 0
            start = line_end + len(b"\r\n")
            if self._body_bytes + min(size, len(self.data) - start) >= _ENOUGH:
                return True
            if start + size + len(b"\r\n") > len(self.data):
                return False
            self._chunks += 1
            self._body_bytes += size
            self._chunk_at = start + size + len(b"\r\n")
        return True
