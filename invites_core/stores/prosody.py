"""Invites that live in a running Prosody, reached through its admin socket.

Prosody's own modules honour them as their own. Which hosts there are is what that Prosody says: all on which
``mod_invites`` is loaded. A verb that is given no host looks on all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from invites_core.errors import (
    CorruptRecord,
    InvalidHost,
    InvalidRequest,
    InviteExists,
    OutcomeUnknown,
    StorageError,
    Unsupported,
)
from invites_core.invites import Invite, InviteState, Redemption, is_token
from invites_core.store import HISTORY, InvitePage, RedeemResult, Sweep
from invites_core.stores.prosody_lua import format_call, parse_result
from invites_core.stores.prosody_rows import (
    check_invite,
    check_unicode,
    group_invites,
    invite_from_row,
    redemptions_from_row,
)
from invites_core.stores.prosody_socket import ProsodySocket
from invites_core.stores.prosody_stream import MAX_CALL
from invites_core.stores.records import to_seconds

__all__ = ["MAX_ROWS", "ProsodyStore"]

MAX_ROWS: Final = 5_000
TIMEOUT_SECONDS: Final = 20.0
PROBLEM_PAGE: Final = 500

_CURSOR: Final = re.compile(r"[0-9]{18}-[0-9a-f]{16}", re.ASCII)
# The digest of a host, as whoever purges may not know its name, a position in it, and whether a host was left out.
_PURGE_CURSOR: Final = re.compile(r"([0-9a-f]{16})(?:\.([0-9]{18}-[0-9a-f]{16}))?(!?)", re.ASCII)
_PURGED_BUT_FOR_SOME: Final = "!"
_LIKE_A_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{16,}", re.ASCII)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]+")

MOST_WRITTEN: Final = 1_000_000
"""How many bytes of rows one call may make Prosody write: it answers nobody meanwhile."""


class ProsodyStore:
    """The invites of one Prosody. What it acknowledges is as durable as that Prosody's storage.

    It holds invites of one use or of unlimited uses. Lists and sweeps read every row of a host at once, and nothing
    else runs in Prosody meanwhile; above a number of rows they are `Unsupported`.
    """

    features = frozenset({HISTORY})

    def __init__(self, path: Path, *, max_rows: int = MAX_ROWS, timeout: float = TIMEOUT_SECONDS) -> None:
        """Take where Prosody's admin socket is; Prosody need not run yet.

        Args:
            path: The socket, ``prosody.sock`` in Prosody's data folder.
            max_rows: How many rows a list or a sweep may read.
            timeout: How long one call may take, in seconds.
        """
        self._socket = ProsodySocket(path, timeout=timeout)
        self._max_rows = max_rows

    @property
    def location(self) -> str:
        """The path of the socket."""
        return str(self._socket.path)

    def ping(self) -> None:
        """Ask Prosody for its hosts.

        Raises:
            StorageError: It does not answer, or no host has ``mod_invites``.
        """
        self._ask("hosts")

    def find_problems(self) -> Sequence[str]:
        """Read every row that Prosody has, as far as that may be at once, and look for keys of its own."""
        return self.find_problems_of(lambda _: True)

    def find_problems_of(self, serves: Callable[[str], bool]) -> Sequence[str]:
        """Do the same for those hosts alone for which this is true."""
        problems = []
        for host in filter(serves, self._ask("hosts")["hosts"]):
            try:
                unreadable = self._count_unreadable(host)
            except Unsupported as error:
                problems.append(str(error))
            else:
                if unreadable:
                    problems.append(f"{host}: {unreadable} rows of Prosody's invites cannot be read")
        problems += [
            f"note: {host}: Prosody's own mod_invites_api takes keys as well; import-keys --remove takes them out, then"
            " disable it"
            for host in filter(serves, self._ask("apis")["hosts"])
        ]
        return problems

    def _count_unreadable(self, host: str) -> int:
        count, cursor = 0, None
        while True:
            page = self._ask("list", host=host, now=0, limit=PROBLEM_PAGE, most=self._max_rows, cursor=cursor)
            count += len(page["shown"]) - len(_read_page(host, page))
            cursor = page.get("next")
            if cursor is None:
                return count

    def close(self) -> None:
        """Close this process's connection."""
        self._socket.close()

    def add_invites(self, invites: Sequence[Invite], *, if_absent: bool = False) -> None:  # noqa: D102 (see protocol)
        for invite in invites:
            if invite.max_uses not in (None, 1):
                raise Unsupported("Prosody holds invites of one use or of unlimited uses only")
            check_invite(invite)
        if len({invite.token for invite in invites}) < len(invites):
            raise InviteExists
        groups = group_invites(list(invites))
        # By what becomes of it there: one row is sent for many tokens, and written for each.
        if sum(len(group["row"]) * len(group["tokens"]) for group in groups) > MOST_WRITTEN:
            raise Unsupported("that is more at once than Prosody can write without a pause: ask for fewer invites")
        self._change("add", groups=groups, if_absent=if_absent)

    def find_invite(self, token: str) -> Invite | None:  # noqa: D102
        return _read_invite(token, self._ask("find", token=token)) if is_token(token) else None

    def list_invites(
        self,
        host: str,
        *,
        now: datetime,
        state: InviteState | None = None,
        source: str | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> InvitePage:
        """Return invites of a host; rows that cannot be read are left out.

        Prosody's modules write to the same store, and what one of them has written there must not keep all others from
        being seen. `find_problems` counts such rows, and to look one up by its token is CorruptRecord.
        """
        page = self._ask(
            "list",
            host=host,
            now=to_seconds(now),
            state=state,
            source=source,
            limit=limit,
            most=self._max_rows,
            cursor=_check_cursor(cursor),
        )
        return InvitePage(invites=tuple(_read_page(host, page)), next=page.get("next"))

    def redeem_invite(  # noqa: D102
        self,
        token: str,
        *,
        redemption_id: str,
        redeemer: str | None,
        username: str | None,
        host: str | None,
        now: datetime,
    ) -> RedeemResult:
        if not is_token(token):
            return RedeemResult(outcome="refused", invite=None)
        check_unicode("redemption_id", redemption_id)
        check_unicode("redeemer", redeemer or "")
        answer = self._change(
            "redeem",
            token=token,
            id=redemption_id,
            redeemer=redeemer,
            username=username,
            host=host,
            now=to_seconds(now),
        )
        is_done = answer["outcome"] in ("redeemed", "repeated")
        return RedeemResult(
            outcome=answer["outcome"], invite=(_read_changed if is_done else _read_invite)(token, answer)
        )

    def release_redemption(  # noqa: D102
        self, token: str, *, redemption_id: str, host: str | None, now: datetime
    ) -> Invite | None:
        if not is_token(token):
            return None
        check_unicode("redemption_id", redemption_id)
        answer = self._change("release", token=token, id=redemption_id, host=host, now=to_seconds(now))
        return _read_changed(token, answer)

    def list_redemptions(self, token: str) -> Sequence[Redemption]:  # noqa: D102
        rows = self._ask("find", token=token, history=True)["shown"] if is_token(token) else []
        return redemptions_from_row(token, rows[0]) if rows else []

    def revoke_invite(  # noqa: D102
        self, token: str, *, by: str, host: str | None, now: datetime
    ) -> tuple[bool, Invite | None]:
        if not is_token(token):
            return False, None
        check_unicode("by", by)
        answer = self._change("revoke", token=token, by=by, host=host, now=to_seconds(now))
        return answer["revoked"], (_read_changed if answer["revoked"] else _read_invite)(token, answer)

    def revoke_invites_from(  # noqa: D102
        self, source: str, *, by: str, host: str, now: datetime, limit: int, cursor: str | None = None
    ) -> Sweep:
        check_unicode("by", by)
        answer = self._change(
            "revoke_from",
            source=source,
            by=by,
            host=host,
            now=to_seconds(now),
            limit=limit,
            most=self._max_rows,
            cursor=_check_cursor(cursor),
        )
        return Sweep(changed=answer["changed"], next=answer.get("next"))

    def purge_invites(self, *, before: datetime, limit: int, cursor: str | None = None) -> Sweep:
        """Purge one host in a step.

        Raises:
            Unsupported: Of a host there are too many; in the last step, so that the others are purged all the same.
        """
        parts = _PURGE_CURSOR.fullmatch(cursor) if cursor is not None else None
        if cursor is not None and parts is None and cursor != _PURGED_BUT_FOR_SOME:
            raise InvalidRequest("cursor", "is not one that a purge has given")
        if cursor == _PURGED_BUT_FOR_SOME:
            raise Unsupported(_describe_too_many(self._max_rows))
        mark, position, left_out = parts.groups() if parts else (None, None, "")
        answer = self._change(
            "purge", before=to_seconds(before), limit=limit, most=self._max_rows, mark=mark, cursor=position
        )
        left_out = left_out or ("!" if answer.get("many") else "")
        after = ".".join(filter(None, [answer.get("mark"), answer.get("next")])) + left_out
        if after == _PURGED_BUT_FOR_SOME and not answer["changed"]:
            raise Unsupported(_describe_too_many(self._max_rows))
        return Sweep(changed=answer["changed"], next=after or None)

    def _ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        return self._run(verb, arguments, changes=False)

    def _change(self, verb: str, **arguments: Any) -> dict[str, Any]:
        return self._run(verb, arguments, changes=True)

    def _run(self, verb: str, arguments: dict[str, Any], *, changes: bool) -> dict[str, Any]:
        lines = format_call(verb, arguments)
        if sum(map(len, lines)) > MAX_CALL:
            raise Unsupported("that is more at once than Prosody's admin socket takes: ask for fewer invites")
        result = self._socket.run(*lines, changes=changes)
        answer = None if result.is_error else parse_result(result.text)
        if answer is None:
            message = "Prosody did not answer as it should: its admin socket ran no operation of this program"
            raise OutcomeUnknown(message) if changes else StorageError(message)
        if "failed" in answer:
            _refuse(answer, self._max_rows)
        return answer


def _describe_too_many(max_rows: int) -> str:
    # Which host it is, is nobody's business who purges through an agent.
    return (
        f"Prosody has more than {max_rows} invites of a host, and would answer nobody else while it reads them: let it"
        " read more, with ?max_rows=N at the end of the URL prosody:///…, and purge what is over"
    )


def _refuse(answer: dict[str, Any], max_rows: int) -> NoReturn:
    """Raise what an operation says that went wrong."""
    reason, detail = answer["failed"], _CONTROL.sub(" ", str(answer.get("detail", "")))
    if reason == "exists":
        raise InviteExists
    if reason == "host":
        raise InvalidHost(f"please supply a valid host: Prosody does not serve {detail}")
    if reason == "module":
        where = f"for {detail}" if detail else "for a host"
        raise StorageError(f'Prosody has no mod_invites {where}: add "invites" to its modules_enabled', retry_after=60)
    if reason == "many":
        raise Unsupported(_describe_too_many(max_rows))
    if reason == "unsound":
        raise CorruptRecord("a row of Prosody's invites cannot be read")
    if reason == "full":
        raise Unsupported("this invite was redeemed as often as Prosody can keep")
    if reason == "storage":
        message = "Prosody's storage failed; its log says why"
    else:
        # Whatever an event's listener may have said, no token is repeated.
        message = f"Prosody could not do it: {_LIKE_A_TOKEN.sub('…', detail)[:200]}"
    raise OutcomeUnknown(message) if answer.get("wrote") else StorageError(message)


def _read_changed(token: str, answer: dict[str, Any]) -> Invite | None:
    """Read an invite behind a change that was made: one that cannot be read does not undo it."""
    try:
        return _read_invite(token, answer)
    except CorruptRecord as error:
        raise OutcomeUnknown(f"the change was made, and its invite cannot be read: {error}") from error


def _read_invite(token: str, answer: dict[str, Any]) -> Invite | None:
    rows = answer["shown"]
    return invite_from_row(answer["host"], token, rows[0]) if rows else None


def _read_page(host: str, page: dict[str, Any]) -> list[Invite]:
    invites = []
    for token, row in zip(page["tokens"], page["shown"], strict=True):
        with suppress(CorruptRecord):
            invites.append(invite_from_row(host, token, row))
    return invites


def _check_cursor(cursor: str | None) -> str | None:
    if cursor is not None and not _CURSOR.fullmatch(cursor):
        raise InvalidRequest("cursor", "is not one that a list has given")
    return cursor
