"""How records go to the agent and come back: as JSON, each field checked in both directions of the wire.

A codec encodes a value that the caller's types already vouch for, and decodes what a stranger may have sent: whatever
is missing, too much, too long or of another type is `Malformed`, and names its field.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from invites_core.errors import CorruptRecord
from invites_core.invites import KINDS, Invite, Redemption
from invites_core.store import InvitePage, RedeemResult, Sweep
from invites_core.stores.records import from_seconds, to_seconds

__all__ = [
    "COUNT",
    "FLAG",
    "INVITE",
    "INVITES",
    "LIMIT",
    "MAX_LIST",
    "NAME",
    "NOTHING",
    "PAGE",
    "REDEEMED",
    "REDEMPTION",
    "STATE",
    "SWEEP",
    "TEXT",
    "TIME",
    "Codec",
    "Malformed",
    "decode_fields",
    "encode_fields",
    "list_of",
    "maybe",
    "pair",
]

MAX_LIST: Final = 1000
"""The most invites in one frame, and so in one step of a list or a sweep."""
MAX_LABELS: Final = 1000
MAX_TEXT: Final = 16_384
MAX_NAME: Final = 1023
MAX_COUNT: Final = 2**63 - 1
MAX_SECONDS: Final = 253_402_300_799
"""The last second of the year 9999, where datetimes end."""


class Malformed(ValueError):
    """What came over the wire is not what it should be.

    Attributes:
        field: Where, as names with dots between; "" for the whole.
        reason: What is wrong, in a few words; it repeats nothing that was sent.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Codec:
    """How one kind of value is written and read.

    Attributes:
        encode: Returns what JSON can hold.
        decode: Returns the value, or raises `Malformed`.
    """

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _text(max_length: int) -> Codec:
    def decode(value: Any) -> str:
        if not isinstance(value, str) or len(value) > max_length:
            raise Malformed("", f"must be a text of at most {max_length} characters")
        if not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                # JSON can spell half of a surrogate pair, and no store can keep it.
                raise Malformed("", "must be valid Unicode") from None
        return value

    return Codec(_same, decode)


def _whole(low: int, high: int) -> Codec:
    def decode(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise Malformed("", f"must be a whole number from {low} to {high}")
        return value

    return Codec(_same, decode)


def _one_of(choices: Collection[str]) -> Codec:
    def decode(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise Malformed("", f"must be one of {', '.join(sorted(choices))}")
        return value

    return Codec(_same, decode)


def _decode_flag(value: Any) -> bool:
    if type(value) is not bool:
        raise Malformed("", "must be true or false")
    return value


def _decode_nothing(value: Any) -> None:
    if value is not None:
        raise Malformed("", "must be null")


def _decode_time(value: Any) -> datetime:
    if type(value) is not int or not 0 <= value <= MAX_SECONDS:
        raise Malformed("", "must be a time in seconds since 1970")
    try:
        return from_seconds(value)
    except CorruptRecord as error:
        raise Malformed("", "must be a time in seconds since 1970") from error


def maybe(codec: Codec) -> Codec:
    """Return the codec of a value that may be None."""
    return Codec(
        lambda value: None if value is None else codec.encode(value),
        lambda value: None if value is None else codec.decode(value),
    )


def list_of(codec: Codec, most: int) -> Codec:
    """Return the codec of a tuple of at most so many values."""

    def decode(values: Any) -> tuple[Any, ...]:
        return tuple(_decode_each(codec, values, most))

    return Codec(lambda values: [codec.encode(value) for value in values], decode)


def _decode_each(codec: Codec, values: Any, most: int) -> list[Any]:
    if not isinstance(values, list) or len(values) > most:
        raise Malformed("", f"must be a list of at most {most}")
    return [codec.decode(value) for value in values]


def pair(first: Codec, second: Codec) -> Codec:
    """Return the codec of a tuple of two."""

    def decode(values: Any) -> tuple[Any, Any]:
        if not isinstance(values, list) or len(values) != 2:
            raise Malformed("", "must be a list of two")
        return first.decode(values[0]), second.decode(values[1])

    return Codec(lambda values: [first.encode(values[0]), second.encode(values[1])], decode)


def encode_fields(codecs: Mapping[str, Codec], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by name as an object of JSON."""
    return {name: codec.encode(values[name]) for name, codec in codecs.items()}


def decode_fields(codecs: Mapping[str, Codec], values: Any) -> dict[str, Any]:
    """Read values by name: all of these names, and no others.

    Raises:
        Malformed: It is something else; names the first field that is.
    """
    if not isinstance(values, dict):
        raise Malformed("", "must be an object")
    if values.keys() != codecs.keys():
        missing = codecs.keys() - values.keys()
        raise Malformed(min(missing, default=""), "is missing" if missing else "a field is not known")
    decoded = {}
    for name, codec in codecs.items():
        try:
            decoded[name] = codec.decode(values[name])
        except Malformed as error:
            raise Malformed(f"{name}.{error.field}".rstrip("."), error.reason) from None
    return decoded


def _record(kind: Callable[..., Any], codecs: Mapping[str, Codec]) -> Codec:
    return Codec(
        lambda value: {name: codec.encode(getattr(value, name)) for name, codec in codecs.items()},
        lambda values: kind(**decode_fields(codecs, values)),
    )


def _alike(codec: Codec, most: int) -> Codec:
    """Return the codec of a tuple of records that are much alike: of all but the first, only what differs from it.

    A thousand invites made by one request differ in their tokens alone, and with long notes would fill many frames.
    """

    def encode(values: Any) -> list[Any]:
        encoded = [codec.encode(value) for value in values]
        return encoded[:1] + [
            {name: value for name, value in one.items() if value != encoded[0][name]} for one in encoded[1:]
        ]

    def decode(values: Any) -> tuple[Any, ...]:
        if isinstance(values, list) and values and all(isinstance(value, dict) for value in values):
            values = [values[0], *({**values[0], **value} for value in values[1:])] if len(values) <= most else values
        return tuple(_decode_each(codec, values, most))

    return Codec(encode, decode)


NOTHING: Final = Codec(_same, _decode_nothing)
FLAG: Final = Codec(bool, _decode_flag)
TEXT: Final = _text(MAX_TEXT)
NAME: Final = _text(MAX_NAME)
COUNT: Final = _whole(0, MAX_COUNT)
LIMIT: Final = _whole(1, MAX_LIST)
TIME: Final = Codec(to_seconds, _decode_time)
STATE: Final = _one_of(("pending", "used", "revoked", "expired"))
_LABELS: Final = list_of(NAME, MAX_LABELS)

INVITE: Final = _record(
    Invite,
    {
        "token": NAME,
        "host": NAME,
        "kind": _one_of(KINDS),
        "username": maybe(NAME),
        "registration": FLAG,
        "created_at": TIME,
        "expires_at": maybe(TIME),
        "max_uses": maybe(_whole(1, MAX_COUNT)),
        "uses": COUNT,
        "source": NAME,
        "groups": _LABELS,
        "roles": _LABELS,
        "note": maybe(TEXT),
        "closed_at": maybe(TIME),
        "revoked_by": maybe(NAME),
    },
)
"""An invite; ``landing_page`` is left out, since no store keeps it."""

INVITES: Final = _alike(INVITE, MAX_LIST)

REDEMPTION: Final = _record(
    Redemption,
    {
        "token": NAME,
        "redemption_id": NAME,
        "redeemer": maybe(NAME),
        "redeemed_at": maybe(TIME),
        "released_at": maybe(TIME),
    },
)

REDEEMED: Final = _record(
    RedeemResult,
    {
        "outcome": _one_of(("redeemed", "repeated", "conflict", "released", "refused")),
        "invite": maybe(INVITE),
    },
)

PAGE: Final = _record(InvitePage, {"invites": INVITES, "next": maybe(NAME)})

SWEEP: Final = _record(Sweep, {"changed": COUNT, "next": maybe(NAME)})
