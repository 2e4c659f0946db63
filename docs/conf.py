"""What Sphinx needs to know to build these pages: ``sphinx-build -W -b html docs docs/_build/html``."""

from invites_core import __version__

project = "invites-api"
release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Creates invite links over HTTP", "fixed_sidebar": True, "page_width": "1140px"}
# Links to headings, as GitHub makes them: page.md#some-heading.
myst_heading_anchors = 3
