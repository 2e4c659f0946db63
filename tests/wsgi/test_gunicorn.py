"""The service under a real gunicorn: the session of a first user, its workers, its end, and its log."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import apsw
import pytest

from invites_core import ApiKeys
from invites_core.stores.sqlite import SqliteStore
from tests.helpers import PATIENCE, wait_until
from tests.servers import Gunicorn, Server
from tests.wsgi.support import (
    CLEAN_ENVIRONMENT,
    COMMAND,
    Answer,
    ask_server,
    count_rows,
    make_serve,
    read_json_log,
    send_raw,
)

pytestmark = pytest.mark.real_server

JSON_LOG = '[log]\nformat = "json"\nlevel = "debug"\n'


def run_command(database: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in CLEAN_ENVIRONMENT}
    return subprocess.run(
        [*COMMAND, "--database", f"sqlite:///{database}", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def make_key(database: Path) -> str:
    """Make a key of example.com, and the database if it is not there."""
    store = SqliteStore(database)
    try:
        return ApiKeys(store).create("example.com", name="My test key").combined
    finally:
        store.close()


def wait_for_workers(server: Server, count: int) -> list[int]:
    """Return the worker processes once all of them are there."""
    wait_until(lambda: len(server.worker_pids()) == count)
    return server.worker_pids()


def ask_every_worker(server: Server, target: str) -> list[Answer]:
    """Send the same request, on new connections, until every worker has answered it; return all the answers."""
    missing = set(server.worker_pids())
    answers: list[Answer] = []

    def ask_again() -> bool:
        answers.append(ask_server(server.port, target))
        missing.discard(read_requests(server)[-1]["pid"])
        return not missing

    wait_until(ask_again)
    return answers


def read_requests(server: Server) -> list[dict[str, Any]]:
    """Return the entries on requests in a log in JSON."""
    return [entry for entry in read_json_log(server) if "ms" in entry]


def is_answering(server: Server) -> bool:
    """Tell whether the server is ready to work."""
    try:
        return ask_server(server.port, "/healthz").status == 200
    except (OSError, http.client.HTTPException):
        return False


def exit_code_of(pid: int) -> int:
    """Wait until a child has ended, and return its exit code without collecting it."""
    found: list[int] = []

    def has_ended() -> bool:
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is not None:
            found.append(status.si_status if status.si_code == os.CLD_EXITED else -status.si_status)
        return bool(found)

    wait_until(has_ended)
    return found[0]


def test_the_session_of_a_first_user(tmp_path: Path) -> None:
    """Create, ask with the query, in a browser, with the header; list; delete: refused at once in every worker."""
    database = tmp_path / "invites.db"

    created = run_command(database, "create", "example.com", "My test key")
    assert created.returncode == 0, created
    assert re.fullmatch(r"[A-Za-z0-9_-]{8}/[A-Za-z0-9_-]{32}\n", created.stdout)
    key = created.stdout.strip()
    key_id = key.partition("/")[0]

    with make_serve(tmp_path / "serve", database, JSON_LOG, workers=3) as server:
        wait_for_workers(server, 3)
        for number, target, headers, status in (
            (1, f"/invites_api?key={key}", {}, 201),
            (2, f"/invites_api?key={key}&redirect=true", {"Accept": "text/html"}, 303),
            (3, "/invites_api", {"Authorization": f"Bearer {key}"}, 201),
        ):
            answer = ask_server(server.port, target, headers=headers)
            assert answer.status == status
            assert re.fullmatch(r"https://example\.com/invite\?[A-Za-z0-9_-]{24}", answer["Location"])
            assert (answer.body, count_rows(database)) == (b"", number)
            assert ask_server(server.port, f"/invite?{answer.token}").status == 200

        listed = run_command(database, "list", "example.com")
        assert (listed.returncode, listed.stdout, listed.stderr) == (0, f"{key_id}\tMy test key\n", "")

        # Every worker has accepted this key by now, and has its secret in its cache.
        accepted = ask_every_worker(server, f"/invites_api?key={key}")
        assert {answer.status for answer in accepted} == {201}

        deleted = run_command(database, "delete", "example.com", key_id)
        assert (deleted.returncode, deleted.stdout, deleted.stderr) == (0, "", "")

        for answer in ask_every_worker(server, f"/invites_api?key={key}"):
            assert (answer.status, answer["WWW-Authenticate"]) == (403, 'Bearer realm="invites"')
        assert count_rows(database) == 3 + len(accepted)

        again = run_command(database, "delete", "example.com", key_id)
        assert (again.returncode, again.stdout, again.stderr) == (1, "", "Error: key not found\n")
        listed = run_command(database, "list", "example.com")
        assert (listed.returncode, listed.stdout) == (0, "")


def test_a_key_that_was_made_meanwhile_works_at_once(tmp_path: Path, database: Path) -> None:
    """The service needs no restart to know a new key."""
    with make_serve(tmp_path / "serve", database) as server:
        key = run_command(database, "create", "example.com").stdout.strip()
        assert ask_server(server.port, f"/invites_api?key={key}").status == 201


def test_serve_leaves_nothing_in_the_home(tmp_path: Path, database: Path) -> None:
    """No control socket is opened, where anybody could stop or reload the service, and no other file is made."""
    with make_serve(tmp_path / "serve", database, JSON_LOG) as server:
        # The arbiter says what becomes of its control socket some time after the first answers.
        wait_until(lambda: "ontrol socket " in server.stderr_file.read_text())
        assert "Control socket disabled" in server.stderr_file.read_text()
        home = server.folder / "home"
        assert list(home.iterdir()) == []
        assert {path.name for path in server.folder.iterdir()} == {"home", "settings.toml", "serve.out", "serve.err"}
        sockets = Path("/proc/net/unix").read_text()
        assert str(server.folder) not in sockets
        assert "gunicorn" not in sockets
    assert list(home.iterdir()) == []
    assert server.stdout_file.read_text() == ""


def test_sigterm_lets_a_request_finish(tmp_path: Path, database: Path) -> None:
    """Told to stop, the service answers what it has begun, takes nothing new, and exits 0."""
    key = make_key(database)
    blocker = apsw.Connection(str(database))
    answers: list[Answer] = []
    with make_serve(tmp_path / "serve", database, path="/") as server:
        [worker] = wait_for_workers(server, 1)

        def has_database_open() -> bool:
            links = []
            for link in Path(f"/proc/{worker}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    links.append(os.readlink(link))
            return str(database) in links

        assert not has_database_open()
        blocker.execute("BEGIN IMMEDIATE")
        client = threading.Thread(
            target=lambda: answers.append(ask_server(server.port, f"/invites_api?key={key}")), daemon=True
        )
        client.start()
        wait_until(has_database_open)
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: "Handling signal: term" in server.stderr_file.read_text())
        assert answers == []
        blocker.execute("ROLLBACK")
        blocker.close()
        client.join(PATIENCE)
        assert [answer.status for answer in answers] == [201]
        assert exit_code_of(server.pid) == 0
        with pytest.raises(ConnectionRefusedError):
            ask_server(server.port, "/healthz")
    assert count_rows(database) == 1


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["term", "ctrl-c"])
def test_an_idle_service_stops_at_once(tmp_path: Path, database: Path, sent: signal.Signals) -> None:
    """Told to stop while nothing is asked, the service exits 0 and leaves no process and no traceback behind."""
    with make_serve(tmp_path / "serve", database, JSON_LOG, workers=2) as server:
        workers = wait_for_workers(server, 2)
        os.kill(server.pid, sent)
        assert exit_code_of(server.pid) == 0
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        assert "Traceback" not in server.stderr_file.read_text()


def test_a_worker_that_was_killed_is_replaced(tmp_path: Path, database: Path) -> None:
    """After a crash of a worker the service goes on, with what was acknowledged still there."""
    key = make_key(database)
    with make_serve(tmp_path / "serve", database) as server:
        [worker] = wait_for_workers(server, 1)
        token = ask_server(server.port, f"/invites_api?key={key}").token
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: is_answering(server))
        assert server.worker_pids() != [worker]
        assert ask_server(server.port, f"/invite?{token}").status == 200
        assert ask_server(server.port, f"/invites_api?key={key}").status == 201


def test_what_serve_is_told_outweighs_the_file(tmp_path: Path, database: Path) -> None:
    """The path and the origins come from the file, the workers from the arguments."""
    settings = (
        '[http]\npath = "/x/invites"\nlanding_path = "/join"\ncors_origins = ["https://app.example"]\nworkers = 3\n'
    )
    key = make_key(database)
    with make_serve(tmp_path / "serve", database, settings, options=["--threads", "2"]) as server:
        wait_for_workers(server, 1)
        answer = ask_server(server.port, f"/x/invites?key={key}", headers={"Origin": "https://app.example"})
        assert (answer.status, answer["Access-Control-Allow-Origin"]) == (201, "https://app.example")
        assert ask_server(server.port, f"/join?{answer.token}").status == 200
        assert ask_server(server.port, f"/invites_api?key={key}").status == 404
        said = server.stderr_file.read_text()
        assert f"Serving http://127.0.0.1:{server.port}/x/invites with the database {database}\n" in said
        assert "/join of this service" in said


def test_serve_listens_on_a_unix_socket(tmp_path: Path, database: Path) -> None:
    """On a Unix socket everything answers, and the log names no client."""
    socket_file = tmp_path / "s"
    server = make_serve(tmp_path / "serve", database, JSON_LOG)
    listen = server._argv.index("--listen")
    server._argv[listen + 1] = f"unix:{socket_file}"
    with server.stderr_file.open("wb") as log:
        process = subprocess.Popen(
            server._argv, cwd=server.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
        )
    try:
        wait_until(lambda: ask_unix_socket(socket_file).startswith(b"HTTP/1.1 200 OK"))
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
    [entry] = read_requests(server)
    assert (entry["message"], entry["client"]) == ("GET /healthz 200", None)


def ask_unix_socket(path: Path) -> bytes:
    """Ask for the health of a service on a Unix socket; nothing where nobody listens yet."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.connect(str(path))
        except OSError:
            return b""
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return connection.recv(4096)


# Plain gunicorn


def test_gunicorn_alone_serves_the_same_app(tmp_path: Path, database: Path) -> None:
    """`gunicorn 'invites_wsgi:create_app()'` reads INVITES_CONFIG, and with our logger class its log is safe too."""
    key = make_key(database)
    config = tmp_path / "settings.toml"
    config.write_text(f'database = "sqlite:///{database}"\n[hosts."example.com"]\nsite_name = "Example"\n')
    # At this level gunicorn logs how it is set up, with the environment that it gives its workers.
    (tmp_path / "conf.py").write_text('raw_env = ["A=postgresql://user:hunter2@h/d", "PGPASSWORD=hunter3"]\n')
    options = ["--logger-class=invites_wsgi.gunicorn_logs.Logger", "--log-level=debug", "--access-logfile=-"]
    options.append(f"--config={tmp_path / 'conf.py'}")
    with Gunicorn(
        tmp_path / "gunicorn",
        "invites_wsgi:create_app()",
        {**CLEAN_ENVIRONMENT, "INVITES_CONFIG": str(config)},
        options=options,
        path="/healthz",
    ) as server:
        answer = ask_server(server.port, f"/invites_api?key={key}", headers={"Referer": f"http://x/?key={key}"})
        assert answer.status == 201
        page = ask_server(server.port, f"/invite?{answer.token}")
        assert (page.status, "You are invited to Example" in page.text) == (200, True)
        assert send_raw(server.port, f"GET /invites_api?key={key} HTTP/99\r\n\r\n".encode()).startswith(b"HTTP/1.1 400")
        assert send_raw(server.port, f"BOGUS {key}\r\n\r\n".encode()).startswith(b"HTTP/1.1 400")
        wait_until(lambda: server.stderr_file.read_text().count("Invalid request from") == 2)
        log = server.stderr_file.read_text()
    assert "GET /invites_api 201" in log
    assert "Booting worker" in log
    assert server.stdout_file.read_text() == ""
    secret = key.partition("/")[2]
    assert "raw_env: ['A=postgresql://[…]@h/d', " in log
    for hidden in (secret, secret[:10], answer.token, "?key", "BOGUS", "HTTP/99", "hunter"):
        assert hidden not in log


def test_gunicorn_alone_refuses_to_start_on_a_mistake(tmp_path: Path) -> None:
    """A mistake in the settings stops plain gunicorn as well, and its log names it."""
    config = tmp_path / "settings.toml"
    config.write_text("[http]\nworkers = 0\n")
    server = Gunicorn(
        tmp_path / "gunicorn",
        "invites_wsgi:create_app()",
        {**CLEAN_ENVIRONMENT, "INVITES_CONFIG": str(config)},
        workers=1,
        options=["--logger-class=invites_wsgi.gunicorn_logs.Logger"],
    )
    from tests.servers import ServerFailed

    with pytest.raises(ServerFailed, match=r"http\.workers: must be a whole number from 1 to 256"):
        server.start()


def test_every_line_of_the_json_log_parses(tmp_path: Path, database: Path) -> None:
    """With the JSON format every line that gunicorn and the app write is one object with time, level and process."""
    with make_serve(tmp_path / "serve", database, JSON_LOG) as server:
        ask_server(server.port, "/invites_api?key=x")
        send_raw(server.port, b"\x1b[31m nonsense \x00\r\n\r\n")
        send_raw(server.port, b"GET / HTTP/1.1\r\nHost: x\r\n\xff\xfe: \x9b\r\n\r\n")
        wait_until(lambda: server.stderr_file.read_text().count("Invalid request from") == 2)
    told, *log = server.stderr_file.read_text().split("\n")[:-1]
    assert told.startswith("Serving http://")
    log = [line for line in log if not line.startswith("Invites will point to ")]
    assert len(log) == len(read_json_log(server)) > 5
    for entry in read_json_log(server):
        assert {"time", "level", "pid", "message"} <= set(entry)


def test_the_text_log_keeps_its_lines(tmp_path: Path, database: Path) -> None:
    """Whatever a client sends, every line of the text log begins as a line does and holds no control character."""
    with make_serve(tmp_path / "serve", database, '[log]\nlevel = "debug"\n') as server:
        send_raw(
            server.port, b"GET /a%0d%0aINFO%1b[31m?x=%0a HTTP/1.1\r\nHost: x\r\nX: a\x1bb\r\nConnection: close\r\n\r\n"
        )
        send_raw(server.port, b"G\x1bET / HTTP/1.1\r\n\r\n")
        send_raw(server.port, b"GET / HTTP/1.1\nHost: x\r2026-01-01T00:00:00.000Z INFO [1] forged\n\r\n\r\n")
        ask_server(server.port, "/healthz")
        wait_until(lambda: "GET /healthz 200" in server.stderr_file.read_text())
        lines = server.stderr_file.read_bytes().decode("utf-8").split("\n")[:-1]
    assert all(line.isprintable() for line in lines)
    stamped = [line for line in lines if re.match(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z [A-Z]+ \[\d+\] ", line)]
    assert [line for line in lines if line not in stamped and not line.startswith(("Serving ", "Invites "))] == []
    assert "forged" not in "\n".join(lines)
