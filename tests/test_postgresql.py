"""The servers and databases that the tests with PostgreSQL stand on."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import psycopg
import pytest

from tests.conftest import StartPostgresql
from tests.postgresql import APPLICATION, PostgresqlServer, find_programs, list_connections, new_database
from tests.servers import ServerFailed

pytestmark = pytest.mark.real_server


def ask(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
    return row and row[0]


def test_a_server_is_gone_with_its_files_and_processes(start_postgresql: StartPostgresql) -> None:
    """What a server of the tests' own had, folder and port, is gone when it is closed, also after it was killed."""
    server = start_postgresql()
    pid = server.pid
    assert ask(server.url, "SELECT current_user") == "postgres"
    server.kill()
    server.close()
    assert not server.folder.exists()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.url)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT, signal.SIGINT])
def test_a_server_that_was_ended_starts_again_with_what_was_committed(
    start_postgresql: StartPostgresql, number: signal.Signals
) -> None:
    """Whichever way a server ends, its clients lose their connections, and what they committed is there afterwards."""
    server = start_postgresql()
    connection = psycopg.connect(server.url, autocommit=True)
    connection.execute("CREATE TABLE kept AS SELECT 5 AS five")
    server.kill(number)
    assert not server.is_running()
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    connection.close()
    server.start()
    assert ask(server.url, "SELECT five FROM kept") == 5


def test_a_server_has_the_settings_that_it_was_given(start_postgresql: StartPostgresql) -> None:
    """A durable server waits for the disk, its settings can be chosen, and it can ask for a password."""
    server = start_postgresql(durable=True, auth="scram-sha-256", settings={"max_connections": "7"})
    assert ask(server.url, "SHOW fsync") == "on"
    assert ask(server.url, "SHOW max_connections") == "7"
    assert server.password is not None
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(server.url.replace(server.password, "wrong"))


def test_a_server_that_cannot_start_says_why_and_leaves_nothing(postgresql_programs: Path) -> None:
    """A setting that PostgreSQL refuses is in the error, and nothing is left of the server."""
    server = PostgresqlServer(programs=postgresql_programs, settings={"max_connections": "none"})
    with pytest.raises(ServerFailed, match="max_connections"):
        server.start()
    server.close()
    assert not server.folder.exists()


def test_programs_are_found_by_either_name_and_by_their_folder(postgresql_programs: Path) -> None:
    """INVITES_TEST_POSTGRESQL may be the path of postgres, of initdb, or of the folder that they are in."""
    for place in (postgresql_programs, postgresql_programs / "initdb", postgresql_programs / "postgres"):
        assert find_programs(place) == postgresql_programs
    assert find_programs(postgresql_programs / "missing" / "postgres") is None


def test_each_test_has_a_database_of_its_own(postgresql_server: str) -> None:
    """Two databases of one server are apart, sort by bytes, and are both gone at the end."""
    with new_database(postgresql_server) as one, new_database(postgresql_server) as other:
        with psycopg.connect(one) as connection:
            connection.execute("CREATE TABLE only_here ()")
        assert ask(other, "SELECT to_regclass('only_here')") is None
        assert ask(one, "SELECT 'B' < 'a' AND getdatabaseencoding() = 'UTF8'") is True
    names = [url.rpartition("/")[2] for url in (one, other)]
    assert (
        ask(postgresql_server, f"SELECT count(*) FROM pg_database WHERE datname IN ('{names[0]}', '{names[1]}')") == 0
    )


def test_a_connection_that_is_left_open_is_told(postgresql_server: str) -> None:
    """A test that leaves a connection of the product open fails, and its database is dropped all the same."""
    databases = contextlib.ExitStack()
    url = databases.enter_context(new_database(postgresql_server, seconds_to_leave=0))
    name = url.rpartition("/")[2]
    connection = psycopg.connect(url, application_name=f"{APPLICATION} test", autocommit=True)
    connection.execute("SELECT 5")
    assert len(list_connections(postgresql_server, name, 0)) == 1
    with pytest.raises(AssertionError, match="SELECT 5"):
        databases.close()
    assert ask(postgresql_server, f"SELECT count(*) FROM pg_database WHERE datname = '{name}'") == 0
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    connection.close()
