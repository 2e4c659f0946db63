"""``bin/soak``: a small share of it, and what it calls flat."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.bench import memory, soak
from tests.bench.memory import Sample, format_samples, watch_memory
from tests.bench.peers import Settings
from tests.bench.soak import find_soak_verdicts

# Ten samples over a million requests; the first is left out, and of the others the last five are the second half.
FLAT: Final = [Sample(number * 100_000, [7, 8], [50.0, 48.0], [29, 29], [9, 9], 4.0, {}) for number in range(1, 11)]
LINES: Final = ("memory", "descriptors", "threads", "WAL", "workers", "answers")


def find_broken(samples: list[Sample]) -> set[str]:
    return {one.line.split()[0] for one in find_soak_verdicts(samples) if one.holds is False}


def change(first: int, **fields: Any) -> list[Sample]:
    """Change the samples from a number on."""
    return [*FLAT[:first], *(replace(one, **fields) for one in FLAT[first:])]


@pytest.mark.parametrize(
    ("samples", "broken"),
    [
        pytest.param(FLAT, set(), id="flat"),
        pytest.param(
            [replace(one, rss_mib=[50.0, 48.0 + one.requests * 3e-6]) for one in FLAT],
            {"memory"},
            id="one-worker-grows",
        ),
        pytest.param(
            [replace(one, rss_mib=[50.0, 48.0 + one.requests * 1e-6]) for one in FLAT], set(), id="below-the-bar"
        ),
        pytest.param([replace(FLAT[0], rss_mib=[30.0, 30.0]), *FLAT[1:]], set(), id="warm-up"),
        pytest.param(change(9, open_files=[29, 30]), {"descriptors"}, id="a-descriptor"),
        pytest.param(
            [replace(FLAT[0], open_files=[40, 40]), *change(9, open_files=[29, 35])[1:]],
            {"descriptors"},
            id="many-at-first-hide-nothing",
        ),
        pytest.param(change(8, threads=[10, 9]), {"threads"}, id="a-thread"),
        pytest.param(change(2, threads=[10, 9]), set(), id="a-thread-early"),
        pytest.param(change(8, wal_mib=8.1), {"WAL"}, id="wal"),
        pytest.param(change(8, wal_mib=7.9), set(), id="wal-below-the-bar"),
        pytest.param(change(3, wal_mib=20.0), set(), id="wal-as-at-first"),
        pytest.param(change(5, pids=[7, 9]), {"workers"}, id="replaced"),
        pytest.param(change(5, pids=[7], rss_mib=[50.0], open_files=[29], threads=[9]), {"workers"}, id="lost"),
        pytest.param(change(2, unexpected={"create: status 500": 1}), {"answers"}, id="answer"),
    ],
)
def test_what_grows_is_not_flat(samples: list[Sample], broken: set[str]) -> None:
    """Each line holds where nothing grows, and each thing that grows breaks its own line alone."""
    assert find_broken(samples) == broken
    assert tuple(one.line.split()[0] for one in find_soak_verdicts(samples)) == LINES


def test_too_few_requests_have_no_verdict() -> None:
    """Without enough samples nothing is said of what could grow, without enough requests nothing of memory."""
    few = {one.line.split()[0] for one in find_soak_verdicts(FLAT[:4]) if one.holds is None}
    assert few == {"memory", "descriptors", "threads", "WAL"}
    short = [replace(one, requests=one.requests // 100) for one in FLAT]
    assert [one.line.split()[0] for one in find_soak_verdicts(short) if one.holds is None] == ["memory"]


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk (Debian: apt install wrk)")
@pytest.mark.parametrize(
    ("samples", "code", "verdict"),
    [
        pytest.param(FLAT, 0, "flat", id="flat"),
        pytest.param(change(9, open_files=[29, 30]), 1, "NOT flat", id="grows"),
        pytest.param(FLAT[:4], 1, "too few requests to tell", id="too-few"),
    ],
)
def test_command_ends_with_the_verdict(
    samples: list[Sample],
    code: int,
    verdict: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command prints the verdict, exits with 0 where all was flat and with 1 where not, and writes it all down."""
    monkeypatch.setattr(memory, "watch_memory", lambda *_, **__: samples)
    # The handler of a test run is not the command's to set.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert soak.main(["--json", str(tmp_path / "soak.json")]) == code
    assert capsys.readouterr().out.splitlines()[-1] == verdict
    report = json.loads((tmp_path / "soak.json").read_text())
    assert [one["requests"] for one in report["samples"]] == [one.requests for one in samples]
    assert {one["holds"] for one in report["verdicts"]} >= ({True} if code == 0 else set())


@pytest.mark.real_server
@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk (Debian: apt install wrk)")
def test_a_share_of_it_is_answered_as_expected(tmp_path: Path) -> None:
    """Creations, refusals, reads and redemptions are served, every answer is the expected one, and all is looked at."""
    settings = Settings(1, 1, connections=4, workers=2, threads=2)
    samples = watch_memory(1_000, settings, tmp_path, lambda _: None, points=2, chunk_seconds=1)
    last = samples[-1]
    assert last.requests >= 1_000
    assert last.unexpected == {}
    assert {len(each) for each in (last.pids, last.rss_mib, last.open_files, last.threads)} == {2}
    assert min(*last.rss_mib, *last.open_files, *last.threads) > 0
    assert len(set(map(len, format_samples(samples)))) == 1
