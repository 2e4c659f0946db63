"""What the built packages hold, what the library needs, and which way imports run."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import invites_core
import invites_wsgi

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [Path(invites_core.__file__).parent, Path(invites_wsgi.__file__).parent]
"""What is tested: the checkout, or a wheel that was installed."""

ADAPTER_MODULES = {"click", "gunicorn", "invites_wsgi", "jinja2", "markupsafe", "segno", "werkzeug"}
"""What the library must neither import nor need; database drivers come on top."""
DRIVERS = {"apsw", "psycopg", "psycopg_pool", "sqlite3"}
STORES = {f"invites_core.stores.{name}" for name in ("agent", "memory", "postgresql", "prosody", "sqlite")}
"""The stores, as opposed to what several of them share, which lies beside them."""


# What is built


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The files in the sdist and in the wheel made from it, built offline from a copy of the source."""
    folder = tmp_path_factory.mktemp("build")
    made = (".git", ".venv", ".*_cache", ".hypothesis", ".coverage*", "__pycache__", "*.egg-info")
    places = ("build", "dist", "var", "_build")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*made, *places))
    sdist = build("sdist", folder / "source", folder)
    # Not extractall: Python 3.11.2 does not know its argument filter, and later ones warn where it is missing.
    subprocess.run(["tar", "-xf", sdist, "-C", folder], check=True)
    with tarfile.open(sdist) as archive:
        (top,) = {name.partition("/")[0] for name in archive.getnames()}
        in_sdist = [name.partition("/")[2] for name in archive.getnames()]
    wheel = build("wheel", folder / top, folder)
    with zipfile.ZipFile(wheel) as archive:
        entry_points = archive.read(next(name for name in archive.namelist() if name.endswith("/entry_points.txt")))
        return {"sdist": in_sdist, "wheel": archive.namelist(), "entry_points": entry_points.decode().splitlines()}


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a distribution as pip does, without an environment of its own."""
    code = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
    argv = [sys.executable, "-c", code, f"build_{kind}", str(target)]
    built = subprocess.run(argv, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return target / built.stdout.splitlines()[-1]


def list_product() -> Iterator[str]:
    """Name every file of both packages in the checkout."""
    for package in ("invites_core", "invites_wsgi"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_a_distribution_holds_every_file_of_both_packages(distributions: dict[str, list[str]], kind: str) -> None:
    """Modules, templates, static files and py.typed are all in the sdist and in the wheel."""
    expected = set(list_product())
    assert {"invites_core/py.typed", "invites_wsgi/py.typed"} <= expected
    assert {Path(name).parts[1] for name in expected} >= {"static", "templates"}
    assert expected - set(distributions[kind]) == set()


def test_the_sdist_is_enough_to_develop_with(distributions: dict[str, list[str]]) -> None:
    """The sdist holds the tests, the documentation, the scripts and what describes the project."""
    expected = {
        path.relative_to(ROOT).as_posix()
        for name in (".ci", "bin", "docs", "tests")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and not {"__pycache__", "_build"} & set(path.parts)
    }
    expected |= {"CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md", "pyproject.toml", "ruff.toml", "setup.cfg"}
    assert expected - set(distributions["sdist"]) == set()


def test_the_wheel_holds_the_product_alone(distributions: dict[str, list[str]]) -> None:
    """A wheel puts two packages and their metadata into site-packages, with the license and the command."""
    tops = {name.partition("/")[0] for name in distributions["wheel"]}
    (metadata,) = tops - {"invites_core", "invites_wsgi"}
    assert metadata.endswith(".dist-info")
    assert any(name.startswith(metadata) and name.endswith("LICENSE") for name in distributions["wheel"])
    assert "invites-api = invites_wsgi.cli:main" in distributions["entry_points"]


def test_the_product_that_is_tested_is_the_one_that_is_meant() -> None:
    """The tests run on the checkout around them, unless INVITES_TEST_INSTALLED names where a wheel is installed."""
    meant = Path(os.environ.get("INVITES_TEST_INSTALLED") or ROOT).resolve()
    for package in PACKAGES:
        assert package.resolve().is_relative_to(meant)


# What the library needs


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the library, argon2-cffi, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for name in ("invites_core", "argon2", "_argon2_cffi_bindings", "cffi", "_cffi_backend", "pycparser"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        found = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        (site_packages / found.name).symlink_to(found)
    return folder / "bin" / "python"


def run_bare(python: Path, code: str, *arguments: str) -> str:
    ended = subprocess.run([python, "-I", "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_library_works_without_framework_and_driver(bare_python: Path) -> None:
    """With argon2-cffi alone installed, keys and invites are made in memory and checked."""
    code = """
        import importlib.util, sys
        from invites_core import ApiKeys, Invites, open_store
        store = open_store("memory:")
        keys, invites = ApiKeys(store), Invites(store)
        key = keys.verify(keys.create("example.com", name="My test key").combined)
        print(key.name, invites.create(key).uri.partition("=")[0])
        print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])
    """
    printed = run_bare(bare_python, code, *ADAPTER_MODULES, *DRIVERS - {"sqlite3"})
    assert printed.splitlines() == ["My test key xmpp:example.com?register;preauth", "[]"]


def test_a_store_whose_driver_is_missing_says_so(bare_python: Path) -> None:
    """A driver is asked for when its store is opened, and its absence is an error that names it."""
    code = """
        from invites_core import open_store
        try:
            open_store("sqlite:///missing.db", create=False)
        except ImportError as error:
            print(error.name)
        try:
            open_store("postgresql://127.0.0.1:1/db", create=False)
        except ValueError as error:
            print(error)
    """
    needs = "database: postgresql: needs the extra: pip install 'invites-api[postgresql]'"
    assert run_bare(bare_python, code) == f"apsw\n{needs}\n"


def test_a_store_imports_no_driver_but_its_own(tmp_path: Path) -> None:
    """Whoever keeps the data in memory or in SQLite does not load PostgreSQL's driver, although it is installed."""
    code = """
        import sys
        from invites_core import open_store
        open_store("memory:").close()
        open_store(f"sqlite:///{sys.argv[1]}").close()
        print(sorted({name.partition(".")[0] for name in sys.modules} & {"apsw", "psycopg", "psycopg_pool"}))
    """
    assert run_bare(Path(sys.executable), code, str(tmp_path / "invites.db")) == "['apsw']\n"


def test_importing_the_library_reads_nothing(bare_python: Path) -> None:
    """The import opens no file but modules, looks into no environment variable, and starts nothing."""
    code = """
        import collections, json, os, sys, traceback

        class Recording(collections.UserDict):
            def __getitem__(self, name):
                seen.append(["environment", str(name)])
                return super().__getitem__(name)
            def __contains__(self, name):
                seen.append(["environment", str(name)])
                return super().__contains__(name)
            def __iter__(self):
                seen.append(["environment", "*"])
                return super().__iter__()

        def audit(event, arguments):
            if event == "open":
                name = os.fsdecode(arguments[0])
                if not name.endswith((".py", ".pyc", ".so")):
                    seen.append([event, name])
            elif event.partition(".")[0] in ("os", "socket", "subprocess", "sqlite3") and event not in quiet:
                seen.append([event, repr(arguments)])

        # How Python looks for modules.
        quiet = {"os.listdir"}
        seen = []
        os.environ = Recording(os.environ)
        seen.clear()
        sys.addaudithook(audit)
        import invites_core
        found = list(seen)
        open(os.devnull).close()
        os.environ.get("HOME")
        print(json.dumps([found, len(seen) > len(found)]))
    """
    assert json.loads(run_bare(bare_python, code)) == [[], True]


# Which way imports run


def read_modules() -> dict[str, ast.Module]:
    """Parse every module of both packages."""
    modules = {}
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            modules[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_bytes())
    return modules


MODULES = read_modules()


def list_imports(tree: ast.AST, *, lazy: bool = True) -> set[str]:
    """Name the modules that a module imports: also inside functions, unless they are left out."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module is not None
            # "from package import module" imports the module, as far as there is one.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {node.module} if not names <= MODULES.keys() else set()
            found |= names & MODULES.keys()
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found |= list_imports(node, lazy=lazy)
    return found


def of_ours(imports: set[str]) -> set[str]:
    return {name for name in imports if name.partition(".")[0] in ("invites_core", "invites_wsgi")}


CORE = sorted(name for name in MODULES if name.partition(".")[0] == "invites_core")


@pytest.mark.parametrize("module", CORE)
def test_the_library_imports_nothing_of_the_adapter(module: str) -> None:
    """No module of the library imports a web framework, a command line, or the adapter, not even lazily."""
    tops = {name.partition(".")[0] for name in list_imports(MODULES[module])}
    assert tops & ADAPTER_MODULES == set()


def may_import(module: str, imported: str) -> bool:
    """Tell whether a module of the library may import another one."""
    if module == "invites_core.errors":
        return False
    if module == "invites_core" or module.startswith("invites_core.testing"):
        return True
    if imported in ("invites_core", "invites_core.service") or imported.startswith("invites_core.testing"):
        return False
    if module == "invites_core.service":
        return imported.startswith("invites_core.service.")
    if imported.startswith("invites_core.service.") and not module.startswith("invites_core.service."):
        return False
    if module == "invites_core.stores":
        return True
    if module.startswith("invites_core.stores."):
        # Rules and the work of hashing are the service's; only records, the contract and helpers are for stores.
        forbidden = STORES | {"invites_core.stores", "invites_core.hashing", "invites_core.hosts"}
        return imported not in forbidden
    # The service and what is below it know stores by their contract alone, and what is below does not know that.
    return not imported.startswith("invites_core.stores") and (
        imported != "invites_core.store" or module.startswith("invites_core.service.")
    )


@pytest.mark.parametrize("module", CORE)
def test_imports_in_the_library_run_one_way(module: str) -> None:
    """Rules import records and the contract, stores do too, errors import nothing, and nobody imports upwards."""
    imports = of_ours(list_imports(MODULES[module]))
    assert {imported for imported in imports if not may_import(module, imported)} == set()


def test_no_module_imports_itself_through_others() -> None:
    """The modules can be put in an order in which each imports earlier ones only."""
    waiting = {name: of_ours(list_imports(tree)) & MODULES.keys() - {name} for name, tree in MODULES.items()}
    # A store is imported by the function that opens it.
    waiting["invites_core.stores"] -= STORES
    while ready := {name for name, imports in waiting.items() if not imports & waiting.keys()}:
        for name in ready:
            del waiting[name]
    assert waiting == {}


def test_drivers_are_imported_when_asked_for() -> None:
    """What `import invites_core` imports is neither a store nor a driver, nor imports one."""
    reached: set[str] = set()
    new = {"invites_core"}
    while new:
        reached |= new
        new = {found for name in new & MODULES.keys() for found in list_imports(MODULES[name], lazy=False)} - reached
    assert reached & STORES == set()
    assert {name.partition(".")[0] for name in reached} & DRIVERS == set()


@pytest.mark.parametrize("module", CORE)
def test_the_library_neither_prints_nor_exits_nor_reads_the_environment(module: str) -> None:
    """print, input, sys.exit, os.environ and the like are for the command line and for settings."""
    forbidden = {"os.environ", "os.getenv", "os._exit", "sys.argv", "sys.exit", "sys.stdin", "sys.stdout", "sys.stderr"}
    calls = {"breakpoint", "exit", "input", "print", "quit"}
    found = {
        ast.unparse(node)
        for node in ast.walk(MODULES[module])
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in forbidden)
        or (isinstance(node, ast.Name) and node.id in calls | {"SystemExit"})
        or (isinstance(node, ast.ImportFrom) and {f"{node.module}.{alias.name}" for alias in node.names} & forbidden)
    }
    assert found == set()


# What setup.cfg says


@pytest.mark.parametrize("extra", ["server", "postgresql"])
def test_every_extra_of_the_product_is_in_the_tests_too(extra: str) -> None:
    """The tests need what the server and the stores need, in the same versions."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {name: set(value.split("\n")) for name, value in setup["options.extras_require"].items()}
    assert extras[extra] <= extras["test"]
