"""What errors look like over HTTP: the table, the two forms of an answer, and a database in trouble."""

from __future__ import annotations

import stat
from pathlib import Path

import apsw
import pytest

from invites_core import InvitesError, StorageError, errors
from invites_core.stores.sqlite import SqliteStore
from invites_wsgi import App, Settings
from invites_wsgi.errors import ERRORS, get_error_kind
from tests.privileges import without_power_over_files
from tests.processes import StartPython
from tests.wsgi.conftest import MakeService
from tests.wsgi.support import Answer, FailingStore, LogBook, Service, count_rows, get_sample_errors

# The contract: the class, its status, the exit code of the command, and its type. None: never an answer.
FROZEN = {
    "InvalidKey": (403, 1, "invalid-key"),
    "ScopeMissing": (403, 1, "scope-missing"),
    "PolicyRefused": (403, 1, "policy-refused"),
    "InvalidRequest": (400, 2, "invalid-request"),
    "InvalidHost": (400, 1, "invalid-host"),
    "InviteUnknown": (404, 1, "invite-unknown"),
    "InviteUsed": (410, 1, "invite-used"),
    "InviteExpired": (410, 1, "invite-expired"),
    "InviteRevoked": (410, 1, "invite-revoked"),
    "WrongRedeemer": (409, 1, "wrong-redeemer"),
    "RedemptionReleased": (409, 1, "redemption-released"),
    "IdempotencyConflict": (422, 1, "idempotency-conflict"),
    "QuotaSpent": (429, 3, "quota-spent"),
    "Busy": (503, 3, "busy"),
    "StorageError": (503, 3, "storage-error"),
    "StorageBusy": (503, 3, "storage-busy"),
    "OutcomeUnknown": (503, 3, "outcome-unknown"),
    "CorruptRecord": (503, 3, "corrupt-record"),
    "Unsupported": (501, 1, "unsupported"),
    "KeyUnknown": (None, 1, "key-unknown"),
}
EXTRA = {
    "ScopeMissing": {"scope": "read"},
    "PolicyRefused": {"field": "groups"},
    "InvalidRequest": {"field": "count"},
}
RETRY_AFTER = {
    "QuotaSpent": "17",
    "Busy": "1",
    "StorageError": "5",
    "StorageBusy": "1",
    "OutcomeUnknown": "1",
    "CorruptRecord": "5",
}


def test_every_error_is_in_the_table() -> None:
    """The table has every class that leaves the library, no other, and says of each what the contract says."""
    table = {
        error_class.__name__: (None if error_class is errors.KeyUnknown else kind.status, kind.exit_code)
        for error_class, kind in ERRORS.items()
    }
    assert table == {name: row[:2] for name, row in FROZEN.items()}
    assert set(FROZEN) == set(errors.__all__) - {"InvitesError", "KeyExists", "InviteExists"}
    assert len({kind.title for kind in ERRORS.values()}) == len(ERRORS)


def test_a_subclass_is_answered_as_its_parent() -> None:
    """An error that an author of a store derives from one of ours looks like that one."""

    class DiskOnFire(errors.StorageBusy):
        pass

    problem_type, kind = get_error_kind(DiskOnFire())
    assert (problem_type, kind.status) == ("storage-busy", 503)
    with pytest.raises(LookupError, match="InvitesError"):
        get_error_kind(InvitesError())


@pytest.mark.parametrize("name", [name for name in FROZEN if name != "KeyUnknown"])
def test_a_program_gets_a_problem_document(make_service: MakeService, name: str) -> None:
    """Each error is the status of the contract and a problem document with its type, its facts and nothing else."""
    error = get_sample_errors()[name]
    answer = answer_to(make_service, error)
    status, _, problem_type = FROZEN[name]
    assert answer.status == status
    assert answer["Content-Type"] == "application/problem+json"
    content = answer.json()
    assert content == {
        "type": problem_type,
        "title": ERRORS[type(error)].title,
        "status": status,
        "detail": content["detail"],
        **EXTRA.get(name, {}),
        "request_id": answer["X-Request-Id"],
    }
    # A detail that begins with a field keeps the field's name as it is written in a request.
    first = EXTRA.get(name, {}).get("field")
    assert content["detail"].startswith(f"{first}: ") if first else content["detail"][0].isupper()
    assert content["detail"].endswith(".")
    assert answer.get("Retry-After") == RETRY_AFTER.get(name)
    assert (answer.get("WWW-Authenticate") is not None) == (name == "InvalidKey")
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert "secret-place" not in answer.text


@pytest.mark.parametrize("name", [name for name in FROZEN if name != "KeyUnknown"])
@pytest.mark.parametrize(
    "accept",
    [
        pytest.param("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", id="browser"),
        pytest.param("TEXT/HTML;level=1", id="any-case"),
    ],
)
def test_a_person_gets_one_plain_sentence(make_service: MakeService, name: str, accept: str) -> None:
    """A browser gets the same status and headers, and the detail alone as text, never as HTML."""
    error = get_sample_errors()[name]
    answer = answer_to(make_service, error, accept=accept)
    assert answer.status == FROZEN[name][0]
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.text.count("\n") == 1
    assert answer.text == answer_to(make_service, error).json()["detail"] + "\n"
    assert answer.get("Retry-After") == RETRY_AFTER.get(name)
    assert (answer.get("WWW-Authenticate") is not None) == (name == "InvalidKey")


def answer_to(make_service: MakeService, error: InvitesError, *, accept: str = "*/*") -> Answer:
    """Return the answer of a service whose store raises an error."""
    store = FailingStore()
    service = make_service(store)
    store.failure = error
    return service.create(headers={"Accept": accept})


@pytest.mark.parametrize(
    ("target", "method", "status"),
    [
        pytest.param("/nothing", "GET", 404, id="404"),
        pytest.param("/invites_api", "PUT", 405, id="405"),
        pytest.param("/healthz", "POST", 405, id="405-elsewhere"),
    ],
)
def test_what_http_alone_knows_has_the_two_forms_too(service: Service, target: str, method: str, status: int) -> None:
    """Errors that the library has no class for are `about:blank` to programs and a sentence to people."""
    content = service.ask(target, method=method).json()
    assert (content["type"], content["status"]) == ("about:blank", status)
    sentence = service.ask(target, method=method, headers={"Accept": "text/html"}).text
    assert sentence == content["detail"] + "\n"


def test_why_a_store_failed_stands_in_the_log_alone(make_service: MakeService, log: LogBook) -> None:
    """A message of a store, which may name files, is logged once with the request's id."""
    answer = answer_to(make_service, StorageError("the database /srv/secret-place/invites.db failed"))
    [entry] = [entry for entry in log.entries if entry["level"] == "error"]
    assert entry["message"] == "the database /srv/secret-place/invites.db failed"
    assert entry["request_id"] == answer["X-Request-Id"]


# A real database in trouble


HOLD_LOCK = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
connection.close()
"""


@pytest.fixture
def on_sqlite(make_service: MakeService, database: Path) -> Service:
    """A service over a real database, whose writers wait for a fifth of a second."""
    return make_service(SqliteStore(database, timeout=0.2))


def assert_unavailable(answer: Answer, problem_type: str, database: Path) -> None:
    assert (answer.status, answer.json()["type"]) == (503, problem_type)
    assert int(answer["Retry-After"]) >= 1
    assert answer.get("Location") is None
    assert str(database.parent) not in answer.text
    assert database.name not in answer.text


def assert_undamaged(service: Service, *, invites: int) -> None:
    assert service.store.find_problems() in ([], ())
    assert service.count() == invites


def test_a_locked_database_is_503_until_it_is_free(
    on_sqlite: Service, database: Path, start_python: StartPython
) -> None:
    """While another process holds the write lock nothing is created; reading goes on, and afterwards all is well."""
    token = on_sqlite.create().token
    holder = start_python(HOLD_LOCK, database)
    holder.wait_for_line("locked")
    assert_unavailable(on_sqlite.create(), "storage-busy", database)
    assert on_sqlite.ask(f"/invite?{token}").status == 200
    assert on_sqlite.ask("/healthz").status == 200
    assert on_sqlite.ask(f"/invites_api?key={on_sqlite.issued.key.id}/AAAA").status == 403
    holder.finish()
    assert on_sqlite.create().status == 201
    assert_undamaged(on_sqlite, invites=2)


def test_a_database_that_was_moved_away_is_503(
    on_sqlite: Service, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be written to a file that is no longer in its place is refused, and the service is not ready."""
    monkeypatch.setattr("invites_wsgi.app.HEALTH_SECONDS", 0.0)
    assert on_sqlite.create().status == 201
    elsewhere = database.parent / "elsewhere"
    elsewhere.mkdir()
    for path in list(database.parent.glob(f"{database.name}*")):
        path.rename(elsewhere / path.name)
    assert_unavailable(on_sqlite.create(), "storage-error", database)
    assert_unavailable(on_sqlite.ask("/healthz"), "storage-error", database)
    assert count_rows(elsewhere / database.name) == 1


def test_a_database_that_was_replaced_takes_nothing(
    on_sqlite: Service, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service whose file was replaced by another creates nothing, in either, and is not ready."""
    monkeypatch.setattr("invites_wsgi.app.HEALTH_SECONDS", 0.0)
    database.rename(database.with_name("moved.db"))
    SqliteStore(database).close()
    # The key may seem unknown meanwhile: the new file's log has the old one's name.
    answer = on_sqlite.create()
    assert answer.status in (403, 503)
    assert answer.get("Location") is None
    assert_unavailable(on_sqlite.ask("/healthz"), "storage-error", database)
    assert count_rows(database) == 0


def test_a_full_database_is_503(on_sqlite: Service, database: Path) -> None:
    """With no page left nothing is acknowledged that is not there; with room again creating goes on."""
    assert isinstance(on_sqlite.store, SqliteStore)
    connection = on_sqlite.store._database._connection()
    connection.pragma("max_page_count", connection.pragma("page_count"))
    created = 0
    while (answer := on_sqlite.create()).status == 201:
        created += 1
        assert created < 1000
    assert_unavailable(answer, "storage-error", database)
    assert on_sqlite.count() == created
    assert on_sqlite.ask(f"/invites_api?key={on_sqlite.issued.key.id}/AAAA").status == 403
    connection.pragma("max_page_count", 1_000_000)
    assert on_sqlite.create().status == 201
    assert_undamaged(on_sqlite, invites=created + 1)


def test_a_read_only_database_is_503(make_service: MakeService, database: Path) -> None:
    """A file that the service may not write to answers what only asks, and refuses to create."""
    writable = make_service(SqliteStore(database))
    writable.store.close()
    database.chmod(0o400)
    with without_power_over_files():
        store = SqliteStore(database)
        read_only = make_service_over(store, writable)
        assert_unavailable(read_only.create(), "storage-error", database)
        assert read_only.ask(f"/invites_api?key={writable.issued.key.id}/AAAA").status == 403
        assert read_only.ask("/healthz").status == 200
        store.close()
    assert count_rows(database) == 0


def test_a_read_only_folder_stops_the_start(database: Path) -> None:
    """Where not even the files beside the database can be made, the store cannot be opened, and the error says why."""
    database.chmod(0o400)
    database.parent.chmod(0o500)
    with without_power_over_files(), pytest.raises(StorageError, match=rf"^the database {database} is read-only$"):
        SqliteStore(database)
    database.parent.chmod(0o700)


def make_service_over(store: SqliteStore, service: Service) -> Service:
    """Return a service over another store, with the key of this one."""
    app = App(
        Settings(database="memory:"),
        key_store=store,
        invite_store=store,
        hasher=service.keys._hasher,
        clock=service.clock,
    )
    return Service(app, store, service.clock, service.keys, service.issued)


def test_a_damaged_database_is_503(on_sqlite: Service, database: Path) -> None:
    """Pages that are no pages are an error that is told apart, not a crash, and not an unknown key."""
    on_sqlite.store.close()
    with database.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * (database.stat().st_size - 4096))
    damaged = SqliteStore(database)
    service = make_service_over(damaged, on_sqlite)
    assert_unavailable(service.create(), "corrupt-record", database)
    damaged.close()


def test_a_corrupt_record_is_503(on_sqlite: Service, database: Path) -> None:
    """A row that this program cannot have written refuses its key alone, as a fault of ours, not of the client."""
    other = on_sqlite.keys.create("example.com")
    connection = apsw.Connection(str(database))
    connection.execute("UPDATE keys SET policy = '{\"shiny\": true}' WHERE id = ?", (on_sqlite.issued.key.id,))
    connection.close()
    assert_unavailable(on_sqlite.create(), "corrupt-record", database)
    assert on_sqlite.ask(f"/invites_api?key={other.combined}").status == 201


def test_nothing_but_the_owner_can_read_what_a_service_leaves(on_sqlite: Service, database: Path) -> None:
    """The database and the files that SQLite puts beside it are for their owner alone while the service runs."""
    on_sqlite.create()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in database.parent.iterdir()}
    assert modes.keys() >= {database.name, f"{database.name}-wal", f"{database.name}-shm"}
    assert set(modes.values()) == {0o600}
