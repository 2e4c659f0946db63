"""The folder in which the worker processes count, and what is read from it all together."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

__all__ = ["FOLDER_VARIABLE", "FolderCollector"]

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus-client reads it when it is imported: set it before."""

_FILE: Final = re.compile(r"(counter|histogram|gauge_[a-z]+)_([0-9]+)\.db", re.ASCII)
ABSORBED: Final = 0
"""No process has this id, so the file of it is where the counts of those that ended are kept."""


class FolderCollector(Collector):
    """Reads what all processes have counted. Only one may read a folder: it also puts its files in order.

    What a process has counted stays after its end. So that a service whose workers are replaced for years does not end
    with a file for each of them, the counts of those that ended are added up in one.
    """

    def __init__(self, folder: str) -> None:
        """Take the folder.

        Raises:
            ValueError: There is none.
        """
        # The parent's check says what is missing.
        self._collector = MultiProcessCollector(None, folder)
        self._folder = Path(folder)
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """Return all metrics, summed over the processes."""
        with self._lock:
            self._absorb()
            return list(self._collector.collect())

    def _absorb(self) -> None:
        ended: dict[str, list[Path]] = {}
        for path in self._folder.iterdir():
            found = _FILE.fullmatch(path.name)
            if found is None or int(found[2]) == ABSORBED or _is_running(int(found[2])):
                continue
            if found[1].startswith("gauge"):
                # What a process that has ended was doing is nothing that is being done.
                path.unlink()
            else:
                ended.setdefault(found[1], []).append(path)
        for kind, paths in ended.items():
            self._add_up(self._folder / f"{kind}_{ABSORBED}.db", paths)

    def _add_up(self, total: Path, paths: list[Path]) -> None:
        present = [str(path) for path in (total, *paths) if path.exists()]
        new = total.with_suffix(".new")
        new.unlink(missing_ok=True)
        content = MmapedDict(str(new))
        for metric in MultiProcessCollector.merge(present, accumulate=False):
            for sample in metric.samples:
                names, values = list(sample.labels), list(sample.labels.values())
                key = mmap_key(metric.name, sample.name, names, values, metric.documentation)
                content.write_value(key, sample.value, 0)
        content.close()
        new.replace(total)
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
