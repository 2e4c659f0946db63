"""``bin/bench``: what it plans, counts and writes; no figure of it is a test's business."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import pytest

from invites_core.stores import open_invite_store, open_store
from invites_core.stores.memory import MemoryStore
from tests.bench import __main__ as bench, load, rounds
from tests.bench.chart import draw_chart
from tests.bench.load import Load, LoadError, Result, run_load
from tests.bench.micro import Micro, time_library
from tests.bench.page import INVITES, make_page_plan
from tests.bench.peers import Peer, Service, Settings, creating_only, make_loads, new_sqlite, run_invites_api
from tests.bench.pending import SOURCES, Timing, fill_store, format_timings, make_pending_plan, time_store
from tests.bench.plans import (
    DEFAULT,
    FETCHED_PEERS,
    POSTGRESQL_PEERS,
    PROSODY_PEERS,
    Plan,
    make_fetched_plan,
    make_sweep,
)
from tests.bench.preparing import preparing
from tests.bench.report import format_report, make_report
from tests.bench.rounds import Outcome, Series, measure
from tests.bench.thousand import make_thousand_plan
from tests.bench.verdicts import Verdict
from tests.bench.whole import find_verdicts
from tests.helpers import NOON
from tests.servers import ROOT, Prosody, Server

SETTINGS: Final = Settings(rounds=3, seconds=1, connections=16, workers=2, threads=8)
CREATE: Final = Load("create", "/invites_api?key=id/secret", 201)
SECRET: Final = "A" * 32


class Creating(HTTPServer):
    """Answers every POST and GET with 201, counts them, and keeps the last."""

    answers = 0
    last: tuple[str, str | None, str | None, bytes] | None = None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Creating)
        self.server.answers += 1
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.last = (self.command, self.headers["Host"], self.headers["Authorization"], body)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        # Kept connections would each hold the one thread.
        self.send_header("Connection", "close")
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving() -> Iterator[Creating]:
    with Creating(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def make_result(rate: float, **fields: Any) -> Result:
    return Result(int(rate), 1.0, fields.pop("p50_ms", 1.0), fields.pop("p99_ms", 2.0), fields)


def make_series(peer: str, *rates: float) -> Series:
    results = [make_result(rate) for rate in rates]
    each: list[list[float]] = [[1.0] for _ in rates]
    return Series(peer, f"the {peer}", "create", results, each, each, [1 for _ in rates])


def make_peer(slug: str, servers: tuple[Server, ...], **fields: Any) -> Peer:
    @contextlib.contextmanager
    def run(folder: Path, settings: Settings) -> Iterator[Service]:
        yield Service(servers, make_loads(f"id/{SECRET}"))

    return Peer(slug, slug, lambda: None, run, **fields)


class TestLoad:
    @pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk (Debian: apt install wrk)")
    def test_all_servers_are_asked(self) -> None:
        """The connections go to every server, and what each of them answers is counted together."""
        with serving() as first, serving() as second:
            urls = [f"http://127.0.0.1:{server.server_port}" for server in (first, second)]
            result = run_load(urls, CREATE, seconds=1, connections=2)
        assert first.answers > 0
        assert second.answers > 0
        # What is on its way at the end was answered and is not counted.
        assert max(first.answers, second.answers) < result.answers <= first.answers + second.answers

    @pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk (Debian: apt install wrk)")
    @pytest.mark.parametrize("targets", [pytest.param((), id="one-target"), pytest.param(("/a", "/b"), id="targets")])
    def test_request_is_sent_as_it_is(self, targets: tuple[str, ...]) -> None:
        """Method, headers and body of a load reach the server, whatever stands in them."""
        body = json.dumps({"name": 'a "BODY" \\ of ]] METHOD'})
        asked = Load("create", "/new", 201, targets, "POST", {"Authorization": 'Bearer "x'}, body)
        with serving() as server:
            result = run_load([f"http://127.0.0.1:{server.server_port}"], asked, seconds=1, connections=1)
        assert result.answers > 0
        assert server.last == ("POST", "example.com", 'Bearer "x', body.encode())

    def test_every_server_has_a_connection(self) -> None:
        """Fewer connections than servers are refused, since one would be left out unseen."""
        with pytest.raises(LoadError, match="^1 connections are too few for 2 servers$"):
            run_load(["http://127.0.0.1:1", "http://127.0.0.1:2"], CREATE, seconds=1, connections=1)

    def test_only_the_expected_status_makes_the_rate(self) -> None:
        """Other answers and errors are told by name, and are no part of the rate."""
        found = {
            "seconds": 2.0,
            "p50_ms": 1.5,
            "p99_ms": 9.0,
            "statuses": {"201": 100, "200": 3, "503": 2},
            "errors": {"connect": 0, "read": 4, "write": 0, "timeout": 0},
        }
        run = subprocess.CompletedProcess([], 0, f"noise\n\nRESULT {json.dumps(found)}\n", "")
        result = load._read_result(run, CREATE)
        assert (result.rate, result.p99_ms) == (50.0, 9.0)
        assert result.unexpected == {"status 200": 3, "status 503": 2, "read": 4}


class TestRounds:
    def test_order_turns_and_each_peer_has_its_settings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each peer comes first in turn, and is measured with the settings that are its own."""
        asked: list[tuple[str, int, int]] = []

        def note(urls: list[str], load: Load, *, seconds: int, connections: int) -> Result:
            asked.append((urls[0], seconds, connections))
            return make_result(10)

        monkeypatch.setattr(rounds, "run_load", note)
        servers = [Server(tmp_path, [], port=port) for port in (1, 2, 3)]
        monkeypatch.setattr(Server, "worker_pids", lambda _: [])
        peers = [make_peer(str(server.port), (server,), overrides={"connections": server.port}) for server in servers]
        outcome = measure(peers, SETTINGS, tmp_path, lambda _: None)
        measured = [url[-1] for url, _, _ in asked][::4]
        assert measured == ["1", "2", "3", "2", "3", "1", "3", "1", "2"]
        assert all(url == f"http://127.0.0.1:{connections}" for url, _, connections in asked)
        assert [(series.peer, series.load, len(series.results)) for series in outcome.series] == [
            (peer, name, 3) for peer in "123" for name in ("create", "refuse")
        ]

    def test_service_is_all_its_servers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a peer of several servers takes is that of the workers of all of them."""
        servers = tuple(Server(tmp_path, [], port=port) for port in (1, 2))
        monkeypatch.setattr(Server, "worker_pids", lambda self: [self.port])
        service = Service(servers, (CREATE,))
        assert service.urls == ["http://127.0.0.1:1", "http://127.0.0.1:2"]
        assert service.worker_pids() == [1, 2]

    def test_creating_only_leaves_the_refusals_out(self, tmp_path: Path) -> None:
        """A peer that is measured only when it creates has no other load."""
        with creating_only(make_peer("one", ()).run, tmp_path, SETTINGS) as service:
            assert [load.name for load in service.loads] == ["create"]


class TestPlans:
    def test_sweep_goes_over_connections_and_workers(self) -> None:
        """The sweep has 1 to 64 connections at 2 workers, 1 to 4 workers at 16 connections, and no point twice."""
        points = [(peer.adjust(SETTINGS).connections, peer.adjust(SETTINGS).workers) for peer in make_sweep().peers]
        assert points == [*((number, 2) for number in (1, 2, 4, 8, 16, 32, 64)), (16, 1), (16, 3), (16, 4)]

    @pytest.mark.parametrize(
        "plan",
        [
            pytest.param(DEFAULT, id="default"),
            pytest.param(make_fetched_plan(print), id="fetched"),
            pytest.param(make_sweep(), id="sweep"),
            pytest.param(make_page_plan(), id="page"),
            pytest.param(make_thousand_plan(), id="thousand"),
            pytest.param(make_pending_plan(new_sqlite, "sqlite:///filled.db", 1000), id="pending"),
        ],
    )
    def test_plan_compares_with_its_own_peers(self, plan: Plan) -> None:
        """What the others are held against is measured in the same run, and no two peers have one name."""
        slugs = [peer.slug for peer in plan.peers]
        assert len(set(slugs)) == len(slugs)
        assert set(plan.measures.values()) <= set(slugs)

    def test_fetched_plan_adds_the_peers_of_the_command_line(self) -> None:
        """With all peers the plan is the default one and those that are installed first, by the names of --only."""
        plan = make_fetched_plan(print)
        assert tuple(peer.slug for peer in plan.peers) == (*(peer.slug for peer in DEFAULT.peers), *FETCHED_PEERS)
        assert plan.measures == DEFAULT.measures

    def test_postgresql_plan_has_the_peers_of_the_command_line(self) -> None:
        """On PostgreSQL two nodes and one are held against Prosody; these are the names that --only takes."""
        pytest.importorskip("psycopg")
        from tests.bench.postgresql import make_postgresql_plan

        plan = make_postgresql_plan(new_sqlite)
        assert tuple(peer.slug for peer in plan.peers) == POSTGRESQL_PEERS
        assert plan.measures == {"x Prosody": "prosody-postgresql"}

    @pytest.mark.real_server
    def test_invites_of_the_service_in_front_of_a_prosody_are_in_that_prosody(self, tmp_path: Path) -> None:
        """What is created through gunicorn and agent is a row of the Prosody behind; its calls are timed."""
        if missing := Prosody.find_missing():
            (pytest.fail if "INVITES_TEST_PROSODY" in os.environ else pytest.skip)(missing)
        from tests.bench.prosody import make_prosody_plan

        plan = make_prosody_plan(new_sqlite)
        assert tuple(peer.slug for peer in plan.peers) == PROSODY_PEERS
        with plan.peers[0].run(tmp_path, Settings(1, 1, 1, workers=1, threads=2)) as service:
            request = urllib.request.Request(service.urls[0] + service.loads[0].target)
            with urllib.request.urlopen(request, timeout=30) as answer:
                token = answer.headers["Location"].partition("?")[2]
            with contextlib.closing(open_invite_store(f"prosody://{tmp_path}/p/prosody.sock")) as store:
                assert store.find_invite(token) is not None

    @pytest.mark.real_server
    def test_pages_are_those_of_many_invites(self, tmp_path: Path) -> None:
        """What is asked for are the pages of as many pending invites as it says, each of which is there."""
        [ours, _] = make_page_plan().peers
        with ours.run(tmp_path, Settings(1, 1, 1, workers=1, threads=2)) as service:
            [load] = service.loads
            assert len(set(load.targets)) == INVITES
            for target in load.targets[:: INVITES // 10]:
                with urllib.request.urlopen(service.urls[0] + target, timeout=30) as answer:
                    assert b"You are invited to example.com" in answer.read()

    @pytest.mark.real_server
    def test_nodes_serve_one_database(self, tmp_path: Path) -> None:
        """Every node of a peer takes the key of the load, and what they create is in one database."""
        with run_invites_api(new_sqlite, 2, tmp_path, Settings(1, 1, 1, workers=1, threads=2)) as service:
            for url in service.urls:
                request = urllib.request.Request(url + service.loads[0].target, headers={"Host": "example.com"})
                with urllib.request.urlopen(request, timeout=30) as answer:
                    assert answer.status == 201
        assert len(set(service.urls)) == 2
        with contextlib.closing(open_store(f"sqlite:///{tmp_path}/invites.db", create=False)) as store:
            assert len(store.list_invites("example.com", now=NOON, limit=10).invites) == 2


class TestPending:
    def test_filled_store_holds_pending_invites_of_many_keys(self) -> None:
        """As many invites as were asked for are pending, whatever the size of a batch, and each key has its part."""
        store = MemoryStore()
        fill_store(store, 2050, NOON)
        page = store.list_invites("example.com", now=NOON, state="pending", limit=5000)
        assert len(page.invites) == 2050
        assert len({invite.source for invite in page.invites}) == SOURCES
        assert all(invite.created_at < NOON for invite in page.invites)

    def test_purge_and_lists_are_timed(self) -> None:
        """Both places of a long list are timed, the first only of a short one; the purge that finds all takes all."""
        store = MemoryStore()
        fill_store(store, 1200, NOON)
        timings = {timing.what: timing for timing in time_store(store, 1200, NOON)}
        assert "list of all, first page" in timings
        assert "list of all, middle page" in timings
        assert "list of the pending of a source, first page" in timings
        assert "list of a source, middle page" not in timings
        assert timings["step of a purge, nothing due"].calls >= 3
        assert timings["step of a purge, all due"].worst_ms >= timings["step of a purge, all due"].median_ms > 0
        assert store.list_invites("example.com", now=NOON, limit=10).invites == ()

    def test_nothing_is_purged_before_all_was_timed(self) -> None:
        """The step that finds nothing due is timed on the whole store."""
        store = MemoryStore()
        fill_store(store, 600, NOON)
        for timing in time_store(store, 600, NOON):
            if timing.what == "step of a purge, nothing due":
                assert len(store.list_invites("example.com", now=NOON, limit=1000).invites) == 600

    def test_stores_stand_side_by_side(self) -> None:
        """The table has a row for each thing timed and two columns for each store, the smallest first."""
        timings = [
            Timing("list", 10, 21, 0.5, 1.0),
            Timing("list", 1000, 21, 0.75, 2.0),
            Timing("middle", 1000, 7, 3.0, 4.0),
        ]
        assert format_timings("through the library", timings) == [
            (
                "through the library",
                "calls",
                "median ms, 10 rows",
                "worst ms, 10 rows",
                "median ms, 1,000 rows",
                "worst ms, 1,000 rows",
            ),
            ("list", "21/21", "0.50", "1.00", "0.75", "2.00"),
            ("middle", "-/7", "-", "-", "3.00", "4.00"),
        ]

    @pytest.mark.real_server
    def test_filled_store_is_made_once_for_all_rounds(self, tmp_path: Path) -> None:
        """The peer on the filled store has all its invites; the one on an empty store has none."""
        with preparing("sqlite", sweep=False, pending=300, folder=tmp_path, say=lambda _: None) as run:
            created = {}
            for peer in run.plan.peers:
                (folder := tmp_path / f"peer-{peer.slug}").mkdir()
                with peer.run(folder, Settings(1, 1, 1, workers=1, threads=2)):
                    url = (folder / "invites-api.toml").read_text().partition('"')[2].partition('"')[0]
                with contextlib.closing(open_store(url, create=False)) as store:
                    created[peer.slug] = len(store.list_invites("example.com", now=NOON, limit=1000).invites)
            assert created == {"empty": 0, "filled": 300}
            assert run.time_library is not None
            [timings] = run.time_library().values()
            assert {timing.rows for timing in timings} == {3, 300}


class TestReport:
    def test_columns_are_those_of_the_plan(self) -> None:
        """A peer is held against what the plan names, by the medians, in the table and in the JSON."""
        plan = Plan((), {"x Prosody": "prosody-postgresql"}, ("the legend",), ("With {workers} workers.",))
        outcome = Outcome([make_series("two-nodes", 30, 10, 20), make_series("prosody-postgresql", 8)])
        text = format_report({"cores": 2}, SETTINGS, plan, outcome, {})
        lines = text.splitlines()
        assert "With 2 workers." in lines
        assert "the legend" in lines
        row = next(line.split() for line in lines if line.startswith("the two-nodes"))
        assert row[3:5] == ["20", "10..30"]
        assert row[-1] == "2.50"
        series = make_report({}, SETTINGS, plan, outcome, {})["series"]
        assert isinstance(series, list)
        assert series[0]["rate_to_prosody_postgresql"] == 2.5
        assert "rate_to_bare" not in series[0]

    def test_default_report_has_the_fields_it_had(self) -> None:
        """Without options a peer is held against Prosody with SQLite and the bare app."""
        outcome = Outcome([make_series("invites-api", 30), make_series("prosody-sqlite", 10), make_series("bare", 60)])
        series = make_report({}, SETTINGS, DEFAULT, outcome, {})["series"]
        assert isinstance(series, list)
        assert (series[0]["rate_to_prosody_sqlite"], series[0]["rate_to_bare"]) == (3.0, 0.5)


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            pytest.param(["--sweep", "--database", "postgresql"], "--sweep and --page are for SQLite only", id="sweep"),
            pytest.param(["--page", "--database", "postgresql"], "--sweep and --page are for SQLite only", id="page"),
            pytest.param(["--all", "--only", "bare"], "--all takes neither --only", id="all-only"),
            pytest.param(["--peers", "all", "--page"], "--peers all is for SQLite without --sweep", id="peers-page"),
            pytest.param(
                ["--peers", "all", "--database", "prosody"], "--peers all is for SQLite without", id="peers-database"
            ),
            pytest.param(["--only", "synapse"], "--only synapse needs --peers all", id="only-fetched"),
            pytest.param(["--svg", "x.svg"], "--svg is for --all", id="svg"),
            pytest.param(["--sweep", "--pending", "10"], "not allowed with argument", id="two-plans"),
            pytest.param(
                ["--pending", "9", "--database", "prosody"], "for SQLite and PostgreSQL only", id="no-pending"
            ),
            pytest.param(["--pending", "0"], "must be at least 1", id="none-pending"),
            pytest.param(
                ["--pending", "9", "--only", "bare"], "--only is not for --sweep, --page and --pending", id="only"
            ),
        ],
    )
    def test_what_does_not_go_together_is_refused(
        self, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Options that contradict each other are refused before anything starts."""
        with pytest.raises(SystemExit) as ended:
            bench.main(arguments)
        assert ended.value.code == 2
        assert complaint in capsys.readouterr().err

    def test_missing_package_is_named(self) -> None:
        """Without a package that it needs the command says which one, and what to do."""
        program = (
            f"import sys; sys.path.append({str(ROOT)!r}); sys.modules['argon2'] = None;"
            " from tests.bench.__main__ import main; sys.exit(main([]))"
        )
        run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (run.returncode, run.stdout) == (2, "")
        assert run.stderr.startswith("bench: argon2 missing: run bin/test once")


class TestProsody:
    @pytest.mark.parametrize(
        ("url", "table"),
        [
            pytest.param(
                "postgresql://postgres@127.0.0.1:5555/invites",
                '{ driver = "PostgreSQL", database = "invites", username = "postgres", host = "127.0.0.1", '
                "port = 5555 }",
                id="trusted",
            ),
            pytest.param(
                "postgresql://me:pass@db/invites",
                '{ driver = "PostgreSQL", database = "invites", username = "me", password = "pass", host = "db", '
                "port = 5432 }",
                id="password",
            ),
        ],
    )
    def test_url_becomes_its_option(self, url: str, table: str) -> None:
        """A PostgreSQL URL is written as the table of Prosody's option sql."""
        assert Prosody.sql_on_postgresql(url) == table


class TestWhole:
    def test_verdicts_follow_from_what_was_measured(self) -> None:
        """Each line is a ratio of series, or a figure, held against its bar; what was not measured has no verdict."""

        def series(peer: str, load: str, rate: int, p99: float = 10.0) -> Series:
            return Series(peer, peer, load, [Result(rate, 1.0, 1.0, p99, {})])

        outcome = Outcome(
            [
                series("invites-api", "create", 400, 20.0),
                series("invites-api", "refuse", 300),
                series("prosody-sqlite", "create", 100),
                series("bare", "create", 1000),
            ]
        )
        micro = [Micro("verify, warm", "sqlite", 12.0, 11.0, 13.0, 10)]
        found = {one.line: (one.measured, one.holds) for one in find_verdicts({"sqlite": outcome}, micro, [40.0, 61.0])}
        assert found["creations, SQLite: times Prosody with SQLite"] == (4.0, True)
        assert found["their 99th percentile: part of Prosody's"] == (2.0, False)
        assert found["creations: part of a bare app that stores nothing"] == (0.4, None)
        assert found["refusals: times creations"] == (0.75, False)
        assert found["keys.verify, warm, SQLite: microseconds"] == (12.0, True)
        assert found["memory of a warm worker: MiB"] == (61.0, False)
        assert found["two nodes on PostgreSQL: times Prosody"] == (None, None)
        assert Verdict("x", 1.0, 1.0, None).holds
        assert Verdict("x", 1.0, 1.0, None, is_most=True).holds

    def test_the_chart_has_a_bar_for_each_series(self) -> None:
        """The picture is well-formed, with a bar as long as its rate, and the names as text."""
        one = Series("a", "A <&>", "create", [Result(rate, 1.0, 1.0, 1.0, {}) for rate in (90, 100, 110)])
        two = Series("b", "B", "create", [Result(55, 1.0, 1.0, 1.0, {})])
        picture = ElementTree.fromstring(draw_chart("Rates", [one, two]))
        bars = [float(bar.get("width", 0)) for bar in picture.iter("{http://www.w3.org/2000/svg}rect")][1:]
        assert bars[0] == pytest.approx(bars[1] * 100 / 55, rel=0.01)
        assert "A <&>, create" in [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]

    def test_the_library_is_timed_on_a_store(self, tmp_path: Path) -> None:
        """Every call of the library that is timed takes some time, on each store."""
        timings = time_library(None, tmp_path, lambda _: None)
        assert {(one.what, one.store) for one in timings} >= {("parse a key", "-"), ("redeem", "sqlite")}
        assert all(one.p90_us >= one.median_us >= one.best_us > 0 for one in timings)
