"""The site: it builds without a warning, its links lead somewhere, it works on a phone.

Chromium looks at the built pages; those tests are skipped where there is none.
"""

import functools
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import lesson_files, lesson_name, read_notebook
from tools import site as tools_site

pytest.importorskip("sphinx", reason="the site is not built with Colab's versions")

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, CHROMIUMS)), None)
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
DESK, PHONE = {"width": 1400, "height": 1000}, {"width": 390, "height": 800}
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site from the stored outputs; a warning of Sphinx's fails all tests here."""
    folder = tmp_path_factory.mktemp("site")
    assert tools_site.build(site=folder / "site", source=folder / "source") == 0
    return folder / "site"


def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text("utf-8"), "html.parser")


def test_every_internal_link_and_anchor_leads_somewhere(site):
    files = [file for file in site.rglob("*.html") if "_static" not in file.parts]
    pages = {file: soup(file) for file in files}
    ids = {
        file: {tag["id"] for tag in page.select("[id]")} for file, page in pages.items()
    }
    followed, broken = 0, []
    for page, content in pages.items():
        for tag in content.select("[href], [src]"):
            url = urlsplit(tag.get("href") or tag.get("src"))
            if url.scheme or url.netloc:
                continue
            target = page.parent / unquote(url.path) if url.path else page
            target = target.resolve()
            followed += 1
            if not target.is_file():
                broken.append(f"{page.name}: {url.path}")
            elif url.fragment and unquote(url.fragment) not in ids[target]:
                broken.append(f"{page.name}: {url.path}#{url.fragment}")
    print(f"{followed} links in {len(pages)} pages")
    assert broken == []
    assert followed > 1000


def test_a_lesson_s_page(site):
    lesson = soup(site / "notebooks" / "01_summary.html")
    folded = [box for box in lesson.select("details") if "import" in box.text]
    assert folded, "setup and imports are folded"
    boxes = [
        box.get_text(" ", strip=True) for box in lesson.select("details.sd-dropdown")
    ]
    shown = lesson.get_text()
    assert sum(box.startswith("Hint 1") for box in boxes) == shown.count(".check(") > 3
    assert sum(box.startswith("Solution") for box in boxes) == shown.count(".check(")
    downloads = [a["href"] for a in lesson.select("a[href$='.ipynb']")]
    (stored,) = {site / "notebooks" / href for href in downloads if "_sources" in href}
    notebook = read_notebook(Path(stored))
    assert notebook == read_notebook(lesson_files(["01_summary"])[0]), "as it is stored"
    assert lesson.select_one(f"img[src='{BADGE}']")


def test_the_cheat_sheet_has_every_core_lesson_s_recipe(site):
    sheet = soup(site / "cheat_sheet.html").get_text()
    for file in lesson_files():
        short = next(c.source for c in read_notebook(file).cells if c.id == "in-short")
        code = short.split("```")[1].partition("\n")[2]
        assert code.strip() in sheet, lesson_name(file)


def test_a_warning_fails_the_build_and_what_ran_is_shown(tmp_path, monkeypatch, capsys):
    cells = [new_markdown_cell("# 01\n\n[gone](gone.ipynb)", id="title")]
    cells += [new_markdown_cell("## In short\n\nNothing.", id="in-short")]
    cells += [new_code_cell("print('just now')", id="run", outputs=[])]
    notebook = new_notebook(cells=cells)
    notebook.cells[2].outputs = [new_output("stream", text="just now\n")]
    monkeypatch.setattr(tools_site, "lesson_files", lambda names=(): [])
    folders = {"site": tmp_path / "site", "source": tmp_path / "source"}
    assert tools_site.build({"01_summary": notebook}, **folders) == 1
    assert "gone.ipynb" in capsys.readouterr().err
    page = (tmp_path / "site" / "notebooks" / "01_summary.html").read_text("utf-8")
    assert "just now" in page


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@needs_chromium
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_pages_fit_and_run_without_an_error(site, address, chromium, viewport):
    page = chromium.new_page(viewport=viewport)
    errors, elsewhere = [], []
    page.on("pageerror", lambda error: errors.append(f"{page.url}: {error}"))

    def answer(route):
        if not route.request.url.startswith(address):
            elsewhere.append(route.request.url)
            return route.fulfill(status=200, body="")
        return route.continue_()

    page.route("**/*", answer)
    too_wide = []
    for file in sorted(set(site.rglob("*.html")) - set(site.rglob("_static/**/*"))):
        page.goto(f"{address}/{file.relative_to(site).as_posix()}")
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > viewport["width"]:
            too_wide.append((file.name, width))
    page.close()
    assert errors == []
    assert too_wide == []
    assert set(elsewhere) <= {BADGE}, "nothing is loaded from elsewhere"


@needs_chromium
def test_search_finds_and_a_quiz_answers(address, chromium):
    page = chromium.new_page(viewport=DESK)
    page.route("**/colab-badge.svg", lambda route: route.abort())
    page.goto(f"{address}/search.html?q=weights_only")
    page.wait_for_selector("#search-results li a:has-text('Saving and loading')")
    page.goto(f"{address}/notebooks/01_summary.html")
    page.click(".Quiz .MCButton >> nth=0")
    feedback = page.locator(".Feedback").first
    assert feedback.inner_text().strip()
    page.close()
