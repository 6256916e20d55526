"""Execute lessons, and make the site of what ran.

    python -m tools.course [LESSON ...]     # the core lessons if left out
    python -m tools.course deeper           # or "01_summary", "deeper/01_..."

Each lesson runs in its own folder, in a kernel of this Python environment; its file is
never changed. The site's pages show what came of it, and other lessons as stored. A
lesson that fails does not keep the others from running: its page holds the traceback,
its cell and error are named at the end, and the exit status is 1.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from tqdm import tqdm

from tools import NOTEBOOKS, lesson_files, lesson_name, read_notebook, site

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


def run_all(files: Sequence[Path]) -> tuple[pd.DataFrame, dict[str, NotebookNode]]:
    """Run every notebook: a row each (lesson, result, ...), and the notebooks."""
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
            tqdm.write(f"{lesson}: {result}, {seconds:.1f} s")
            done += ends[file]
            bar.update(done - bar.n)  # the cells that a failure left out
    table = pd.DataFrame(rows, columns=["lesson", "result", "seconds", "error"])
    return table, {lesson_name(file): notebook for file, notebook in notebooks.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status. Raises SystemExit for a lesson that is none."""
    parser = argparse.ArgumentParser("python -m tools.course", None, __doc__)
    parser.add_argument("lessons", nargs="*", metavar="LESSON")
    chosen = parser.parse_args(arguments)
    try:
        table, executed = run_all(lesson_files(chosen.lessons, NOTEBOOKS))
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
    print(f"\n{table.drop(columns='error').to_string(index=False)}\n")
    status = site.build(executed)
    print(f"Pages: {site.SITE / 'index.html'}")
    failed = table[table.result == "failed"]
    for lesson, error in zip(failed.lesson, failed.error, strict=True):
        print(f"FAILED {lesson}, {error}", file=sys.stderr)
    return 1 if len(failed) else status


if __name__ == "__main__":
    sys.exit(main())
