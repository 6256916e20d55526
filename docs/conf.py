"""Sphinx's settings for the site; `python -m tools.site` builds it."""

from tools.address import repository

project = "Working with PyTorch models"
author = "the course's contributors"
extensions = ["myst_nb", "sphinx_design", "sphinx_copybutton", "tools.site"]
root_doc = "index"

# What is shown is what was stored, or what `make course` has just run
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # nothing is loaded from elsewhere
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

templates_path = ["templates"]
html_theme = "sphinx_book_theme"
html_theme_options = {
    "repository_url": repository(),
    "use_repository_button": True,
    "use_download_button": True,
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "article_header_end": ["language", "article-header-buttons"],
    "show_toc_level": 2,
}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_sourcelink_suffix = ""  # the download of a lesson is its notebook
html_show_copyright = False
