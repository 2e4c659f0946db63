"""Invites as rows of Prosody's: the shape that its own modules write, and what that shape has no room for.

A row is what ``mod_invites`` writes in 0.12 and in 13. What this program needs beyond it stands in the field
``invites_api`` of the same row, which Prosody keeps and does not look at:

- ``added_at``: when the row was added, in microseconds since 1970, as a text, which is its place in lists;
- ``uses``, ``closed_at``, ``revoked_by``, ``redemptions`` (a list of ``id``, ``by``, ``at``, ``released``);
- ``expires``: the time of expiry of a used or revoked invite; in Prosody's own field it is 0, which Prosody refuses;
- ``closing``: it is about to be closed, or somebody was killed while closing it; of invites that only add a contact;
- ``as_made``: JSON of those fields that would not come back from the rest as they were added, as a text that is
  nobody's business inside Prosody.

This is a stored format. A field may be added that rows lack; none changes its meaning.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any, Final

from invites_core.errors import CorruptRecord, InvalidRequest
from invites_core.invites import Invite, Redemption, is_token
from invites_core.stores.prosody_prelude import CONTACT_STORE, NEVER_EXPIRES
from invites_core.stores.records import from_seconds, from_seconds_or_none, to_seconds, to_seconds_or_none

__all__ = ["check_invite", "check_unicode", "group_invites", "invite_from_row", "redemptions_from_row"]

MADE_BY_PROSODY: Final = "prosody"
"""The source of an invite that does not name one: Prosody's own shell and commands made it."""

_NO_USERNAME: Final = re.compile(r"""[\x00-\x20\x7f"&'/:<>@]""")
_MAP_ITEMS: Final = "__hash"


def check_invite(invite: Invite) -> None:
    """Check that Prosody can hold an invite.

    Raises:
        InvalidRequest: A text is not valid Unicode, the token has not a token's form, or the user name cannot be one.
    """
    if not is_token(invite.token):
        raise InvalidRequest("token", "must be 16 to 255 characters of base64url")
    for field, texts in (
        ("host", [invite.host]),
        ("username", [invite.username or ""]),
        ("source", [invite.source]),
        ("groups", invite.groups),
        ("roles", invite.roles),
        ("note", [invite.note or ""]),
        ("revoked_by", [invite.revoked_by or ""]),
    ):
        for text in texts:
            check_unicode(field, text)
    username = invite.username
    # It becomes a part of an address and the name of a file, so what no address can have is refused.
    if username is not None and (not username or _NO_USERNAME.search(username) or len(username.encode()) > 1023):
        raise InvalidRequest("username", "is not a valid user name")
    if username is None and invite.kind != "register":
        raise InvalidRequest("username", "must name the account")
    if invite.kind == "register" and not invite.registration:
        raise InvalidRequest("registration", "must be true for register")


def check_unicode(field: str, text: str) -> None:
    """Check that a text can be written as UTF-8.

    Raises:
        InvalidRequest: It holds half of a surrogate pair.
    """
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidRequest(field, "must be valid Unicode")


def group_invites(invites: list[Invite]) -> list[dict[str, Any]]:
    """Return what the operation ``add`` takes: invites that are alike but for their token share one row."""
    groups: dict[Invite, list[str]] = {}
    for invite in invites:
        groups.setdefault(replace(invite, token="", landing_page=""), []).append(invite.token)
    return [
        {
            "host": invite.host,
            "store": CONTACT_STORE if invite.kind == "roster" and not invite.registration else "invite_token",
            # As a text, read anew for each token: rows that share a table are an error to Prosody's storage.
            "row": _dump(_row_from_invite(invite)),
            # Nothing else in a URI can hold what stands before the token; the token itself is empty here.
            "uri": list(re.split("(?<=preauth=)", invite.uri, maxsplit=1)),
            "tokens": tokens,
        }
        for invite, tokens in groups.items()
    ]


def _row_from_invite(invite: Invite) -> dict[str, Any]:
    expires = NEVER_EXPIRES if invite.expires_at is None else to_seconds(invite.expires_at)
    additional = {"source": invite.source, "groups": list(invite.groups), "roles": list(invite.roles)}
    row: dict[str, Any] = {
        "type": "roster" if invite.kind == "roster" else "register",
        "jid": invite.jid,
        "allow_registration": invite.kind == "reset" or invite.registration,
        "additional_data": _drop_empty(
            {**additional, "note": invite.note, "allow_reset": invite.username if invite.kind == "reset" else None}
        ),
        "created_at": to_seconds(invite.created_at),
        "expires": expires,
        "reusable": True if invite.max_uses is None else None,
    }
    own: dict[str, Any] = {
        "uses": invite.uses or None,
        "closed_at": to_seconds_or_none(invite.closed_at),
        "revoked_by": invite.revoked_by,
    }
    if invite.state_at(invite.created_at) in ("used", "revoked"):
        own["expires"], row["expires"] = expires, 0
    row["invites_api"] = _drop_empty(own)
    row["invites_api"] = _drop_empty({**own, "as_made": _find_lost(invite, row)})
    return _drop_empty(row)


def _drop_empty(fields: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is None, and empty lists and tables, which Lua cannot tell apart."""
    return {name: value for name, value in fields.items() if value is not None and value not in ([], {})}


def _find_lost(invite: Invite, row: dict[str, Any]) -> str | None:
    """Return, as JSON, the fields of an invite that its row would not give back."""
    found = _read_row(invite.host, "", row)
    fields = {
        "kind": invite.kind,
        "registration": invite.registration,
        "expires": to_seconds_or_none(invite.expires_at),
        "note": invite.note,
        "groups": list(invite.groups),
        # Prosody 0.12 keeps roles in a map, which has no order.
        "roles": list(invite.roles),
    }
    same = {
        "kind": found.kind == invite.kind,
        "registration": found.registration == invite.registration,
        "expires": found.expires_at == invite.expires_at,
        "note": found.note == invite.note,
        "groups": found.groups == invite.groups,
        "roles": found.roles == invite.roles and len(invite.roles) < 2,
    }
    lost = {name: value for name, value in fields.items() if not same[name]}
    return _dump(lost) if lost else None


def invite_from_row(host: str, token: str, row: bytes) -> Invite:
    """Return the invite that a row is about.

    Args:
        host: Its host.
        token: What it is stored under.
        row: The row, as Prosody shows it.

    Raises:
        CorruptRecord: It cannot be an invite's.
    """
    try:
        if not token:
            raise ValueError
        return _read_row(host, token, json.loads(row.decode()))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptRecord("a row of Prosody's invites cannot be read") from error


def _read_row(host: str, token: str, row: dict[str, Any]) -> Invite:
    additional = _read_table(row.get("additional_data"))
    own = _read_table(row.get("invites_api"))
    as_made = json.loads(own.get("as_made", "{}"))
    username = row["jid"].rpartition("@")[0] or None
    kind = "reset" if additional.get("allow_reset") else row["type"]
    if kind == "reset" and username is None:
        username = _read_text(additional["allow_reset"])
    kind = as_made.get("kind", kind)
    if kind not in ("register", "roster", "reset"):
        raise ValueError
    expires = _read_whole(own.get("expires", row["expires"]))
    expires = as_made.get("expires", None if expires == NEVER_EXPIRES else expires)
    source, note = additional.get("source"), additional.get("note")
    return Invite(
        token=token,
        host=host,
        kind=kind,
        username=username,
        registration=as_made.get("registration", kind != "reset" and row.get("allow_registration") is True),
        created_at=from_seconds(_read_whole(row["created_at"])),
        expires_at=from_seconds_or_none(expires),
        max_uses=None if row.get("reusable") else 1,
        uses=_read_whole(own.get("uses", 0)),
        source=source if isinstance(source, str) else MADE_BY_PROSODY,
        groups=tuple(as_made.get("groups", _read_texts(additional.get("groups")))),
        roles=tuple(as_made.get("roles", _read_texts(additional.get("roles")))),
        note=as_made.get("note", note if isinstance(note, str) else None),
        closed_at=_read_time(own.get("closed_at")),
        revoked_by=None if own.get("revoked_by") is None else _read_text(own["revoked_by"]),
    )


def redemptions_from_row(token: str, row: bytes) -> list[Redemption]:
    """Return the redemptions in a row, oldest first.

    Raises:
        CorruptRecord: They cannot be read.
    """
    try:
        own = _read_table(json.loads(row.decode()).get("invites_api"))
        found = [
            Redemption(
                token=token,
                redemption_id=_read_text(one["id"]),
                redeemer=one.get("by"),
                redeemed_at=_read_time(one.get("at")),
                released_at=_read_time(one.get("released")),
            )
            for one in own.get("redemptions") or []
        ]
        return sorted(found, key=lambda one: (one.happened_at, one.redemption_id))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise CorruptRecord("the redemptions in a row of Prosody's cannot be read") from error


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _read_table(value: object) -> dict[str, Any]:
    # Lua's empty table comes as an empty object or as an empty list.
    if isinstance(value, dict):
        return value
    if value in (None, []):
        return {}
    raise ValueError


def _read_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _read_texts(value: object) -> list[str]:
    """Read a list, or a map of which the keys count; what is no text in it is left out."""
    if isinstance(value, dict):
        items = value.get(_MAP_ITEMS)
        pairs = list(value.items())
        if isinstance(items, list):
            pairs = [*zip(items[::2], items[1::2], strict=False), *(one for one in pairs if one[0] != _MAP_ITEMS)]
        value = sorted(name for name, is_set in pairs if isinstance(name, str) and is_set)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _read_whole(value: object) -> int:
    """Read a number, which Lua may have made a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError
    return int(value)


def _read_time(value: object) -> Any:
    return None if value is None else from_seconds(_read_whole(value))
