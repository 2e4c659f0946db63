"""What an agent and its clients say to each other.

A frame is its length, four bytes, the highest first, and so many bytes of JSON in UTF-8. A client begins with
``{"protocol": "invites-api agent", "version": 1}``, and the agent answers with the features and the location of its
store. From then on the client asks, one thing at a time, ``{"verb": NAME, "arguments": {…}}``, and the agent answers
``{"result": …}`` or ``{"error": {…}}``; before a result that is a long list come ``{"part": […]}``, as many as it
takes.

This is version 1. Both ends refuse another version than their own: a field that one end does not know could be a
bound that it would overlook. So any change here is another version, and service and agent are updated together.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from invites_core.errors import (
    CorruptRecord,
    InvalidHost,
    InvalidRequest,
    InviteExists,
    InvitesError,
    OutcomeUnknown,
    StorageBusy,
    StorageError,
    Unsupported,
)
from invites_core.stores.agent_records import (
    COUNT,
    FLAG,
    INVITE,
    INVITES,
    LIMIT,
    NAME,
    NOTHING,
    PAGE,
    REDEEMED,
    REDEMPTION,
    STATE,
    SWEEP,
    TEXT,
    TIME,
    Codec,
    Malformed,
    decode_fields,
    encode_fields,
    list_of,
    maybe,
    pair,
)

__all__ = [
    "HELLO",
    "LONGEST_MESSAGE",
    "MAX_FRAME",
    "MAX_PART",
    "MOST_PROBLEMS",
    "VERBS",
    "VERSION",
    "FrameSocket",
    "Verb",
    "Welcome",
    "decode_error",
    "decode_frame",
    "decode_hello",
    "decode_request",
    "decode_welcome",
    "encode_error",
    "encode_frame",
    "encode_request",
    "encode_welcome",
    "shorten",
    "time_left",
]

LONGEST_MESSAGE: Final = 1_000
"""How many characters of an error or of a problem an answer tells."""

MOST_PROBLEMS: Final = 100
"""How many problems one answer tells; of more the last says how many there are."""

PROTOCOL: Final = "invites-api agent"
VERSION: Final = 1
HELLO: Final = {"protocol": PROTOCOL, "version": VERSION}

MAX_FRAME: Final = 2 * 1024 * 1024
MAX_PART: Final = 5000
"""The most redemptions in one part of an answer."""

_CHUNK: Final = 65_536


@dataclass(frozen=True, slots=True)
class Verb:
    """One of the verbs of an `InviteStore`.

    Attributes:
        arguments: What it takes, by name.
        result: What it returns.
        changes: Whether it changes anything, so that an answer that is missing leaves the outcome unknown.
        in_parts: Whether the result is a list of any length.
    """

    arguments: Mapping[str, Codec] = field(default_factory=dict)
    result: Codec = NOTHING
    changes: bool = False
    in_parts: bool = False


VERBS: Final[Mapping[str, Verb]] = {
    "ping": Verb(),
    "find_problems": Verb({}, list_of(TEXT, MOST_PROBLEMS)),
    "add_invites": Verb({"invites": INVITES, "if_absent": FLAG}, changes=True),
    "find_invite": Verb({"token": TEXT}, maybe(INVITE)),
    "list_invites": Verb(
        {
            "host": NAME,
            "now": TIME,
            "state": maybe(STATE),
            "source": maybe(NAME),
            "limit": LIMIT,
            "cursor": maybe(NAME),
        },
        PAGE,
    ),
    "redeem_invite": Verb(
        {
            "token": NAME,
            "redemption_id": NAME,
            "redeemer": maybe(NAME),
            "username": maybe(NAME),
            "host": maybe(NAME),
            "now": TIME,
        },
        REDEEMED,
        changes=True,
    ),
    "release_redemption": Verb(
        {"token": NAME, "redemption_id": NAME, "host": maybe(NAME), "now": TIME}, maybe(INVITE), changes=True
    ),
    "list_redemptions": Verb({"token": NAME}, list_of(REDEMPTION, MAX_PART), in_parts=True),
    "revoke_invite": Verb(
        {"token": NAME, "by": NAME, "host": maybe(NAME), "now": TIME}, pair(FLAG, maybe(INVITE)), changes=True
    ),
    "revoke_invites_from": Verb(
        {"source": NAME, "by": NAME, "host": NAME, "now": TIME, "limit": LIMIT, "cursor": maybe(NAME)},
        SWEEP,
        changes=True,
    ),
    "purge_invites": Verb({"before": TIME, "limit": LIMIT, "cursor": maybe(NAME)}, SWEEP, changes=True),
}
"""All that can be asked of an agent: the verbs of `InviteStore` and nothing else."""


# Frames


class FrameSocket:
    """A connected socket that frames go through; for one thread at a time. Nothing here waits without end.

    Deadlines are those of `time.monotonic`, so that one can stand over all that a call does.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Take the socket."""
        self._socket = connection
        self._received = bytearray()

    def send(self, frame: bytes, *, by: float) -> None:
        """Send a whole frame.

        Raises:
            OSError: Not all of it could be sent, in time or at all; the other end never has it whole.
        """
        self._socket.settimeout(time_left(by))
        self._socket.sendall(frame)

    def receive(self, *, by: float, within: float | None = None) -> bytes | None:
        """Return the body of the next frame, or None where the other end has ended the connection between two.

        Args:
            by: When its first byte must have come.
            within: How long all of it may take from then on, in seconds; None: all of it must have come by then.

        Raises:
            Malformed: It is empty, longer than a frame may be, or breaks off.
            OSError: The connection failed, or the time was over.
        """
        received = self._received
        deadline = time.monotonic() + within if received and within is not None else by
        while (missing := _count_missing(received)) > 0:
            self._socket.settimeout(time_left(deadline))
            chunk = self._socket.recv(min(_CHUNK, missing) if len(received) >= 4 else _CHUNK)
            if not chunk:
                if received:
                    raise Malformed("", "half a frame")
                return None
            if not received and within is not None:
                deadline = time.monotonic() + within
            elif time.monotonic() > deadline:
                # Bytes that come one by one would otherwise each be in time.
                raise TimeoutError("timed out")
            received += chunk
        end = len(received) + missing
        body = bytes(received[4:end])
        del received[:end]
        return body

    def shut_down(self, how: int) -> None:
        """End one direction or both, from any thread; what is there already can still be read."""
        try:
            self._socket.shutdown(how)
        except OSError:
            # It has ended already.
            return

    def close(self) -> None:
        """End the connection, also where a forked child has its descriptor too."""
        self.shut_down(socket.SHUT_RDWR)
        self._socket.close()


def time_left(deadline: float) -> float:
    """Return the seconds until a deadline, for a socket to wait.

    A moment where it is over: with no time at all a socket would not wait, and would say another thing.
    """
    return max(0.001, deadline - time.monotonic())


def _count_missing(received: bytearray) -> int:
    """Return how many bytes of a frame are missing; zero or less: there are so many more than one frame."""
    if len(received) < 4:
        return 4 - len(received)
    size = int.from_bytes(received[:4], "big")
    if not 0 < size <= MAX_FRAME:
        raise Malformed("", f"a frame must have from 1 to {MAX_FRAME} bytes")
    return 4 + size - len(received)


def encode_frame(content: Mapping[str, Any]) -> bytes:
    """Return an object of JSON as a frame.

    Raises:
        Malformed: It is longer than a frame may be.
    """
    body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(body) > MAX_FRAME:
        raise Malformed("", f"a frame must have from 1 to {MAX_FRAME} bytes")
    return len(body).to_bytes(4, "big") + body


def decode_frame(body: bytes) -> dict[str, Any]:
    """Read the object of JSON in the body of a frame.

    Raises:
        Malformed: It is something else.
    """
    try:
        content = json.loads(body.decode("utf-8"), object_pairs_hook=_no_name_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed("", "not a JSON document") from error
    if not isinstance(content, dict):
        raise Malformed("", "must be an object")
    return content


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError
    return content


def _no_constant(name: str) -> None:
    raise ValueError(name)


# What is in them


@dataclass(frozen=True, slots=True)
class Welcome:
    """What an agent says first: what its store can, and where that is."""

    features: frozenset[str]
    location: str


_HELLO_FIELDS: Final = {"protocol": NAME, "version": COUNT}
_WELCOME_FIELDS: Final = {**_HELLO_FIELDS, "features": list_of(NAME, 100), "location": TEXT}


def decode_hello(content: Mapping[str, Any]) -> None:
    """Check what a client says first.

    Raises:
        Malformed: It is not a client of this version.
    """
    _check_version(decode_fields(_HELLO_FIELDS, content))


def _check_version(fields: Mapping[str, Any]) -> None:
    if fields["protocol"] != PROTOCOL:
        raise Malformed("protocol", f"must be {PROTOCOL}")
    if fields["version"] != VERSION:
        raise Malformed("version", f"must be {VERSION}, and not {fields['version']}: update both to the same version")


def encode_welcome(welcome: Welcome) -> dict[str, Any]:
    """Return what an agent says first."""
    return {**HELLO, "features": sorted(welcome.features), "location": welcome.location}


def decode_welcome(content: Mapping[str, Any]) -> Welcome:
    """Read what an agent says first.

    Raises:
        Malformed: It is not an agent of this version.
    """
    fields = decode_fields(_WELCOME_FIELDS, content)
    _check_version(fields)
    return Welcome(features=frozenset(fields["features"]), location=fields["location"])


def encode_request(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a client asks."""
    return {"verb": name, "arguments": encode_fields(VERBS[name].arguments, arguments)}


def decode_request(content: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the verb that is asked for, and its arguments.

    Raises:
        Malformed: It is no request, or there is no such verb.
        InvalidRequest: An argument is not as the verb takes it.
    """
    if content.keys() != {"verb", "arguments"}:
        raise Malformed("", "must hold a verb and its arguments")
    name = content["verb"]
    if not isinstance(name, str) or name not in VERBS:
        raise Malformed("verb", "is not one of an invite store")
    try:
        return name, decode_fields(VERBS[name].arguments, content["arguments"])
    except Malformed as error:
        raise InvalidRequest(error.field or "arguments", error.reason) from error


_PLAIN_ERRORS: Final[Mapping[str, type[InvitesError]]] = {
    error.__name__: error for error in (InviteExists, InvalidHost, Unsupported)
}
_STORAGE_ERRORS: Final[Mapping[str, type[StorageError]]] = {
    error.__name__: error for error in (StorageError, StorageBusy, OutcomeUnknown, CorruptRecord)
}
_ERROR_FIELDS: Final = {
    "class": NAME,
    "message": TEXT,
    "field": maybe(NAME),
    "retry_after": maybe(COUNT),
    "redemption_id": maybe(NAME),
}


def shorten(text: str) -> str:
    """Return a text of the store in a form that an answer can hold, whatever the store may say: it tells, no more."""
    sound = text.encode("utf-8", "replace").decode()
    return sound if len(sound) <= LONGEST_MESSAGE else f"{sound[: LONGEST_MESSAGE - 1]}…"


def encode_error(error: InvitesError) -> dict[str, Any]:
    """Return an error of an invite store: its class, its message and its attributes."""
    known = (*_PLAIN_ERRORS.values(), *_STORAGE_ERRORS.values(), InvalidRequest)
    named = next((one for one in type(error).__mro__ if one in known), StorageError)
    return {
        "class": named.__name__,
        "message": shorten(str(error)),
        "field": error.field if isinstance(error, InvalidRequest) else None,
        "retry_after": error.retry_after if isinstance(error, StorageError) else None,
        "redemption_id": error.redemption_id if isinstance(error, OutcomeUnknown) else None,
    }


def decode_error(content: Any) -> InvitesError:
    """Return the error that was sent, of one of the classes that an invite store may raise.

    Raises:
        Malformed: It is not one of these.
    """
    fields = decode_fields(_ERROR_FIELDS, content)
    name, message = fields["class"], fields["message"]
    if name == InvalidRequest.__name__:
        place = fields["field"] or ""
        return InvalidRequest(place, message.removeprefix(f"{place}: "))
    if name in _PLAIN_ERRORS:
        return _PLAIN_ERRORS[name](message)
    if name not in _STORAGE_ERRORS or fields["retry_after"] is None:
        raise Malformed("class", "is not an error of an invite store")
    error = _STORAGE_ERRORS[name](message, retry_after=fields["retry_after"])
    if isinstance(error, OutcomeUnknown):
        error.redemption_id = fields["redemption_id"]
    return error
