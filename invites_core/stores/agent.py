"""Invites behind an agent: a process of another user, which serves the verbs of an invite store on a Unix socket."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from invites_core.errors import InvitesError, OutcomeUnknown, StorageBusy, StorageError, Unsupported
from invites_core.invites import Invite, InviteState, Redemption
from invites_core.process import PerProcess
from invites_core.store import InvitePage, RedeemResult, Sweep
from invites_core.stores.agent_records import MAX_LIST, Malformed, decode_fields
from invites_core.stores.agent_socket import explain_socket_error
from invites_core.stores.agent_turns import is_long
from invites_core.stores.agent_wire import (
    HELLO,
    VERBS,
    FrameSocket,
    Welcome,
    decode_error,
    decode_frame,
    decode_welcome,
    encode_frame,
    encode_request,
    time_left,
)

__all__ = ["AgentStore"]

CONNECTIONS: Final = 16
LONG_CONNECTIONS: Final = 4
CONNECT_SECONDS: Final = 5.0
REQUEST_SECONDS: Final = 15.0
LOOKING_SECONDS: Final = 3600.0
"""For `find_problems`, which may read a whole database."""


class _NotSentError(Exception):
    """The agent has not got the request whole, and so has done nothing of it."""


class _UnansweredError(Exception):
    """The agent may have got the request; why there is no answer."""


class _Process:
    """What one process holds: the connections that nobody uses at the moment, and room for so many in all."""

    __slots__ = ("idle", "lock", "long_room", "room")

    def __init__(self) -> None:
        self.idle: list[FrameSocket] = []
        self.lock = threading.Lock()
        self.room = threading.Semaphore(CONNECTIONS)
        # The agent does what takes long one at a time: those who wait for that leave connections to others.
        self.long_room = threading.Semaphore(LONG_CONNECTIONS)

    def take(self) -> FrameSocket | None:
        """Return a connection that was used before, or None."""
        with self.lock:
            return self.idle.pop() if self.idle else None

    def give_back(self, connection: FrameSocket) -> None:
        """Keep a connection for the next call."""
        with self.lock:
            self.idle.append(connection)

    def close(self) -> None:
        """Close all that nobody uses."""
        with self.lock:
            idle, self.idle = self.idle, []
        for connection in idle:
            connection.close()


class AgentStore:
    """The invites of whatever store an agent serves; it can what that store can.

    Each call is one request on one connection of this process, which is made at need and used again. A change whose
    answer does not come is `OutcomeUnknown`, as the agent may have made it.
    """

    def __init__(self, path: Path, *, timeout: float = REQUEST_SECONDS) -> None:
        """Get to know the agent.

        Args:
            path: The agent's socket.
            timeout: How long a call may take in all, in seconds; `find_problems` has an hour.

        Raises:
            StorageError: No agent answers there, or one of another version.
        """
        # Absolute from now on: a service may change its folder later.
        self._path = Path(os.path.abspath(path))
        self._timeout = timeout
        self._closed = False
        self._process = PerProcess(_Process, prepare_fork=_close_before_fork)
        # Done once here, so that what is wrong shows at the start; nothing is open at a fork.
        self._connect(time.monotonic() + timeout).close()

    @property
    def features(self) -> frozenset[str]:
        """What the store behind the agent can, as the agent said when it was last connected to."""
        return self._welcome.features

    @property
    def location(self) -> str:
        """Where the data is, as the agent said, and where the agent is."""
        return f"{self._welcome.location} behind the agent {self._path}"

    def close(self) -> None:
        """Close the connections of this process."""
        self._closed = True
        process = self._process.peek()
        if process is not None:
            process.close()

    def ping(self) -> None:
        """Ask the agent whether its store can be read at this moment."""
        self._call("ping")

    def find_problems(self) -> Sequence[str]:
        """Let the agent look its store over."""
        found: Sequence[str] = self._call("find_problems", timeout=LOOKING_SECONDS)
        return found

    def add_invites(self, invites: Sequence[Invite], *, if_absent: bool = False) -> None:  # noqa: D102 (protocol)
        if len(invites) > MAX_LIST:
            raise Unsupported(f"an agent takes at most {MAX_LIST} invites at once")
        self._call("add_invites", invites=invites, if_absent=if_absent)

    def find_invite(self, token: str) -> Invite | None:  # noqa: D102
        found: Invite | None = self._call("find_invite", token=token)
        return found

    def list_invites(  # noqa: D102
        self,
        host: str,
        *,
        now: datetime,
        state: InviteState | None = None,
        source: str | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> InvitePage:
        page: InvitePage = self._call(
            "list_invites", host=host, now=now, state=state, source=source, limit=min(limit, MAX_LIST), cursor=cursor
        )
        return page

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
        result: RedeemResult = self._call(
            "redeem_invite",
            token=token,
            redemption_id=redemption_id,
            redeemer=redeemer,
            username=username,
            host=host,
            now=now,
        )
        return result

    def release_redemption(  # noqa: D102
        self, token: str, *, redemption_id: str, host: str | None, now: datetime
    ) -> Invite | None:
        found: Invite | None = self._call(
            "release_redemption", token=token, redemption_id=redemption_id, host=host, now=now
        )
        return found

    def list_redemptions(self, token: str) -> Sequence[Redemption]:  # noqa: D102
        found: Sequence[Redemption] = self._call("list_redemptions", token=token)
        return found

    def revoke_invite(  # noqa: D102
        self, token: str, *, by: str, host: str | None, now: datetime
    ) -> tuple[bool, Invite | None]:
        outcome: tuple[bool, Invite | None] = self._call("revoke_invite", token=token, by=by, host=host, now=now)
        return outcome

    def revoke_invites_from(  # noqa: D102
        self, source: str, *, by: str, host: str, now: datetime, limit: int, cursor: str | None = None
    ) -> Sweep:
        step: Sweep = self._call(
            "revoke_invites_from",
            source=source,
            by=by,
            host=host,
            now=now,
            limit=min(limit, MAX_LIST),
            cursor=cursor,
        )
        return step

    def purge_invites(self, *, before: datetime, limit: int, cursor: str | None = None) -> Sweep:  # noqa: D102
        step: Sweep = self._call("purge_invites", before=before, limit=min(limit, MAX_LIST), cursor=cursor)
        return step

    def _call(self, name: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Ask the agent for a verb, and return its result.

        Raises:
            InvitesError: What the agent's store raised.
            Unsupported: The request is longer than an agent takes.
            StorageError: The agent cannot be reached; nothing was changed.
            OutcomeUnknown: A change was asked for, and there is no answer.
        """
        try:
            request = encode_frame(encode_request(name, arguments))
        except Malformed as error:
            raise Unsupported("this is more than an agent takes at once") from error
        try:
            # One deadline over all: the wait for a connection, making it, asking, and all of the answer.
            deadline = time.monotonic() + (timeout or self._timeout)
            with self._room(deadline, long=is_long(name, arguments)) as process:
                answer = self._ask(process, request, deadline, repeats=not VERBS[name].changes)
            return _read_result(name, answer)
        except (_UnansweredError, Malformed) as error:
            message = f"no answer of the agent {self._path} that can be read: {error}"
            if VERBS[name].changes:
                raise OutcomeUnknown(message) from error
            raise StorageError(message) from error

    @contextlib.contextmanager
    def _room(self, deadline: float, *, long: bool) -> Iterator[_Process]:
        """Have one of the connections of this process for oneself.

        Raises:
            StorageBusy: There was none in time; nothing was asked.
        """
        process = self._process.get()
        with contextlib.ExitStack() as stack:
            for room in (process.long_room, process.room) if long else (process.room,):
                if not room.acquire(timeout=time_left(deadline)):
                    raise StorageBusy(f"too many requests to the agent {self._path} are under way")
                stack.callback(room.release)
            yield process

    def _ask(self, process: _Process, request: bytes, deadline: float, *, repeats: bool) -> list[dict[str, Any]]:
        """Send a request, and return all that is answered.

        A connection that was used before may have ended since, because the agent was started anew or needed the room:
        then there is another attempt on a new one.
        """
        used = process.take()
        if used is not None:
            try:
                return self._exchange(process, used, request, deadline)
            except _NotSentError:
                process.close()
            except _UnansweredError as error:
                if not repeats or isinstance(error.__cause__, TimeoutError):
                    raise
                process.close()
        try:
            return self._exchange(process, self._connect(deadline), request, deadline)
        except _NotSentError as error:
            raise StorageError(f"the agent {self._path} takes no request: {error}") from error

    def _exchange(
        self, process: _Process, connection: FrameSocket, request: bytes, deadline: float
    ) -> list[dict[str, Any]]:
        """Send a request on a connection, receive its answer, and keep the connection if all went well."""
        try:
            try:
                connection.send(request, by=deadline)
            except OSError as error:
                raise _NotSentError(explain_socket_error(error)) from error
            answer = list(_receive_parts(connection, deadline, self._timeout))
        except BaseException:
            # An answer that comes late must not be taken for that of the next request.
            connection.close()
            raise
        process.give_back(connection)
        if self._closed:
            process.close()
        return answer

    def _connect(self, deadline: float) -> FrameSocket:
        """Return a new connection, on which both ends know of each other.

        An agent that lives says so at once, however long it may take for its answers.

        Raises:
            StorageError: There is none to be had; nothing was asked.
        """
        if self._closed:
            raise StorageError("the store is closed")
        deadline = min(deadline, time.monotonic() + CONNECT_SECONDS)
        connection = FrameSocket(_connect_socket(self._path, deadline))
        try:
            connection.send(encode_frame(HELLO), by=deadline)
            content = _receive_one(connection, deadline)
            if "error" in content:
                raise decode_error(content["error"])
            self._welcome: Welcome = decode_welcome(content)
        except StorageError:
            connection.close()
            raise
        except (InvitesError, Malformed, OSError, _UnansweredError) as error:
            connection.close()
            reason = explain_socket_error(error) if isinstance(error, OSError) else error
            raise StorageError(f"no agent of this version answers at {self._path}: {reason}") from error
        return connection


def _close_before_fork(process: _Process) -> Callable[[], None]:
    """Leave a child nothing to inherit but what is in use at the moment, which it never touches."""
    process.close()
    return lambda: None


def _connect_socket(path: Path, deadline: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        while True:
            connection.settimeout(time_left(deadline))
            try:
                connection.connect(os.fspath(path))
            except BlockingIOError:
                # More wait to be let in than the system keeps; a Unix socket does not queue for that.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return connection
    except OSError as error:
        connection.close()
        raise StorageError(f"cannot reach the agent at {path}: {explain_socket_error(error)}") from error


def _receive_one(connection: FrameSocket, deadline: float, *, within: float | None = None) -> dict[str, Any]:
    """Receive a frame, whose first byte comes before the deadline, and the rest within a time, or before it as well.

    Raises:
        _UnansweredError: There comes none.
        Malformed: There comes something else.
    """
    try:
        body = connection.receive(by=deadline, within=within)
    except OSError as error:
        raise _UnansweredError(explain_socket_error(error)) from error
    if body is None:
        raise _UnansweredError("it hung up")
    return decode_frame(body)


def _receive_parts(connection: FrameSocket, deadline: float, within: float) -> Iterator[dict[str, Any]]:
    while True:
        # An agent may look for long, and not be long in saying what it has found. A nearer deadline holds.
        is_far = time_left(deadline) > within
        content = _receive_one(connection, deadline, within=within if is_far else None)
        yield content
        if content.keys() != {"part"}:
            return


def _read_result(name: str, answer: list[dict[str, Any]]) -> Any:
    """Return the result in an answer, or raise the error in it.

    Raises:
        Malformed: There is neither.
    """
    verb, *parts, last = VERBS[name], *answer
    if last.keys() == {"error"}:
        raise decode_error(last["error"])
    if parts and not verb.in_parts:
        raise Malformed("", "an answer in parts")
    read = [decode_fields({"part": verb.result}, part)["part"] for part in parts]
    result = decode_fields({"result": verb.result}, last)["result"]
    return tuple(itertools.chain(*read, result)) if parts else result
