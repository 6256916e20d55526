"""Run the lessons as a learner does: in JupyterLab, in a browser.

    python -m tools.browser [LESSON ...]     # "01_summary"; all lessons if left out

Starts this environment's JupyterLab on a copy of the course without outputs, opens each
lesson in Chromium, restarts the kernel and runs all cells. A lesson fails when a cell
raises (those tagged raises-exception may), when a figure that the stored notebook has
does not appear, or after five minutes. Pictures go to build/browser/; the exit status
is 1 if a lesson failed. Chromium has to be installed: see `find_chromium`.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nbformat import NotebookNode
from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

from tools import NOTEBOOKS, ROOT, lesson_files, notebook_text, read_notebook

SHOTS = ROOT / "build" / "browser"
LESSON_TIMEOUT_S, START_TIMEOUT_S = 300, 60
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, MAX_HEIGHT = 1300, 8000  # of a picture; Chromium draws 16,384 pixels at most

SETTINGS = {
    # No question about news over the notebook
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # Every cell is in the page, not the visible ones alone; no empty space at its end
    "notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
}
NOTEBOOK = ".jp-NotebookPanel:not(.lm-mod-hidden)"
DIRTY = ".lm-DockPanel-tabBar .lm-mod-current.jp-mod-dirty"
# The copies come without numbers: one in a prompt is of this run. A star is not enough,
# as it also stands where the request was lost on the way to a kernel that restarts.
BEGUN = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
  .some((prompt) => /\\d/.test(prompt.textContent))"""
# All cells wait as [*] from the start; after an error those left go back to [ ].
FINISHED = """() => {
  const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
  const text = prompts.map((prompt) => prompt.textContent).join();
  return /\\d/.test(text) && !text.includes('*');
}"""
# Of every code cell: whether it shows a picture
FIGURES = """() => [...document.querySelectorAll('.jp-CodeCell')].map((cell) =>
  [...cell.querySelectorAll('.jp-OutputArea-output img')]
    .some((image) => image.naturalWidth > 0))"""


def find_chromium() -> str:
    """The Chromium to drive: $CHROMIUM, or the first on the PATH.

    Raises:
        SystemExit: there is none; says how to get it.
    """
    names = [name for name in (os.environ.get("CHROMIUM"), *CHROMIUMS) if name]
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    sys.exit(
        "No Chromium is installed. On Debian or Ubuntu: sudo apt install chromium. "
        "One that is not on the PATH: CHROMIUM=/path/to/chromium make test-browser"
    )


def copy_course(files: Sequence[Path], folder: Path) -> None:
    """Copy what lessons need, so that JupyterLab saves nothing into the course.

    The copies have no outputs: what the page shows afterwards is new.
    """
    for part in ("helpers", "data"):
        shutil.copytree(ROOT / part, folder / part)
    (folder / "notebooks").mkdir()
    for file in files:
        notebook = read_notebook(file)
        for cell in code_cells(notebook):
            cell.outputs, cell.execution_count = [], None
        (folder / "notebooks" / file.name).write_text(notebook_text(notebook), "utf-8")


@contextmanager
def jupyterlab(course: Path, home: Path) -> Iterator[str]:
    """A JupyterLab on `course`, with settings of its own in `home`; yields its address.

    Raises:
        SystemExit: it did not start; the end of its log says why.
    """
    for name, setting in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting), "utf-8")
    environment = {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--ServerApp.port_retries=0"]
    command += [f"--ServerApp.root_dir={course}", "--IdentityProvider.token="]
    command += ["--allow-root"] if os.geteuid() == 0 else []
    log = home / "jupyterlab.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command, env=os.environ | environment, stdout=out, stderr=out
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(f"{address}/api"):
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()  # it stops its kernels on the way
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def answers(url: str) -> bool:
    # No proxy: one that is set for the world outside does not know this server.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5):
            return True
    except OSError:
        return False


def click_menu(page: Page, menu: str, command: str) -> None:
    page.click(f".lm-MenuBar-itemLabel:text-is('{menu}')")
    page.click(f".lm-Menu-item[data-command='{command}']")


def restart_and_run_all(page: Page, tries: int = 3) -> None:
    """Start the run; now and then JupyterLab loses the command, or the kernel does.

    Raises:
        TimeoutError: not even the first cell has run.
    """
    for left in reversed(range(tries)):
        click_menu(page, "Run", "runmenu:restart-and-run-all")
        page.click(".jp-Dialog-button.jp-mod-accept")
        try:
            page.wait_for_function(BEGUN, timeout=40_000)
            return
        except TimeoutError:
            if not left:
                raise


def run_lesson(browser: Browser, address: str, file: Path, copy: Path) -> list[str]:
    """Restart and run all; returns what is wrong, nothing if all went well.

    Args:
        file: the stored notebook, which tells what figures there should be.
        copy: the one that JupyterLab opens, and saves.
    """
    page = browser.new_page(viewport={"width": WIDTH, "height": 1500})
    try:
        page.goto(f"{address}/lab/tree/notebooks/{copy.name}?reset")
        page.wait_for_selector(f"{NOTEBOOK} .jp-CodeCell", timeout=60_000)
        # A restart needs a kernel that is there.
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")
        restart_and_run_all(page)
        late = []
        try:
            page.wait_for_function(FINISHED, timeout=LESSON_TIMEOUT_S * 1000)
        except TimeoutError:
            late = [f"not finished after {LESSON_TIMEOUT_S} s"]
        page.wait_for_timeout(500)  # the last outputs are drawn
        figures = page.evaluate(FIGURES)
        click_menu(page, "File", "docmanager:save")
        page.wait_for_selector(DIRTY, state="detached")
        take_pictures(page, file.stem)
        click_menu(page, "Kernel", "kernelmenu:shutdown")  # its memory is needed
        return late + faults(read_notebook(file), read_notebook(copy), figures)
    except TimeoutError as error:
        page.screenshot(path=SHOTS / f"{file.stem}.png")
        return [f"JupyterLab did not get so far: {error.message.splitlines()[0]}"]
    finally:
        page.close()


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


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
    return wrong


def take_pictures(page: Page, lesson: str) -> None:
    """build/browser/LESSON.png; LESSON-2.png and so on hold the rest of a long one."""
    for old in SHOTS.glob(f"{lesson}*.png"):
        old.unlink()
    panel = page.locator(f"{NOTEBOOK} .jp-WindowedPanel-outer")
    height, seen = panel.evaluate("panel => [panel.scrollHeight, panel.clientHeight]")
    frame = page.viewport_size["height"] - seen
    page.set_viewport_size({"width": WIDTH, "height": min(height + frame, MAX_HEIGHT)})
    page.wait_for_timeout(500)  # the page is laid out anew
    seen = panel.evaluate("panel => panel.clientHeight")
    for number, top in enumerate(range(0, height, seen), start=1):
        panel.evaluate("(panel, top) => { panel.scrollTop = top; }", top)
        suffix = f"-{number}" if number > 1 else ""
        page.screenshot(path=SHOTS / f"{lesson}{suffix}.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    description, *_ = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser("python -m tools.browser", None, description)
    parser.add_argument("lessons", nargs="*", metavar="LESSON")
    files = lesson_files(parser.parse_args(arguments).lessons, NOTEBOOKS)
    chromium = find_chromium()
    SHOTS.mkdir(parents=True, exist_ok=True)
    sandbox = os.geteuid() != 0  # Chromium refuses to have one as root

    failed = False
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        course, home = Path(folder, "course"), Path(folder, "home")
        copy_course(files, course)
        browser = playwright.chromium.launch(
            executable_path=chromium, chromium_sandbox=sandbox
        )
        with jupyterlab(course, home) as address:
            for file in files:
                start = time.monotonic()
                copy = course / "notebooks" / file.name
                wrong = run_lesson(browser, address, file, copy)
                seconds = time.monotonic() - start
                print(f"{file.stem}: {'failed' if wrong else 'ok'}, {seconds:.0f} s")
                for fault in wrong:
                    print(f"  {file.stem}, {fault}", flush=True)
                failed = failed or bool(wrong)
        browser.close()
    print(f"Pictures: {SHOTS}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
