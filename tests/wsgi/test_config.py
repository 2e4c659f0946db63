"""Settings: every key, every mistake, and which source outweighs which."""

from __future__ import annotations

import os
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from invites_wsgi.config import Settings, SettingsError, default_database, has_password, load_settings
from invites_wsgi.page.settings import HostPage, PageSettings
from tests.privileges import without_power_over_files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of a settings file, in a folder of its own."""
    folder = tmp_path / "etc"
    folder.mkdir()
    return folder / "settings.toml"


def read(file: Path, content: str, **overrides: object) -> Settings:
    """Write a settings file and load it, with an empty environment."""
    file.write_text(content, "utf-8")
    return load_settings(file=str(file), environ={}, overrides=overrides)


FULL = """
database = "sqlite:////srv/invites.db"
invites = "memory:"
purge_after = "400d"

[http]
listen = "[::1]:8080"
metrics_listen = "unix:metrics.sock"
path = "/api/invites"
landing_path = "/join"
trusted_proxies = 2
cors_origins = ["https://app.example", "http://localhost:8080"]
workers = 4
threads = 16

[log]
format = "json"
level = "debug"
command_file = "command.log"

[page]
language = "de"
templates = "page"
apps = "/srv/apps.toml"

[hosts."Example.com"]
contact = "mailto:admin@example.com"
logo = "logo.svg"
color = "#7A1FA2"
button_label = "Im Browser"
button_link = "https://example.com/join?{token}"
xmpp = false
landing_page = "https://join.example.com/{token}"
site_name = "Example & friends 😀"
invite_expiry = "36h"

[hosts."xn--bcher-kva.example"]
landing_page = ""
"""


def test_every_key_is_read(file: Path) -> None:
    """A file that sets everything is taken whole, hosts under their normalised names."""
    settings = read(file, FULL)
    found = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name != "hosts"}
    assert found == {
        "database": "sqlite:////srv/invites.db",
        "invites": "memory:",
        "listen": "[::1]:8080",
        "metrics_listen": "unix:metrics.sock",
        "path": "/api/invites",
        "landing_path": "/join",
        "trusted_proxies": 2,
        "cors_origins": ("https://app.example", "http://localhost:8080"),
        "workers": 4,
        "threads": 16,
        "log_format": "json",
        "log_level": "debug",
        "log_command_file": file.parent / "command.log",
        "purge_after": timedelta(days=400),
        "file": file,
        "page": PageSettings(
            language="de",
            templates=file.parent / "page",
            apps=Path("/srv/apps.toml"),
            hosts={
                "example.com": HostPage(
                    contact="mailto:admin@example.com",
                    logo=file.parent / "logo.svg",
                    color="#7A1FA2",
                    button_label="Im Browser",
                    button_link="https://example.com/join?{token}",
                    xmpp=False,
                ),
                "bücher.example": HostPage(),
            },
        ),
    }
    assert list(settings.hosts.listed) == ["example.com", "bücher.example"]
    assert settings.hosts.get("example.com").site_name == "Example & friends 😀"
    assert settings.hosts.get_invite_expiry("example.com", "register") == timedelta(hours=36)
    assert settings.hosts.get_landing_template("example.com") == "https://join.example.com/{token}"
    assert settings.hosts.get_landing_template("bücher.example") == ""


@pytest.mark.parametrize("content", ["", "# nothing\n", "[http]\n[log]\n[hosts]\n"])
def test_every_key_is_optional(file: Path, content: str) -> None:
    """An empty file leaves everything as it is without any."""
    settings = read(file, content)
    default = load_settings(environ={})
    assert (default.file, settings.file) == (None, file)
    for field in fields(settings):
        if field.name not in ("file", "hosts"):
            assert getattr(settings, field.name) == getattr(default, field.name)
    assert list(settings.hosts.listed) == list(default.hosts.listed) == []
    assert (settings.listen, settings.path, settings.landing_path) == ("127.0.0.1:5280", "/invites_api", "/invite")
    assert (settings.trusted_proxies, settings.cors_origins) == (0, ("*",))
    assert settings.hosts.get_landing_template("example.com") == "https://example.com/invite?{token}"
    assert settings.hosts.get_invite_expiry("example.com", "register") == timedelta(days=7)


LINK_MISTAKE = 'must be a link in ASCII without spaces, such as "https://example.com/join?invite={token}"'
CONTACT_MISTAKE = 'must be a URI, such as "mailto:admin@example.com", "https://…" or "xmpp:…"'

PAGE_MISTAKES = [
    ("[page]\nlang = 'de'", "page.lang: unknown key; did you mean page.language?"),
    ("page = 'de'", "page: must be a table"),
    ("[page]\nlanguage = 'deutsch!'", 'page.language: must be the tag of a language, such as "en" or "de"'),
    ("[page]\ntemplates = ''", "page.templates: must be a path"),
    ("[page]\napps = 1", "page.apps: must be a text in quotes"),
    *[
        (f"[hosts.'a.example']\n{content}", f'hosts."a.example"{mistake}')
        for content, mistake in (
            ("xmpp = 'no'", ".xmpp: must be true or false"),
            ("xmpp = false", ".xmpp: can be false only where there is a button_link"),
            ("button_label = 'Join'", ": button_label and button_link belong together"),
            ("button_link = 'https://a.example/{token}'", ": button_label and button_link belong together"),
            ("button_label = ''", ".button_label: must have from 1 to 60 characters"),
            ("button_link = 'javascript:alert({token})'", f".button_link: {LINK_MISTAKE}"),
            ("button_link = 'DATA:text/html,{token}'", f".button_link: {LINK_MISTAKE}"),
            ("button_link = '/join?{token}'", f".button_link: {LINK_MISTAKE}"),
            ("button_link = 'https://a.example/ {token}'", f".button_link: {LINK_MISTAKE}"),
            (
                "button_link = 'https://a.example/'",
                ".button_link: must hold {token}, where the invite's token goes, and no other placeholder",
            ),
            (
                "button_link = 'https://a.example/{token}/{host}'",
                ".button_link: must hold {token}, where the invite's token goes, and no other placeholder",
            ),
            ("contact = 'admin@a.example'", f".contact: {CONTACT_MISTAKE}"),
            ("contact = 'javascript:alert(1)'", f".contact: {CONTACT_MISTAKE}"),
            ("color = 'red'", '.color: must be a colour such as "#1f5fbf"'),
            ("color = '#fff'", '.color: must be a colour such as "#1f5fbf"'),
            ("logo = ''", ".logo: must be a path"),
        )
    ],
    (
        "[hosts.'a.example']\ncolour = '#ffffff'",
        'hosts."a.example".colour: unknown key; did you mean hosts."a.example".color?',
    ),
]

MISTAKES = [
    *PAGE_MISTAKES,
    # Keys that are not there, with what was meant.
    ("datbase = 'memory:'", "datbase: unknown key; did you mean database?"),
    ("zzz = 1", "zzz: unknown key"),
    ("[htpp]\nlisten = '127.0.0.1:1'", "htpp: unknown key; did you mean http?"),
    ("[http]\nlisten_on = 1", "http.listen_on: unknown key; did you mean http.listen?"),
    ("[http]\ntrusted_proxy = 1", "http.trusted_proxy: unknown key; did you mean http.trusted_proxies?"),
    ("[log]\nformt = 'json'", "log.formt: unknown key; did you mean log.format?"),
    (
        "[hosts.\"example.com\"]\nsitename = 'x'",
        'hosts."example.com".sitename: unknown key; did you mean hosts."example.com".site_name?',
    ),
    (
        "[hosts.example.com]\nsite_name = 'x'",
        'hosts."example".com: unknown key; a host name needs quotes, as in [hosts."example.com"]',
    ),
    ("listen = '127.0.0.1:1'", "listen: unknown key"),
    # Wrong types.
    ("database = 1", "database: must be a text in quotes"),
    ("database = ['memory:']", "database: must be a text in quotes"),
    ("invites = true", "invites: must be a text in quotes"),
    ("purge_after = 90", "purge_after: must be a text in quotes"),
    ("purge_after = '90'", "purge_after: must be a number with s, min, h, d or w, such as 7d, not '90'"),
    ("purge_afer = '90d'", "purge_afer: unknown key; did you mean purge_after?"),
    ("http = 1", "http: must be a table"),
    ("log = 'json'", "log: must be a table"),
    ("hosts = ['example.com']", "hosts: must be a table"),
    ("[hosts]\n'example.com' = 1", 'hosts."example.com": must be a table'),
    ("[[hosts]]", "hosts: must be a table"),
    ("[http]\nlisten = 5280", "http.listen: must be a text in quotes"),
    ("[http]\npath = 1", "http.path: must be a text in quotes"),
    ("[http]\ntrusted_proxies = '1'", "http.trusted_proxies: must be a whole number from 0 to 16"),
    ("[http]\ntrusted_proxies = true", "http.trusted_proxies: must be a whole number from 0 to 16"),
    ("[http]\ntrusted_proxies = 1.0", "http.trusted_proxies: must be a whole number from 0 to 16"),
    ("[http]\ncors_origins = '*'", 'http.cors_origins: must be a list, such as ["*"] or ["https://app.example"]'),
    ("[http]\ncors_origins = [1]", "http.cors_origins: must be a text in quotes"),
    ("[log]\nlevel = 10", "log.level: must be one of debug, info, warning, error"),
    ('[hosts."a.example"]\nsite_name = 1', 'hosts."a.example".site_name: must be a text in quotes'),
    ('[hosts."a.example"]\ninvite_expiry = 7', 'hosts."a.example".invite_expiry: must be a text in quotes'),
    # Impossible values.
    (
        "database = ''",
        "database: there is no store 'without a scheme'; known are sqlite:///, postgresql:// and memory:",
    ),
    (
        "database = 'mysql://u:hunter2@h/d'",
        "database: there is no store 'mysql:'; known are sqlite:///, postgresql:// and memory:",
    ),
    (
        "database = 'host=h password=hunter2'",
        "database: there is no store 'without a scheme'; known are sqlite:///, postgresql:// and memory:",
    ),
    ("database = 'sqlite://invites.db'", "database: must be sqlite:///relative.db or sqlite:////absolute.db"),
    ("database = 'sqlite:///'", "database: must be sqlite:///relative.db or sqlite:////absolute.db"),
    (
        "invites = 'x:'",
        "invites: there is no store 'x:'; known are sqlite:///, postgresql://, memory:, agent: and prosody:",
    ),
    ("invites = 'agent://x'", "invites: must be agent:///absolute.sock or agent:relative.sock"),
    (
        "database = 'agent:///x.sock'",
        "database: agent: holds invites only, no keys; it can be the setting invites",
    ),
    ("invites = 'sqlite:x'", "invites: must be sqlite:///relative.db or sqlite:////absolute.db"),
    ('database = "sqlite:///a\\nb"', "database: must hold no control characters"),
    *[
        (
            f"[http]\nlisten = '{value}'",
            "http.listen: must be ADDRESS:PORT, such as 127.0.0.1:5280 or [::1]:5280, or unix:PATH",
        )
        for value in ("", "5280", ":5280", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "::1:80")
    ],
    *[
        (
            f"[http]\nlisten = '{value}'",
            "http.listen: must be ADDRESS:PORT, such as 127.0.0.1:5280 or [::1]:5280, or unix:PATH",
        )
        for value in (
            "[127.0.0.1]:80",
            "example.com:80",
            "127.0.0.1:٣٣",
            "127.0.0.1:-1",
            "unix:",
            "http://127.0.0.1:80",
        )
    ],
    *[
        (
            f"[http]\npath = '{value}'",
            "http.path: must begin with a slash, end without one, and hold letters, digits, - . _ ~ only",
        )
        for value in ("", "/", "api", "/api/", "//api", "/a b", "/a?b", "/a#b", "/<x>", "/%41", "/..", "/a/../b", "/é")
    ],
    (
        "[http]\nlanding_path = '/x/'",
        "http.landing_path: must begin with a slash, end without one, and hold letters, digits, - . _ ~ only",
    ),
    ("[http]\npath = '/invite'", "http.path, http.landing_path and /healthz must be different places"),
    ("[http]\npath = '/healthz'", "http.path, http.landing_path and /healthz must be different places"),
    (
        "[http]\nlanding_path = '/invites_api/invite'",
        "http.path, http.landing_path and /healthz must be different places",
    ),
    ("[http]\ntrusted_proxies = -1", "http.trusted_proxies: must be a whole number from 0 to 16"),
    ("[http]\ntrusted_proxies = 17", "http.trusted_proxies: must be a whole number from 0 to 16"),
    ("[http]\nworkers = 0", "http.workers: must be a whole number from 1 to 256"),
    ("[http]\nthreads = 257", "http.threads: must be a whole number from 1 to 256"),
    ("[http]\ncors_origins = []", 'http.cors_origins: must be a list, such as ["*"] or ["https://app.example"]'),
    *[
        (
            f"[http]\ncors_origins = ['{value}']",
            f"http.cors_origins: '{value}' is not an origin, such as https://app.example",
        )
        for value in ("null", "app.example", "https://app.example/", "https://*.example", "HTTPS://app.example", "")
    ],
    (
        "[http]\ncors_origins = ['*', 'https://app.example']",
        "http.cors_origins: '*' is not an origin, such as https://app.example",
    ),
    ("[log]\nformat = 'xml'", "log.format: must be one of text, json"),
    ("[log]\nlevel = 'INFO'", "log.level: must be one of debug, info, warning, error"),
    ('[hosts."bad host"]', 'hosts."bad host": not a valid host'),
    ('[hosts.""]', 'hosts."": not a valid host'),
    ('[hosts."a_b.example"]', 'hosts."a_b.example": not a valid host'),
    (
        '[hosts."valid.example"]\n[hosts."Valid.Example."]',
        "hosts: Valid.Example. is there twice",
    ),
    *[
        (f'[hosts."a.example"]\nlanding_page = "{value}"', f'hosts."a.example".landing_page: {reason}')
        for value, reason in (
            ("https://a.example/", "must hold {token}, where the invite's token goes"),
            ("ftp://a.example/{token}", "must be an http: or https: URL in ASCII without spaces"),
            ("/invite?{token}", "must be an http: or https: URL in ASCII without spaces"),
            ("https://a.example/ {token}", "must be an http: or https: URL in ASCII without spaces"),
            ("https://ä.example/{token}", "must be an http: or https: URL in ASCII without spaces"),
            ("https://a.example/a^b?{token}", "must have ^ percent-encoded"),
            ("https://a.example/{token}{host}", "may hold no other placeholder than {token}"),
        )
    ],
    ('[hosts."a.example"]\nsite_name = ""', 'hosts."a.example".site_name: must have from 1 to 100 characters'),
    (
        f'[hosts."a.example"]\nsite_name = "{"x" * 101}"',
        'hosts."a.example".site_name: must have from 1 to 100 characters',
    ),
    ('[hosts."a.example"]\nsite_name = "a\\u001bb"', 'hosts."a.example".site_name: must hold no control characters'),
    (
        '[hosts."a.example"]\ninvite_expiry = "7"',
        "hosts.\"a.example\".invite_expiry: must be a number with s, min, h, d or w, such as 7d, not '7'",
    ),
    (
        '[hosts."a.example"]\ninvite_expiry = "0d"',
        "hosts.\"a.example\".invite_expiry: must be from 1s to 36500d, not '0d'",
    ),
]


@pytest.mark.parametrize(
    ("content", "message"), [pytest.param(*mistake, id=mistake[0].replace("\n", " ")[:60]) for mistake in MISTAKES]
)
def test_every_mistake_is_named_in_one_line(file: Path, content: str, message: str) -> None:
    """A mistake stops the start with the file, the key and what is wrong, in one line and without any secret."""
    with pytest.raises(SettingsError) as caught:
        read(file, content)
    prefix = "" if "different places" in message else f"{file}: "
    assert str(caught.value) == f"{prefix}{message}"
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"database = ", "not valid TOML: ", id="no-value"),
        pytest.param(b"a = 1\na = 2", "not valid TOML: ", id="key-twice"),
        pytest.param(b"\xff\xfe", "not valid TOML: ", id="not-utf-8"),
        pytest.param(b'[hosts."a.example"]\n[hosts."a.example"]', "not valid TOML: ", id="table-twice"),
    ],
)
def test_a_file_that_is_no_toml_is_named(file: Path, content: bytes, reason: str) -> None:
    """What cannot be parsed is one line with the file's name."""
    file.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_settings(file=str(file), environ={})
    assert str(caught.value).startswith(f"{file}: {reason}")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    """A missing file, a folder and a closed one are one line each, whoever named the file."""
    with pytest.raises(SettingsError, match=rf"^cannot read {file}: no such file or directory$"):
        load_settings(file=str(file), environ={})
    with pytest.raises(SettingsError, match=rf"^cannot read {file}: no such file or directory$"):
        load_settings(environ={"INVITES_CONFIG": str(file)})
    with pytest.raises(SettingsError, match=rf"^cannot read {file.parent}: is a directory$"):
        load_settings(file=str(file.parent), environ={})
    file.touch(0o000)
    with without_power_over_files(), pytest.raises(SettingsError, match=rf"^cannot read {file}: permission denied$"):
        load_settings(file=str(file), environ={})


# Which source outweighs which


def test_arguments_outweigh_the_environment_which_outweighs_the_file(file: Path, tmp_path: Path) -> None:
    """The database comes from the argument, else from the environment, else from the file, else from the default."""
    file.write_text('database = "sqlite:////from/file.db"')
    environ = {"INVITES_CONFIG": str(file), "INVITES_DATABASE": "sqlite:////from/environment.db", "HOME": "/home/x"}

    def load(names: set[str], **overrides: object) -> str:
        chosen = {name: value for name, value in environ.items() if name in names | {"HOME"}}
        return load_settings(environ=chosen, overrides=overrides).database

    assert load(set()) == "sqlite:////home/x/.local/share/invites-api/invites.db"
    assert load({"INVITES_CONFIG"}) == "sqlite:////from/file.db"
    assert load({"INVITES_CONFIG", "INVITES_DATABASE"}) == "sqlite:////from/environment.db"
    assert load({"INVITES_CONFIG", "INVITES_DATABASE"}, database="memory:") == "memory:"
    assert load({"INVITES_CONFIG", "INVITES_DATABASE"}, database=None) == "sqlite:////from/environment.db"


def test_a_file_that_is_named_outweighs_the_one_in_the_environment(file: Path, tmp_path: Path) -> None:
    """The settings file of the argument is read, and the other one is not even opened."""
    file.write_text("[http]\nworkers = 7")
    assert load_settings(file=str(file), environ={"INVITES_CONFIG": str(tmp_path / "missing")}).workers == 7


def test_arguments_outweigh_the_file(file: Path) -> None:
    """What the command is told goes before what the file says, and what it is not told does not."""
    settings = read(file, FULL, listen="127.0.0.1:9", workers=1, threads=None)
    assert (settings.listen, settings.workers, settings.threads) == ("127.0.0.1:9", 1, 16)


@pytest.mark.parametrize(
    ("environ", "overrides", "message"),
    [
        pytest.param({}, {"workers": 0}, "workers: must be a whole number from 1 to 256", id="argument"),
        pytest.param({}, {"listen": "x"}, "listen: must be ADDRESS:PORT", id="address"),
        pytest.param({"INVITES_DATABASE": "x:y"}, {}, "database: there is no store 'x:'", id="environment"),
        pytest.param({"INVITES_DATABASE": "u:hunter2@h"}, {}, "database: there is no store 'u:'", id="password"),
    ],
)
def test_other_sources_are_checked_too(environ: dict[str, str], overrides: dict[str, Any], message: str) -> None:
    """A mistake in the environment or in an argument is named like one in the file."""
    with pytest.raises(SettingsError) as caught:
        load_settings(environ=environ, overrides=overrides)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_empty_variable_is_none() -> None:
    """A variable that is set to nothing says nothing."""
    settings = load_settings(environ={"INVITES_CONFIG": "", "INVITES_DATABASE": "", "HOME": "/home/x"})
    assert (settings.file, settings.database) == (None, "sqlite:////home/x/.local/share/invites-api/invites.db")


# Where the database is


def test_a_relative_path_in_a_file_is_relative_to_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command is run, the file means the same database."""
    file.write_text('database = "sqlite:///data/keys.db"\ninvites = "sqlite:///../invites.db"')
    monkeypatch.chdir(file.parent)
    settings = load_settings(file=file.name, environ={})
    monkeypatch.chdir("/")
    assert settings.database == f"sqlite:///{file.parent}/data/keys.db"
    assert os.path.normpath((settings.invites or "").removeprefix("sqlite:///")) == str(
        file.parent.parent / "invites.db"
    )


def test_an_absolute_path_in_a_file_stays(file: Path) -> None:
    """An absolute path, and a store that has none, are as they were written."""
    settings = read(file, 'database = "sqlite:////srv/a b#c?d%41.db"\ninvites = "memory:"')
    assert (settings.database, settings.invites) == ("sqlite:////srv/a b#c?d%41.db", "memory:")


def test_a_relative_path_elsewhere_is_relative_to_the_current_folder() -> None:
    """In the environment and in arguments a path means what it means in a shell."""
    assert load_settings(environ={"INVITES_DATABASE": "sqlite:///x.db"}).database == "sqlite:///x.db"


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        pytest.param({"HOME": "/home/x"}, "/home/x/.local/share", id="home"),
        pytest.param({"HOME": "/home/x", "XDG_DATA_HOME": "/data"}, "/data", id="xdg"),
        pytest.param({"HOME": "/home/x", "XDG_DATA_HOME": "relative"}, "/home/x/.local/share", id="relative"),
        pytest.param({"HOME": "/home/x", "XDG_DATA_HOME": ""}, "/home/x/.local/share", id="empty"),
    ],
)
def test_the_default_database_is_in_the_data_folder(environ: dict[str, str], folder: str) -> None:
    """Without any settings the database is where the XDG specification puts a user's data."""
    assert default_database(environ) == f"sqlite:///{folder}/invites-api/invites.db"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("postgresql://user:secret@host/db", True),
        ("POSTGRESQL://user:secret@host/db", True),
        ("postgresql://:secret@host/db", True),
        ("postgresql://host/db?password=secret", True),
        ("host=db password=secret", True),
        ("postgresql://u:pa#ss@host/db", True),
        ("postgresql://u:pa?ss@host/db", True),
        ("postgresql://host/db?passwor%64=x", True),
        ("postgresql://host/db?sslpassword=x", True),
        ("sqlite:////a:b@c/invites.db", False),
        ("postgresql://user@host/db", False),
        ("postgresql://user@host:5432/db", False),
        ("sqlite:////srv/a:b@c.db", False),
        ("memory:", False),
    ],
)
def test_a_password_in_a_url_is_seen(url: str, *, found: bool) -> None:
    """A URL that holds a password is told from one that does not."""
    assert has_password(url) == found


def test_no_url_is_shown_by_a_repr() -> None:
    """A database URL may hold a password, so settings do not show it when they are printed."""
    settings = Settings(database="postgresql://u:hunter2@h/d", invites="postgresql://u:hunter3@h/d")
    assert "hunter" not in repr(settings)


@pytest.mark.parametrize("scheme", ["agent", "prosody"])
def test_a_relative_socket_is_relative_to_the_file(file: Path, scheme: str) -> None:
    """A relative path of a socket is one beside the settings file; an absolute one stays as it is."""
    assert read(file, f"invites = '{scheme}:run/a.sock'").invites == f"{scheme}://{file.parent}/run/a.sock"
    assert read(file, f"invites = '{scheme}:///run/a.sock'").invites == f"{scheme}:///run/a.sock"
