"""The subcommand that looks at everything the service needs and says in words what is wrong."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from invites_core import StorageError, __version__, open_invite_store
from invites_core.stores import parse_sqlite_path
from invites_core.stores.schema import HasSchema, SchemaVersion
from invites_wsgi.cli.base import Command, Session, escape_controls, print_json, session_options
from invites_wsgi.cli.findings import Finding, check_hosts_of_store, check_socket, describe_failure
from invites_wsgi.cli.links import describe_link
from invites_wsgi.config import Settings, SettingsError, has_password

__all__ = ["check"]


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@session_options
@click.pass_obj
def check(session: Session, as_json: bool) -> int:
    """Look at settings, database, permissions and versions, and say what is wrong. Exits 1 if anything is."""
    settings = session.load_settings()
    findings = [
        *_check_settings(settings),
        *_check_database(settings),
        *_check_versions(),
        *_check_page(settings),
        *_check_links(settings),
    ]
    if as_json:
        print_json([{"level": finding.level, "text": finding.text} for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.level:<5}{escape_controls(finding.text)}")
    return int(any(finding.level == "bad" for finding in findings))


def _check_settings(settings: Settings) -> Iterator[Finding]:
    if settings.file is None:
        yield Finding("note", "no settings file is in use (--config or INVITES_CONFIG names one)")
    else:
        yield Finding("ok", f"settings {settings.file} can be read")
        mode = stat.S_IMODE(settings.file.stat().st_mode)
        if mode & 0o022:
            yield Finding("bad", f"{settings.file} can be changed by others: chmod go-w {settings.file}")
        if mode & 0o004 and (has_password(settings.database) or has_password(settings.invites or "")):
            yield Finding("bad", f"{settings.file} holds a password and others can read it: chmod o-r {settings.file}")
    for name, url in (("database", settings.database), ("invites", settings.invites)):
        if url == "memory:":
            yield Finding("bad", f"{name} is memory: every worker has its own, and all is lost at a restart")


def _check_database(settings: Settings) -> Iterator[Finding]:
    urls = [settings.database] if settings.invites is None else [settings.database, settings.invites]
    for url in urls:
        yield from check_socket(url)
        try:
            store = open_invite_store(url, create=False, migrate=False)
            try:
                store.ping()
                yield Finding("ok", f"database {store.location} answers")
                if isinstance(store, HasSchema):
                    yield _describe_schema(store.schema)
                yield from map(_describe_problem, store.find_problems())
                if url == settings.invites:
                    yield from check_hosts_of_store(store, settings.hosts.listed)
            finally:
                store.close()
        except StorageError as error:
            yield describe_failure(error)
        path = parse_sqlite_path(url)
        # Not by Path.exists, which raises where a folder on the way is closed to this user.
        if path is not None and os.path.exists(path):
            yield from _check_permissions(Path(os.path.abspath(path)))


def _describe_problem(text: str) -> Finding:
    note = text.removeprefix("note: ")
    return Finding("bad" if note == text else "note", note)


def _describe_schema(schema: SchemaVersion) -> Finding:
    if schema.present == schema.newest:
        return Finding("ok", f"schema version {schema.present}")
    return Finding(
        "note",
        f"schema version {schema.present}; the service brings it to version {schema.newest} when it starts,"
        " and older versions of invites-api cannot use it from then on",
    )


def _check_permissions(path: Path) -> Iterator[Finding]:
    """By path alone: opening the file here would drop the locks that this process holds on it."""
    fine = True
    # Who can open the lock file can hold up every writer, without being able to read anything.
    for part in (path, *(Path(f"{path}{suffix}") for suffix in ("-wal", "-shm", "-lock"))):
        if part.exists() and stat.S_IMODE(part.stat().st_mode) & 0o077:
            fine = False
            yield Finding("bad", f"{part} is open to others: chmod 600 {part}")
    folder = path.resolve().parent
    owner, user = path.stat().st_uid, os.geteuid()
    if owner != user:
        yield Finding("note", f"{path} belongs to user {owner} and you are user {user}: run this as the service's user")
    if stat.S_IMODE(folder.stat().st_mode) & 0o022 and not folder.stat().st_mode & stat.S_ISVTX:
        fine = False
        yield Finding("bad", f"the folder {folder} can be changed by others: chmod go-w {folder}")
    if not os.access(folder, os.W_OK) or not os.access(path, os.W_OK):
        fine = False
        yield Finding("bad", f"you may not write to {path} and its folder; the service must")
    space = os.statvfs(folder)
    if space.f_bavail * space.f_frsize < 64 * 1024 * 1024:
        fine = False
        yield Finding("bad", f"less than 64 MiB are left on the disk of {folder}")
    if fine:
        yield Finding("ok", f"only its owner can read and write {path}")


def _check_versions() -> Iterator[Finding]:
    yield Finding("ok", f"invites-api {__version__} on Python {sys.version.split()[0]}")
    import apsw

    sqlite = apsw.sqlite_lib_version()
    if _read_version(sqlite) < (3, 51, 3):
        yield Finding("bad", f"SQLite {sqlite} can corrupt a database that several processes use; 3.51.3 is needed")
    else:
        yield Finding("ok", f"SQLite {sqlite}")
    for package in ("argon2-cffi", "werkzeug"):
        yield Finding("ok", f"{package} {version(package)}")
    for package in ("psycopg", "psycopg-pool"):
        with contextlib.suppress(PackageNotFoundError):
            yield Finding("ok", f"{package} {version(package)}")
    try:
        gunicorn = version("gunicorn")
    except PackageNotFoundError:
        yield Finding("note", "gunicorn is not installed, and `serve` needs it: pip install 'invites-api[server]'")
        return
    enough = _read_version(gunicorn) >= (26, 1)
    yield Finding("ok" if enough else "bad", f"gunicorn {gunicorn}" + ("" if enough else "; 26.1 is needed"))


def _read_version(text: str) -> tuple[int, ...]:
    """Return the first numbers in a version, which may be one before a release, such as ``27.0b1``."""
    return tuple(int(part) for part in re.findall(r"[0-9]+", text)[:3])


def _check_links(settings: Settings) -> Iterator[Finding]:
    for host in settings.hosts.listed:
        yield Finding("ok", describe_link(settings, host))
    if not settings.hosts.listed:
        yield Finding("note", "no hosts are listed in the settings, so keys can be made for any host name")


def _check_page(settings: Settings) -> Iterator[Finding]:
    from invites_wsgi.page.view import PageView

    try:
        languages = ", ".join(PageView(settings.page, settings.hosts).languages)
    except SettingsError as error:
        yield Finding("bad", str(error))
    else:
        yield Finding("ok", f"the invite page can be shown, in the languages {languages}")
