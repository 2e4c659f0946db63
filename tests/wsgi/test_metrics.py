"""What is counted, in one process and under a real gunicorn with several: it adds up, and no client chooses a label."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import Client

import invites_core
import invites_wsgi
from invites_core import ApiKeys, SecretHasher, StorageBusy
from invites_core.stores.memory import MemoryStore
from invites_core.stores.pool_stats import PoolStats
from invites_core.stores.sqlite import SqliteStore
from invites_wsgi import App, Settings, create_app
from invites_wsgi.config import SettingsError, load_settings
from invites_wsgi.metrics import REASONS, Metrics, make_metrics_app
from tests.helpers import FakeClock, wait_until
from tests.servers import Server, free_port
from tests.wsgi.support import Service, ask_server, make_serve, send_raw

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    """Return the values in an exposition."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def get(samples: Samples, name: str, **labels: str) -> float:
    """Return the sum of a metric's values over the labels that are not given."""
    return sum(
        value for (found, having), value in samples.items() if found == name and labels.items() <= dict(having).items()
    )


def list_labels(samples: Samples, label: str) -> set[str]:
    """Return all values of a label."""
    return {value for _, labels in samples for name, value in labels if name == label}


@pytest.fixture
def metrics() -> Metrics:
    """Metrics of this process alone."""
    return Metrics()


@pytest.fixture
def counted(metrics: Metrics, hasher: SecretHasher, clock: FakeClock) -> Service:
    """A service that counts."""
    store = MemoryStore()
    settings = Settings(database="memory:")
    app = App(settings, key_store=store, invite_store=store, hasher=hasher, clock=clock, metrics=metrics)
    keys = ApiKeys(store, hasher=hasher, clock=clock)
    return Service(app, store, clock, keys, keys.create("example.com"))


def read(metrics: Metrics) -> Samples:
    """Look at what is watched, and read the metrics as they are shown."""
    metrics.sample()
    return parse(Client(make_metrics_app(metrics)).get("/metrics").get_data(as_text=True))


def test_requests_refusals_events_and_checks_are_counted(counted: Service, metrics: Metrics) -> None:
    """Each request is counted by route, method and status, each refusal by its reason, each event by name."""
    for _ in range(3):
        counted.ask(f"/invites_api?key={counted.key}")
    counted.ask(f"/invites_api?key={counted.issued.key.id}/AAAA")
    counted.ask(f"/invites_api/invites?key={counted.key}")
    header = {"Authorization": f"Bearer {counted.key}", "Content-Type": "application/json"}
    counted.ask("/invites_api", method="POST", headers=header, body=b'{"count": 5}')
    counted.ask("/invite?unknown")
    samples = read(metrics)
    assert get(samples, "invites_api_requests_total", route="/invites_api", method="GET", status="201") == 3
    assert get(samples, "invites_api_requests_total", route="/invites_api", method="GET", status="403") == 1
    assert get(samples, "invites_api_requests_total", route="/invite", status="404") == 1
    assert get(samples, "invites_api_requests_total") == 7
    assert get(samples, "invites_api_request_seconds_count") == 7
    assert {
        reason: get(samples, "invites_api_refusals_total", reason=reason) for reason in list_labels(samples, "reason")
    } == {
        "wrong secret": 1,
        "ScopeMissing": 1,
    }
    assert get(samples, "invites_api_events_total", event="invite.created") == 4
    assert get(samples, "invites_api_events_total", event="key.refused") == 2
    assert get(samples, "invites_api_invites_total", change="created") == 8
    assert get(samples, "invites_api_key_cache_hits_total") == 4
    assert get(samples, "invites_api_key_cache_misses_total") == 1
    assert get(samples, "invites_api_argon2_checks_total") == 1
    assert get(samples, "invites_api_argon2_seconds_total") > 0
    assert get(samples, "invites_api_build_info", version=invites_core.__version__) == 1
    assert get(read(metrics), "invites_api_argon2_checks_total") == 1


def test_errors_of_the_store_are_counted_by_class(
    counted: Service, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is busy is an error of that class."""

    def be_busy(key_id: str) -> None:
        raise StorageBusy

    monkeypatch.setattr(counted.store, "find_key", be_busy)
    counted.ask(f"/invites_api?key={counted.key}")
    samples = read(metrics)
    assert get(samples, "invites_api_storage_errors_total", error="StorageBusy") == 1
    assert get(samples, "invites_api_requests_total", status="503") == 1


def test_a_pool_is_looked_at(metrics: Metrics, hasher: SecretHasher) -> None:
    """What a store with connections says of them is shown, and its retries are counted."""

    class Pooled:
        retries = 2

        def find_pool_stats(self) -> PoolStats:
            return PoolStats(size=4, idle=1, waiting=3, retries=self.retries)

    store = Pooled()
    metrics.watch(hasher, [store])
    read(metrics)
    store.retries = 5
    samples = read(metrics)
    assert get(samples, "invites_api_pool_connections") == 4
    assert get(samples, "invites_api_pool_idle") == 1
    assert get(samples, "invites_api_pool_waiting") == 3
    assert get(samples, "invites_api_storage_retries_total") == 5


def test_no_client_chooses_a_label(counted: Service, metrics: Metrics) -> None:
    """Whatever paths, methods, keys and bodies are sent, the labels are of a set that is known before."""
    header = {"Authorization": f"Bearer {counted.key}"}
    for number in range(50):
        counted.ask(f"/path{number}")
        counted.ask(f"/invites_api/invites/{'A' * 16}{number}", headers=header)
        counted.ask("/invites_api", method="M" + "ABCDEFGHIJ"[number % 10] * (number // 10 + 1))
        counted.ask(f"/invites_api?key={number}/{number}")
        counted.ask(f"/invite?{number}")
    samples = read(metrics)
    routes = {*counted.app._resources, "-"}  # type: ignore[attr-defined]  # it is an App
    assert list_labels(samples, "route") <= routes
    assert list_labels(samples, "method") <= {"GET", "other"}
    assert list_labels(samples, "reason") <= REASONS
    assert len(samples) < 250


def test_every_reason_is_known() -> None:
    """Each reason for which a key is refused is one that is counted under its name."""
    sources = [file for package in (invites_core, invites_wsgi) for file in Path(package.__path__[0]).rglob("*.py")]
    reasons = {reason for file in sources for reason in re.findall(r'InvalidKey\("([^"]+)"', file.read_text("utf-8"))}
    assert reasons <= REASONS


def test_a_port_of_its_own(tmp_path: Path) -> None:
    """Metrics are never where the API is, also not at the same port of another address."""
    file = tmp_path / "settings.toml"
    for listen, other in (("127.0.0.1:5280", "0.0.0.0:5280"), ("unix:a.sock", "unix:a.sock")):
        file.write_text(f'[http]\nlisten = "{listen}"\nmetrics_listen = "{other}"\n')
        with pytest.raises(SettingsError, match=re.escape("http.metrics_listen: must have a port of its own")):
            load_settings(file=str(file), environ={})


def test_without_the_library_for_it_one_line_says_so(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that is to count and cannot says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "invites_wsgi.metrics")
    settings = Settings(database=f"sqlite:///{database}", metrics_listen="127.0.0.1:9180")
    with pytest.raises(SettingsError, match=re.escape("needs prometheus-client: pip install 'invites-api[metrics]'")):
        create_app(settings)


# Under a real gunicorn


def scrape(place: int | str) -> Samples:
    """Read the metrics of a server, at a port or a socket."""
    if isinstance(place, int):
        return parse(ask_server(place, "/metrics").body.decode())
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return parse(answer.partition(b"\r\n\r\n")[2].decode())


def folders(server_folder: Path) -> list[Path]:
    """Return the private folders of metrics that there are."""
    return list((server_folder / "home").glob("invites-api-metrics-*"))


def list_workers(folder: Path, port: int) -> set[int]:
    """Return the processes that have begun to count and run, which are the workers."""
    scrape(port)
    return {int(path.stem.rpartition("_")[2]) for path in folder.glob("counter_*.db")} - {0}


@pytest.fixture
def key(database: Path) -> str:
    """A key in the database."""
    store = SqliteStore(database)
    with contextlib.closing(store):
        return ApiKeys(store).create("example.com").combined


def make_counted(tmp_path: Path, database: Path, place: str) -> Server:
    settings = f'[http]\nmetrics_listen = "{place}"\n'
    return make_serve(tmp_path / "serve", database, settings, workers=2)


@pytest.mark.real_server
def test_workers_count_together_and_outlive_a_kill(tmp_path: Path, database: Path, key: str) -> None:
    """Two workers add up; what one has counted stays after it was killed, and after those that came for it too."""
    port = free_port()
    sent = 0
    with make_counted(tmp_path, database, f"127.0.0.1:{port}") as server:
        [folder] = folders(tmp_path / "serve")
        assert folder.stat().st_mode & 0o777 == 0o700
        for _ in range(3):
            wait_until(lambda: len(list_workers(folder, port)) == 2)
            workers = list_workers(folder, port)
            for _ in range(20):
                assert ask_server(server.port, f"/invites_api?key={key}").status == 201
                sent += 1
            samples = scrape(port)
            assert get(samples, "invites_api_requests_total", route="/invites_api", status="201") == sent
            assert get(samples, "invites_api_request_seconds_count", route="/invites_api") == sent
            assert get(samples, "invites_api_request_seconds_bucket", route="/invites_api", le="+Inf") == sent
            assert get(samples, "invites_api_invites_total", change="created") == sent
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            wait_until(partial(_are_gone, workers, folder, port))
            wait_until(lambda: server.is_running() and _answers(server))
        samples = scrape(port)
        assert get(samples, "invites_api_requests_total", route="/invites_api", status="201") == sent
        assert get(samples, "invites_api_build_info") == 1
        assert {path.name for path in folder.iterdir()} >= {"counter_0.db", "histogram_0.db"}
        assert len(list(folder.iterdir())) <= 2 + 4 * 2
        # It is not at the API's port, and the API not at this one.
        assert ask_server(server.port, "/metrics").status == 404
        assert b"invites_api_requests_total" in ask_server(port, "/invites_api").body
        # What is sent raw, by a client that keeps to nothing, adds no label.
        for number in range(20):
            send_raw(server.port, f"M{number} /{number}?{key} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        samples = scrape(port)
        assert list_labels(samples, "method") <= {"GET", "other"}
        text = ask_server(port, "/metrics").body.decode()
        assert key.partition("/")[2] not in text
        assert key.partition("/")[0] not in text
    assert folders(tmp_path / "serve") == []


def _are_gone(workers: set[int], folder: Path, port: int) -> bool:
    return not list_workers(folder, port) & workers


def _answers(server: Server) -> bool:
    with contextlib.suppress(OSError):
        return ask_server(server.port, "/healthz").status == 200
    return False


@pytest.mark.real_server
def test_metrics_on_a_socket(tmp_path: Path, database: Path) -> None:
    """They can be at a Unix socket, which others of the group may use and nobody else, and which goes at the end."""
    place = tmp_path / "m.sock"
    with make_counted(tmp_path, database, f"unix:{place}"):
        assert place.stat().st_mode & 0o777 == 0o770
        wait_until(lambda: get(scrape(str(place)), "invites_api_build_info") == 1)
    assert not place.exists()
    assert folders(tmp_path / "serve") == []


@pytest.mark.real_server
def test_nothing_is_left_of_a_service_that_was_killed(tmp_path: Path, database: Path) -> None:
    """The process with the metrics ends when the main process is gone, and takes the folder with it."""
    port = free_port()
    with make_counted(tmp_path, database, f"127.0.0.1:{port}") as server:
        assert len(folders(tmp_path / "serve")) == 1
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: folders(tmp_path / "serve") == [])
        server.kill()


@pytest.mark.real_server
def test_a_taken_port_is_told_at_the_start(tmp_path: Path, database: Path) -> None:
    """A place for the metrics that cannot be had stops the start with one line, and leaves no folder."""
    from tests.cli.support import run_command

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = tmp_path / "settings.toml"
        config.write_text(f'database = "sqlite:///{database}"\n[http]\nmetrics_listen = "127.0.0.1:{port}"\n')
        run: Any = run_command(
            "--config", str(config), "serve", "--listen", f"127.0.0.1:{free_port()}", env={"TMPDIR": str(tmp_path)}
        )
    assert run.returncode == 1
    assert f"Error: cannot listen on 127.0.0.1:{port}: address already in use" in run.stderr.decode()
    assert list(tmp_path.glob("invites-api-metrics-*")) == []
