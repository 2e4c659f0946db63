"""The keys of Prosody's mod_invites_api: in a running Prosody, or in a file of its default storage.

They are rows of the store ``invite_api_keys``: id -> id, token (the secret), name, created_at, allowed_methods. Over
the socket the rows come as the text that Prosody would write into that file, so there is one reader for both.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from invites_core.errors import CorruptRecord, InvalidHost, OutcomeUnknown, StorageError, Unsupported
from invites_core.foreign_keys import ForeignKey, UnreadableKey
from invites_core.stores.lua_tables import LuaTable, LuaTableError, LuaValue, read_lua_table
from invites_core.stores.prosody_lua import parse_result
from invites_core.stores.prosody_socket import ProsodySocket
from invites_core.stores.records import from_seconds

__all__ = ["MAX_FILE", "ProsodyKeyFile", "ProsodyKeys"]

MAX_FILE: Final = 64 * 1024 * 1024
"""How large a file may be, in bytes: some 250,000 keys."""

TIMEOUT_SECONDS: Final = 60.0
LAST_SECOND: Final = 253402300799

# Its lines are joined by spaces, so there is no comment in it. It asks the storage itself and no module, since
# mod_invites_api may be off already.
_CALL: Final = """
(function(text)
  local json, base64 = require "util.json", require "util.encodings".base64;
  local call, wrote = json.decode(base64.decode(text)), false;
  local function open(kind)
    local store = require "core.storagemanager".open(call.host, "invite_api_keys", kind);
    return store or error({ failed = "storage" }, 0);
  end
  local function read(value, err)
    if value == nil and err ~= nil then error({ failed = "storage" }, 0); end
    return value;
  end
  local verbs = {};
  function verbs.list()
    return { rows = "return "..require "util.serialization".serialize(read(open():get(nil)) or {}) };
  end
  function verbs.remove()
    local store = open("map");
    local row = read(store:get(nil, call.id));
    local token = type(row) == "table" and row.token;
    if type(token) ~= "string" or require "util.hashes".sha256(token, true) ~= call.digest then
      return { removed = false };
    end
    wrote = true;
    if not store:set(nil, call.id, nil) then error({ failed = "storage" }, 0); end
    return { removed = true };
  end
  local ok, answer = pcall(function()
    if not prosody.hosts[call.host] then error({ failed = "host" }, 0); end
    return json.encode(verbs[call.verb]());
  end);
  if ok then return base64.encode(answer); end
  return base64.encode(json.encode({ failed = type(answer) == "table" and answer.failed or "lua", wrote = wrote }));
end)
"""
_CODE: Final = " ".join(line.strip() for line in _CALL.split("\n") if line.strip())


class ProsodyKeys:
    """The keys in a running Prosody, reached through its admin socket, whichever storage it has."""

    def __init__(self, path: Path, *, timeout: float = TIMEOUT_SECONDS) -> None:
        """Take where the socket is.

        Args:
            path: The socket, ``prosody.sock`` in Prosody's data folder.
            timeout: How long one call may take, in seconds.
        """
        self._socket = ProsodySocket(path, timeout=timeout)

    def close(self) -> None:
        """Close this process's connection."""
        self._socket.close()

    def list_keys(self, host: str) -> Sequence[ForeignKey | UnreadableKey]:  # noqa: D102 (see protocol)
        rows = self._run("list", host, changes=False).get("rows")
        try:
            return _read_keys(read_lua_table(str(rows).encode()))
        except LuaTableError as error:
            raise CorruptRecord("what Prosody says of its keys cannot be read") from error

    def remove_key(self, host: str, key_id: str, secret: str) -> bool:  # noqa: D102
        # The secret is not sent: a line could end up in a log of Prosody's.
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
        return self._run("remove", host, changes=True, id=key_id, digest=digest).get("removed") is True

    def _run(self, verb: str, host: str, *, changes: bool, **arguments: str) -> dict[str, Any]:
        call = json.dumps({"verb": verb, "host": host, **arguments}, ensure_ascii=False)
        line = f'> {_CODE}("{base64.b64encode(call.encode()).decode()}")'
        result = self._socket.run(line, changes=changes)
        answer = None if result.is_error else parse_result(result.text)
        if answer is None:
            answer = {"failed": "nothing", "wrote": changes}
        if answer.get("failed") == "host":
            raise InvalidHost(f"please supply a valid host: Prosody does not serve {host}")
        if "failed" in answer:
            message = {
                "storage": "Prosody's storage failed; its log says why",
                "lua": "Prosody could not do it; its version may not be known to this program",
            }.get(str(answer["failed"]), "Prosody did not answer as it should")
            raise OutcomeUnknown(message) if answer.get("wrote") else StorageError(message)
        return answer


class ProsodyKeyFile:
    """The keys in ``invite_api_keys.dat``, a file of Prosody's default storage, for a Prosody that does not run."""

    def __init__(self, path: Path) -> None:
        """Take where the file is."""
        self._path = path

    def list_keys(self, host: str) -> Sequence[ForeignKey | UnreadableKey]:
        """Return the keys in the file, which holds those of one host and does not say which.

        Raises:
            InvalidHost: The file lies in the folder of another host.
            CorruptRecord: It is not what Prosody writes; the message names the line.
            StorageError: It cannot be opened, or is too large.
        """
        other = _find_host(self._path.absolute().parent.name)
        if other not in (None, host):
            raise InvalidHost(f"{self._path} lies in Prosody's folder of {other}, not of {host}")
        data = self._read()
        try:
            return _read_keys(read_lua_table(data))
        except LuaTableError as error:
            raise CorruptRecord(f"{self._path}, line {error.line}: {error.what}") from error

    def remove_key(self, host: str, key_id: str, secret: str) -> bool:
        """Refuse: a running Prosody would write its own file over it.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported("keys are not taken out of a file, only out of a running Prosody")

    def _read(self) -> bytes:
        try:
            # What is no file, such as a pipe, must not hold the command up.
            with open(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
                if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                    raise StorageError(f"{self._path} is not a file")
                data = opened.read(MAX_FILE + 1)
        except OSError as error:
            raise StorageError(f"cannot read {self._path}: {(error.strerror or 'error').lower()}") from error
        if len(data) > MAX_FILE:
            raise StorageError(f"{self._path} is larger than {MAX_FILE // 1024 // 1024} MiB")
        return data


def _find_host(folder: str) -> str | None:
    """Return the host whose folder this is, where its name says so: Prosody writes a dot as ``%2e``."""
    if not re.fullmatch(r"(?:[A-Za-z0-9]|%[0-9a-f]{2})+", folder, re.ASCII) or "%2e" not in folder:
        return None
    written = re.sub(rb"%(..)", lambda match: bytes.fromhex(match[1].decode()), folder.encode())
    return written.decode("utf-8", "replace")


def _read_keys(rows: LuaTable) -> list[ForeignKey | UnreadableKey]:
    return [_read_key(key_id, row) for key_id, row in rows.items()]


def _read_key(key_id: str | int, row: LuaValue) -> ForeignKey | UnreadableKey:
    if not isinstance(key_id, str) or not isinstance(row, dict):
        return UnreadableKey(id=str(key_id), reason="is not a key")
    if row.get("id") != key_id:
        # Not shown whole: in another store, given by mistake, it would be the token of an invite.
        return UnreadableKey(id=f"{key_id[:4]}…", reason="its row names another id")
    secret, name, methods = row.get("token"), row.get("name"), row.get("allowed_methods")
    if not isinstance(secret, str):
        return UnreadableKey(id=key_id, reason="has no secret")
    if methods is not None and not (isinstance(methods, dict) and methods.get("GET") is True):
        return UnreadableKey(id=key_id, reason="may make no invites in Prosody")
    try:
        created_at = _read_time(row.get("created_at"))
    except ValueError:
        return UnreadableKey(id=key_id, reason="was made at no time that there is")
    return ForeignKey(id=key_id, secret=secret, name=name if isinstance(name, str) else None, created_at=created_at)


def _read_time(value: LuaValue | None) -> datetime | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    if not 0 <= value <= LAST_SECOND:
        raise ValueError
    return from_seconds(int(value))
