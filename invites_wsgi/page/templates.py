"""The templates of the page: ours, and those that a site puts before them, whose mistakes are told in a line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import jinja2
from jinja2 import meta
from markupsafe import Markup

from invites_wsgi.config_values import SettingsError
from invites_wsgi.page.languages import Language

__all__ = ["Templates", "naming_mistakes"]

_SHIPPED: Final = "shipped"
"""Before the name of a template: the one of this package, which an own one of the same name extends."""

_FOLDERS: Final = (Path(__file__).parent.parent / "templates", Path(__file__).parent.parent / "static")


class Templates:
    """What the page is made of, in one language."""

    def __init__(self, folder: Path | None, language: Language) -> None:
        """Look for templates.

        Args:
            folder: A site's own, which come before ours; None: there are none.
            language: What their texts are translated to.

        Raises:
            SettingsError: There is no such folder.
        """
        if folder is not None and not folder.is_dir():
            raise SettingsError(f"page.templates: there is no folder {folder}")
        shipped = jinja2.FileSystemLoader(_FOLDERS)
        self._own = None if folder is None else jinja2.FileSystemLoader(folder)
        self._loader: jinja2.BaseLoader = shipped
        if self._own is not None:
            self._loader = jinja2.ChoiceLoader([jinja2.PrefixLoader({_SHIPPED: shipped}), self._own, shipped])
        # One for each language: what a text is translated to is a part of the environment.
        self._environment = jinja2.Environment(
            loader=self._loader,
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            extensions=["jinja2.ext.i18n"],
        )
        self._environment.policies["ext.i18n.trimmed"] = True
        self._environment.install_gettext_translations(language.catalog, newstyle=True)  # type: ignore[attr-defined] # by i18n
        self._environment.filters["without_scheme"] = lambda uri: uri.partition(":")[2].removeprefix("//").rstrip("/")

    def get(self, name: str) -> jinja2.Template:
        """Return a template.

        Raises:
            SettingsError: A site's own has a mistake, or a block that ours does not have, which nobody would see.
        """
        with naming_mistakes():
            template = self._environment.get_template(name)
            if self._extends_ours(name):
                known = self._environment.get_template(f"{_SHIPPED}/{name}").blocks
                if unknown := sorted(set(template.blocks) - set(known)):
                    raise SettingsError(f"page.templates: {name}: ours has no block {unknown[0]}")
            return template

    def _extends_ours(self, name: str) -> bool:
        if self._own is None or name not in self._own.list_templates():
            return False
        source = self._own.get_source(self._environment, name)[0]
        return f"{_SHIPPED}/{name}" in meta.find_referenced_templates(self._environment.parse(source))

    def read(self, name: str, *, default: str | None = None) -> Markup:
        """Return a style or a script, which stand in the page so that it is one request.

        Raises:
            SettingsError: It cannot be read, or it would end within the page.
        """
        with naming_mistakes():
            try:
                text = self._loader.get_source(self._environment, name)[0]
            except jinja2.TemplateNotFound:
                if default is None:
                    raise
                text = default
            except UnicodeDecodeError as error:
                raise SettingsError(f"page.templates: {name} is not in UTF-8") from error
            if "</" in text:
                raise SettingsError(f"page.templates: {name} holds </, which would end it within the page")
            return Markup(text)  # noqa: S704 (it is ours, or the site's own)


@contextmanager
def naming_mistakes() -> Iterator[None]:
    """Turn whatever a template ends in into one line that names the place; a template calls what it likes.

    Raises:
        SettingsError: Anything was raised.
    """
    try:
        yield
    except SettingsError:
        raise
    except jinja2.TemplateSyntaxError as error:
        place = Path(error.filename).name if error.filename else error.name
        raise SettingsError(f"page.templates: {place}, line {error.lineno}: {error.message}") from error
    except jinja2.TemplateNotFound as error:
        raise SettingsError(f"page.templates: there is no template {error.name}") from error
    except RecursionError as error:
        raise SettingsError(
            f'page.templates: a template extends or includes itself; ours is "{_SHIPPED}/" and its name'
        ) from error
    except Exception as error:
        places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".html")]
        place = f"{Path(places[-1].filename).name}, line {places[-1].lineno}: " if places else ""
        said = " ".join(str(error).split()) or "no more is known"
        raise SettingsError(f"page.templates: {place}{type(error).__name__}: {said}") from error
