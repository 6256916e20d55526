"""Execute the lessons and make pages of them.

    python -m tools.course [LESSON ...]     # "01_summary"; all lessons if left out

Each lesson runs in notebooks/, in a kernel of this Python environment. build/notebooks/
gets the executed notebooks, build/ a page of each and index.html; notebooks/ itself is
never changed. A lesson that fails does not keep the others from running: its page holds
the traceback, its cell and error are named at the end, and the exit status is 1.
"""

import argparse
import asyncio
import html
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from tqdm import tqdm

from helpers import storage
from tools import NOTEBOOKS, ROOT, NotebookError, lesson_files, read_notebook

BUILD = ROOT / "build"
CELL_TIMEOUT_S = 600

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Lessons</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; }}
  table {{ border-collapse: collapse; width: 100%; }}
  th, td {{ padding: .4rem .8rem; border-bottom: 1px solid #ccc; text-align: left; }}
  .number {{ text-align: right; }}
  .failed {{ font-weight: bold; color: #b00020; }}
</style>
<h1>Lessons</h1>
<table>
<tr><th>Lesson</th><th class="number">Seconds</th><th>Result</th></tr>
{rows}
</table>
</html>
"""
ROW = """<tr><td><a href="{name}.html">{title}</a></td>\
<td class="number">{seconds:.1f}</td><td class="{result}">{result}</td></tr>"""


@dataclass
class Result:
    name: str
    title: str
    seconds: float
    failure: str = ""  # "cell load-strict: ValueError: ..."

    @property
    def word(self) -> str:
        return "failed" if self.failure else "ok"


class Client(NotebookClient):
    """Runs a lesson, moves the bar on, and knows the cell it has come to."""

    def __init__(self, notebook: NotebookNode, lesson: str, folder: Path, bar: tqdm):
        super().__init__(
            notebook,
            kernel_name="python3",
            timeout=CELL_TIMEOUT_S,
            resources={"metadata": {"path": str(folder)}},
            # The kernel's own log: an error in a cell does not come this way.
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            on_notebook_start=self._take_ctrl_c,
            on_cell_execute=self._begin,
            on_cell_executed=lambda **_: bar.update(),
        )
        self.lesson, self.bar, self.cell_id = lesson, bar, "(kernel start)"
        self.interrupted = False

    def _take_ctrl_c(self, notebook: NotebookNode) -> None:
        """nbclient's own handler would make of Ctrl-C one more lesson that failed."""
        task = asyncio.current_task()

        def interrupt() -> None:
            self.interrupted = True
            task.cancel()  # and nbclient stops the kernel on the way out

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)

    def _begin(self, cell: NotebookNode, cell_index: int) -> None:
        self.cell_id = cell.get("id", f"number {cell_index + 1}")
        self.bar.set_description(f"{self.lesson}: {self.cell_id}")


def run(notebook: NotebookNode, lesson: str, folder: Path, bar: tqdm) -> Result:
    """Execute the notebook in place, all its outputs up to an error included.

    Raises:
        KeyboardInterrupt: Ctrl-C; the kernel has been stopped.
    """
    client = Client(notebook, lesson, folder, bar)
    failure, start = "", time.perf_counter()
    try:
        client.execute()
    except CellExecutionError as error:
        failure = f"{error.ename}: {error.evalue}"
    except asyncio.CancelledError:  # Ctrl-C while the kernel was starting
        raise KeyboardInterrupt from None
    except Exception as error:  # a cell's time is up; the kernel died, or won't start
        if client.interrupted:
            raise KeyboardInterrupt from None
        failure = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    if failure:
        last_line = failure.strip().splitlines()[-1]
        failure = f"cell {client.cell_id}: {last_line}"
    return Result(lesson, title(notebook, lesson), seconds, failure)


def title(notebook: NotebookNode, otherwise: str) -> str:
    """The notebook's first heading."""
    lines = (line for cell in notebook.cells for line in cell.source.splitlines())
    return next((line[2:].strip() for line in lines if line[:2] == "# "), otherwise)


def write_page(notebook: NotebookNode, result: Result, build: Path) -> None:
    """Write the executed notebook and its page."""
    nbformat.write(notebook, build / "notebooks" / f"{result.name}.ipynb")
    page, _ = HTMLExporter().from_notebook_node(
        notebook, {"metadata": {"name": result.title}}
    )
    page = re.sub(r'href="([\w-]+)\.ipynb"', r'href="\1.html"', page)  # "next lesson"
    (build / f"{result.name}.html").write_text(page, encoding="utf-8")


def write_index(results: Sequence[Result], build: Path) -> None:
    rows = [
        ROW.format(
            name=html.escape(result.name),
            title=html.escape(result.title),
            seconds=result.seconds,
            result=result.word,
        )
        for result in results
    ]
    (build / "index.html").write_text(PAGE.format(rows="\n".join(rows)), "utf-8")


def checkpoints(lesson: str) -> str:
    """The folder that has the lesson's checkpoints, or "": none is made for looking."""
    root = os.environ.get(storage.VARIABLE) or storage.COURSE / "checkpoints"
    folder = Path(root).expanduser().absolute() / lesson
    return str(folder) if folder.is_dir() and any(folder.iterdir()) else ""


def table(results: Sequence[Result]) -> str:
    width = max(len(result.name) for result in results)
    lines = [f"{'lesson':{width}}  result  seconds  checkpoints"]
    lines += [
        f"{result.name:{width}}  {result.word:6}  {result.seconds:7.1f}  "
        f"{checkpoints(result.name)}".rstrip()
        for result in results
    ]
    return "\n".join(lines)


def run_all(files: Sequence[Path], build: Path) -> list[Result]:
    """Run every notebook where it stands; write pages and the index into `build`."""
    (build / "notebooks").mkdir(parents=True, exist_ok=True)
    notebooks = {file: read_notebook(file) for file in files}
    counts = {
        file: sum(cell.cell_type == "code" for cell in notebook.cells)
        for file, notebook in notebooks.items()
    }
    results: list[Result] = []
    # disable=None: no bar in a log, where each of its steps would be a line
    with tqdm(total=sum(counts.values()), unit="cell", disable=None) as bar:
        done = 0
        for file, notebook in notebooks.items():
            result = run(notebook, file.stem, file.parent, bar)
            results.append(result)
            write_page(notebook, result, build)
            write_index(results, build)
            tqdm.write(f"{result.name}: {result.word}, {result.seconds:.1f} s")
            done += counts[file]
            bar.update(done - bar.n)  # the cells that a failure left out
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status. Raises SystemExit for a lesson that is none."""
    description, *_ = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser("python -m tools.course", None, description)
    parser.add_argument("lessons", nargs="*", metavar="LESSON")
    chosen = parser.parse_args(arguments)
    try:
        results = run_all(lesson_files(chosen.lessons, NOTEBOOKS), BUILD)
    except NotebookError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nStopped. The lessons finished so far are in build/.")
    failed = [result for result in results if result.failure]
    print(f"\n{table(results)}\n\nPages: {BUILD / 'index.html'}")
    for result in failed:
        print(f"FAILED {result.name}, {result.failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
