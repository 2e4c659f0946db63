"""What /proc tells of a server's workers: their memory, and the time that they spent on a core."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["read_cpu_seconds", "read_rss_mib"]

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def read_rss_mib(pid: int) -> float:
    """Read a process's resident memory in MiB; 0 where there is no such process or no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    except OSError:
        return 0.0
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def read_cpu_seconds(pid: int) -> float:
    """Read how long a process was on a core since it began, in its own code and in the kernel; 0 as above."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return 0.0
    # The name in the second field may hold spaces and brackets; after its last bracket come the fields from the third.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
