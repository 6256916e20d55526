"""Execute lessons and make pages of them.

    python -m tools.course [LESSON ...]     # the core lessons if left out
    python -m tools.course deeper           # or "01_summary", "deeper/01_..."

Each lesson runs in its own folder, in a kernel of this Python environment; its file is
never changed. build/ gets a page of each, and index.html. A lesson that fails does not
keep the others from running: its page holds the traceback, its cell and error are named
at the end, and the exit status is 1.
"""

import argparse
import asyncio
import html
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from tqdm import tqdm

from tools import NOTEBOOKS, ROOT, lesson_files, lesson_name, read_notebook

BUILD = ROOT / "build"
CELL_TIMEOUT_S = 600


def run(notebook: NotebookNode, file: Path, bar: tqdm) -> str:
    """Execute the notebook where its file stands; the bar moves on with each cell.

    Returns:
        "", or the cell and its error: "cell load-strict: ValueError: no".

    Raises:
        KeyboardInterrupt: Ctrl-C; the kernel has been stopped.
    """
    cell_id, interrupted = "(kernel start)", False

    def take_ctrl_c(**_: Any) -> None:
        """nbclient's own handler would make of Ctrl-C one more lesson that failed."""
        task = asyncio.current_task()

        def interrupt() -> None:
            nonlocal interrupted
            interrupted = True
            task.cancel()  # and nbclient stops the kernel on the way out

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)

    def begin(cell: NotebookNode, cell_index: int) -> None:
        nonlocal cell_id
        cell_id = cell.get("id", f"number {cell_index + 1}")
        bar.set_description(f"{lesson_name(file)}: {cell_id}")

    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=CELL_TIMEOUT_S,
        resources={"metadata": {"path": str(file.parent)}},
        # The kernel's own log: an error in a cell does not come this way.
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        on_notebook_start=take_ctrl_c,
        on_cell_execute=begin,
        on_cell_executed=lambda **_: bar.update(),
    )
    try:
        client.execute()
        return ""
    except CellExecutionError as error:
        what = f"{error.ename}: {error.evalue}"
    except (Exception, asyncio.CancelledError) as error:
        # A cell's time is up; the kernel died, or won't start; Ctrl-C
        if interrupted:
            raise KeyboardInterrupt from None
        what = f"{type(error).__name__}: {error}"
    return f"cell {cell_id}: {what.strip().splitlines()[-1]}"


def write_page(notebook: NotebookNode, lesson: str, build: Path) -> None:
    """Write the executed notebook's page, and the index of all pages that are there."""
    page, _ = HTMLExporter().from_notebook_node(
        notebook, {"metadata": {"name": lesson}}
    )
    page = re.sub(r'href="([\w./-]+)\.ipynb"', r'href="\1.html"', page)
    file = build / f"{lesson}.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")
    names = [path.relative_to(build).as_posix() for path in build.rglob("*.html")]
    links = [
        f'<li><a href="{html.escape(name)}">{html.escape(name[:-5])}</a>'
        for name in sorted(names, key=lambda name: (name.count("/"), name))
        if name != "index.html"
    ]
    head = '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Lessons</title>'
    text = f"{head}<h1>Lessons</h1><ul>{''.join(links)}</ul></html>\n"
    (build / "index.html").write_text(text, encoding="utf-8")


def run_all(files: Sequence[Path], build: Path) -> pd.DataFrame:
    """Run every notebook, write its page; a row each: lesson, result, seconds, ..."""
    notebooks = {file: read_notebook(file) for file in files}
    ends = {
        file: sum(cell.cell_type == "code" for cell in notebook.cells)
        for file, notebook in notebooks.items()
    }
    rows = []
    # disable=None: no bar in a log, where each of its steps would be a line
    with tqdm(total=sum(ends.values()), unit="cell", disable=None) as bar:
        done = 0
        for file, notebook in notebooks.items():
            lesson, start = lesson_name(file), time.perf_counter()
            failure = run(notebook, file, bar)
            seconds = time.perf_counter() - start
            result = "failed" if failure else "ok"
            rows.append((lesson, result, round(seconds, 1), failure))
            write_page(notebook, lesson, build)
            tqdm.write(f"{lesson}: {result}, {seconds:.1f} s")
            done += ends[file]
            bar.update(done - bar.n)  # the cells that a failure left out
    return pd.DataFrame(rows, columns=["lesson", "result", "seconds", "error"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status. Raises SystemExit for a lesson that is none."""
    parser = argparse.ArgumentParser("python -m tools.course", None, __doc__)
    parser.add_argument("lessons", nargs="*", metavar="LESSON")
    chosen = parser.parse_args(arguments)
    try:
        table = run_all(lesson_files(chosen.lessons, NOTEBOOKS), BUILD)
    except KeyboardInterrupt:
        sys.exit("\nStopped. The pages of the lessons finished so far are in build/.")
    print(f"\n{table.drop(columns='error').to_string(index=False)}\n")
    print(f"Pages: {BUILD / 'index.html'}")
    failed = table[table.result == "failed"]
    for lesson, error in zip(failed.lesson, failed.error, strict=True):
        print(f"FAILED {lesson}, {error}", file=sys.stderr)
    return 1 if len(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
