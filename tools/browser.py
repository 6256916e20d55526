"""Run lessons as a learner does: in JupyterLab, in a browser.

    python -m tools.browser [LESSON ...]     # the core lessons if left out; or "deeper"

Starts this environment's JupyterLab on a copy of the course without outputs, opens each
lesson in Chromium and runs all cells in a fresh kernel. A lesson fails when a cell
raises (those tagged raises-exception may), when a figure, a quiz or a rank's output
that the stored notebook has does not appear, or after five minutes. Pictures go to
build/browser/; the exit status is 1 if a lesson failed. Chromium is $CHROMIUM, or the
first on the PATH.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nbformat import NotebookNode
from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

from tools import ROOT, lesson_files, lesson_name, notebook_text, read_notebook

SHOTS = ROOT / "build" / "browser"
LESSON_TIMEOUT_S, START_TIMEOUT_S = 300, 60
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SETTINGS = {
    # No question about news over the notebook
    "apputils-extension/notification": {"fetchNews": "false"},
    # Every cell is in the page, not the visible ones alone
    "notebook-extension/tracker": {"windowingMode": "none"},
}
NOTEBOOK = ".jp-NotebookPanel:not(.lm-mod-hidden)"
DIRTY = ".lm-DockPanel-tabBar .lm-mod-current.jp-mod-dirty"
# The copies come without numbers: one in a prompt is of this run. All cells wait as [*]
# from the start; after an error those left go back to [ ].
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]"
TEXT = f"{PROMPTS}.map((prompt) => prompt.textContent).join()"
BEGUN, FINISHED = rf"/\d/.test({TEXT})", rf"/\d/.test({TEXT}) && !{TEXT}.includes('*')"
# Of every code cell: whether it shows a picture
FIGURES = """() => [...document.querySelectorAll('.jp-CodeCell')].map((cell) =>
  [...cell.querySelectorAll('.jp-OutputArea-output img')]
    .some((image) => image.naturalWidth > 0))"""


def find_chromium() -> str:
    """Raises SystemExit, with what to do, if there is none."""
    names = [os.environ.get("CHROMIUM") or "", *CHROMIUMS]
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    sys.exit(
        "No Chromium is installed. On Debian or Ubuntu: sudo apt install chromium. "
        "One that is not on the PATH: CHROMIUM=/path/to/chromium make test-browser"
    )


def copy_course(folder: Path) -> None:
    """Copy the course, its notebooks without outputs: what a page shows then is new."""
    others = shutil.ignore_patterns(".*", "build", "checkpoints", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=others)
    for file in folder.glob("notebooks/**/*.ipynb"):
        notebook = read_notebook(file)
        for cell in code_cells(notebook):
            cell.outputs, cell.execution_count = [], None
        file.write_text(notebook_text(notebook), "utf-8")


def listens(about: Path) -> bool:
    """Whether the server has written this file about itself and can be reached."""
    try:
        port = json.loads(about.read_text())["port"]
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except (OSError, ValueError):  # no file; half of one; nobody there yet
        return False


@contextmanager
def jupyterlab(course: Path, home: Path) -> Iterator[tuple[str, str]]:
    """A JupyterLab on `course`, with settings of its own in `home`.

    Yields:
        its address, with a "/" at the end, and the random token that it has made.

    Raises:
        SystemExit: it did not start; the end of its log says why.
    """
    for name, setting in SETTINGS.items():
        file = home / f"lab/user-settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting), "utf-8")
    environment = {
        "JUPYTER_CONFIG_DIR": str(home),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "COURSE_CHECKPOINTS": str(home / "checkpoints"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--ServerApp.root_dir={course}"]
    command += ["--allow-root"] if os.geteuid() == 0 else []
    log = home / "jupyterlab.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command, env=os.environ | environment, stdout=out, stderr=out
        )
    try:
        about = home / "runtime" / f"jpserver-{server.pid}.json"
        deadline = time.monotonic() + START_TIMEOUT_S
        while not listens(about):
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        info = json.loads(about.read_text())
        yield info["url"], info["token"]
    finally:
        server.terminate()  # it stops its kernels on the way
        server.wait()


def click_menu(page: Page, menu: str, command: str) -> None:
    page.click(f".lm-MenuBar-itemLabel:text-is('{menu}')")
    page.click(f".lm-Menu-item[data-command='{command}']")


def run_lesson(browser: Browser, url: str, stored: Path, copy: Path) -> list[str]:
    """Run all cells; returns what is wrong, nothing if all went well.

    Args:
        url: the page of the copy, which JupyterLab opens and saves.
        stored: the notebook as it is, which tells what figures there should be.
    """
    page = browser.new_page(viewport={"width": 1300, "height": 1500})
    shot = SHOTS / f"{lesson_name(stored).replace('/', '-')}.png"
    try:
        page.goto(url)
        page.wait_for_selector(f"{NOTEBOOK} .jp-CodeCell", timeout=60_000)
        # The toolbar says "idle" before there is a kernel.
        page.wait_for_selector(".jp-StatusBar-Left :text('| Idle')", timeout=60_000)
        # Not "restart and run all": now and then the kernel loses the request.
        click_menu(page, "Run", "runmenu:run-all")
        page.wait_for_function(BEGUN, timeout=60_000)
        page.wait_for_function(FINISHED, timeout=LESSON_TIMEOUT_S * 1000)
        page.wait_for_timeout(500)  # the last outputs are drawn
        figures = page.evaluate(FIGURES)
        wrong = quiz_faults(page, read_notebook(stored))
        click_menu(page, "File", "docmanager:save")
        page.wait_for_selector(DIRTY, state="detached")
        panel = page.locator(f"{NOTEBOOK} .jp-WindowedPanel-outer")
        height = panel.evaluate("panel => panel.scrollHeight")
        # Chromium draws 16,384 pixels at most.
        page.set_viewport_size({"width": 1300, "height": min(height + 100, 16_000)})
        panel.evaluate("panel => panel.scrollTo(0, 0)")
        page.wait_for_timeout(2000)  # the page is laid out again
        click_menu(page, "Kernel", "kernelmenu:shutdown")  # its memory is needed
        return wrong + faults(read_notebook(stored), read_notebook(copy), figures)
    except TimeoutError as error:  # the picture shows how far it got
        return [f"not finished: {error.message.splitlines()[0]}"]
    finally:
        page.screenshot(path=shot)
        page.close()


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def quiz_faults(page: Page, stored: NotebookNode) -> list[str]:
    """Whether each quiz is there, and the first answers a click."""
    quizzes = sum("ex.quiz(" in cell.source for cell in code_cells(stored))
    shown = page.locator(f"{NOTEBOOK} .jp-CodeCell:has(.Quiz)")
    if shown.count() != quizzes:
        return [f"{shown.count()} quizzes are shown, not {quizzes}"]
    if quizzes:
        shown.first.locator(".MCButton").first.click()
        if not page.locator(f"{NOTEBOOK} .Feedback").first.inner_text().strip():
            return ["the quiz does not answer"]
    return []


def ranks(cell: NotebookNode) -> set[str]:
    """The ranks whose output stands below a `%%px` cell: "[stdout:0]", ..."""
    text = "".join(out.get("text", "") for out in cell.outputs)
    return set(re.findall(r"\[stdout:\d+\]", text))


def faults(
    stored: NotebookNode, saved: NotebookNode, figures: Sequence[bool]
) -> list[str]:
    """What is wrong with the notebook that JupyterLab ran and saved.

    Args:
        stored: the notebook as the course has it.
        figures: for each code cell, whether the page showed a picture.
    """
    wrong = []
    cells = zip(code_cells(stored), code_cells(saved), figures, strict=True)
    for before, after, shown in cells:
        errors = [out for out in after.outputs if out.output_type == "error"]
        if errors and "raises-exception" not in before.metadata.get("tags", []):
            last_line = f"{errors[0].ename}: {errors[0].evalue}".splitlines()[-1]
            return [*wrong, f"cell {before.id}: {last_line}"]  # the rest did not run
        if after.execution_count is None:
            return [*wrong, f"cell {before.id}: not run"]
        if not shown and any("image/png" in o.get("data", {}) for o in before.outputs):
            wrong.append(f"cell {before.id}: the figure is missing")
        if ranks(before) - ranks(after):
            wrong.append(f"cell {before.id}: a rank's output is missing")
    return wrong


def main(names: Sequence[str]) -> int:
    """Returns the exit status."""
    files, chromium, failed = lesson_files(names), find_chromium(), False
    SHOTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        course, home = Path(folder) / "course", Path(folder) / "home"
        home.mkdir()
        copy_course(course)
        browser = playwright.chromium.launch(
            executable_path=chromium,
            chromium_sandbox=os.geteuid() != 0,  # Chromium refuses to have one as root
        )
        with jupyterlab(course, home) as (address, token):
            for file in files:
                start, place = time.monotonic(), file.relative_to(ROOT)
                url = f"{address}lab/tree/{place}?reset&token={token}"
                wrong = run_lesson(browser, url, file, course / place)
                seconds = time.monotonic() - start
                print(f"{place}: {'failed' if wrong else 'ok'}, {seconds:.0f} s")
                for fault in wrong:
                    print(f"  {fault}", flush=True)
                failed = failed or bool(wrong)
        browser.close()
    print(f"Pictures: {SHOTS}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
