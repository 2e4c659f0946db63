"""What /proc tells of a server's workers: memory, threads, connections, and the time that they spent on a core."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["count_connections", "count_threads", "read_cpu_seconds", "read_rss_mib"]

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def read_rss_mib(pid: int) -> float:
    """Read a process's resident memory in MiB; 0 where there is no such process or no /proc."""
    return _read_status(pid, "VmRSS") / 1024


def count_threads(pid: int) -> int:
    """Return how many threads a process has; 0 as above."""
    return _read_status(pid, "Threads")


def count_connections(port: int) -> int:
    """Return how many connections a server on 127.0.0.1 has not closed yet, on this port; 0 as above."""
    try:
        lines = Path("/proc/net/tcp").read_text("utf-8", "replace").splitlines()[1:]
    except OSError:
        return 0
    # The second field is address and port of this side, the fourth the state; what listens (0A) is no connection, and
    # nobody has one any more in TIME_WAIT (06).
    fields = (line.split()[1:4] for line in lines)
    return sum(here.endswith(f":{port:04X}") and state not in ("0A", "06") for here, _, state in fields)


def _read_status(pid: int, name: str) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    except OSError:
        return 0
    found = (line.split()[1] for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(next(found, 0))


def read_cpu_seconds(pid: int) -> float:
    """Read how long a process was on a core since it began, in its own code and in the kernel; 0 as above."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return 0.0
    # The name in the second field may hold spaces and brackets; after its last bracket come the fields from the third.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
