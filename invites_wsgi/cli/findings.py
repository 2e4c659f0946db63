"""What `check` finds, and what it looks at where the invites lie behind a socket."""

from __future__ import annotations

import contextlib
import grp
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from invites_core import InvalidHost, InviteStore, StorageError, Unsupported
from invites_core.stores import parse_socket_path

__all__ = ["Finding", "check_hosts_of_store", "check_socket", "describe_failure"]

_EXAMPLE_SOCKET: Final = "/run/invites-api/agent.sock"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``ok``, ``note`` (worth knowing) or ``bad`` (to be mended).
        text: What was found, and for ``bad`` what to do.
    """

    level: str
    text: str


def check_socket(url: str) -> Iterator[Finding]:
    """Look at the socket that a store of invites is behind; for another store there is nothing to find."""
    path = parse_socket_path(url)
    if path is None:
        return
    if url.startswith("prosody:"):
        yield Finding(
            "bad",
            "invites is Prosody's own socket: whoever breaks into the service has full power over Prosody; let"
            f" Prosody's user run `invites-api agent --store {url} --listen {_EXAMPLE_SOCKET}`, and set"
            f' invites = "agent://{_EXAMPLE_SOCKET}"',
        )
        return
    # Where there is nothing to look at, nothing can be connected to either, and that says why.
    with contextlib.suppress(OSError):
        found, folder = path.stat(), path.parent.stat()
        if stat.S_ISSOCK(found.st_mode):
            yield from _check_rights(path, found, folder)


def describe_failure(error: StorageError) -> Finding:
    """Return what is to be done about a store that cannot be opened or does not answer."""
    text = str(error)
    if text.startswith(("cannot reach the agent", "no agent of this version")):
        if text.endswith("permission denied"):
            hint = "its socket and the folder of it must let the group of the service in: see --group of the agent"
        else:
            hint = "start invites-api agent, and see its log if it has ended"
        text = f"{text}; {hint}"
    return Finding("bad", text)


def _check_rights(path: Path, found: os.stat_result, folder: os.stat_result) -> Iterator[Finding]:
    """Who may write to a socket may connect to it (unix(7)), and who may change its folder can put another there."""
    fine = True
    if found.st_mode & 0o002:
        fine = False
        yield Finding("bad", f"every user of this machine may connect to {path}: chmod o-rwx {path}")
    if folder.st_mode & 0o002 and not folder.st_mode & stat.S_ISVTX:
        fine = False
        yield Finding("bad", f"the folder {path.parent} can be changed by others: chmod o-w {path.parent}")
    user = os.geteuid()
    if user not in {0, found.st_uid}:
        group = _name_group(found.st_gid)
        if found.st_gid not in {os.getegid(), *os.getgroups()}:
            fine = False
            yield Finding(
                "bad",
                f"{path} is for group {group}, which user {user} is not in: start the agent with --group and the group"
                " of the service, and run this as the service's user",
            )
        elif not found.st_mode & 0o020:
            fine = False
            yield Finding("bad", f"group {group} may not connect to {path}: chmod g+rw {path}")
    if fine:
        yield Finding("ok", f"{path} is open to its owner and to group {_name_group(found.st_gid)} alone")


def _name_group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def check_hosts_of_store(store: InviteStore, hosts: Iterable[str]) -> Iterator[Finding]:
    """Ask the store of the invites for each host of the settings: behind a socket there may be others than here."""
    for host in hosts:
        try:
            store.list_invites(host, now=datetime.now(UTC), limit=1)
        except InvalidHost as error:
            yield Finding(
                "bad",
                f"{host}: {error}; it must be among the hosts of the agent's settings, and one that Prosody serves",
            )
        except StorageError as error:
            yield Finding("bad", f"{host}: {error}")
        except Unsupported:
            # There are more than it lists at once, which it has said as a problem of its own.
            continue
