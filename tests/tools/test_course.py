"""tools.course: a failing lesson keeps no other from running, and nothing is hidden."""

import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import ROOT, all_notebooks, course, lesson_files


def write(file, *sources, **metadata):
    cells = [
        new_code_cell(source, id=f"cell-{number}", metadata=metadata)
        for number, source in enumerate(sources)
    ]
    links = "[next](02_passes.ipynb) [deeper](deeper/02_more.ipynb)"
    cells.append(new_markdown_cell(f"# It\n\n{links}", id="title"))
    file.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), file)


@pytest.fixture
def lessons(tmp_path, monkeypatch):
    """Two lessons, of which the first fails, and a deeper one."""
    folder = tmp_path / "notebooks"
    write(folder / "01_fails.ipynb", "print('so far')", "{}['absent']", "print('more')")
    write(folder / "02_passes.ipynb", "1 / 0", tags=["raises-exception"])
    write(
        folder / "deeper" / "02_more.ipynb", "import pathlib; pathlib.Path.cwd().name"
    )
    write(folder / ".ipynb_checkpoints" / "01_fails-checkpoint.ipynb", "1 / 0")
    monkeypatch.setattr(course, "NOTEBOOKS", folder)
    monkeypatch.setattr(course.site, "build", built)
    return folder


def built(executed):
    """Stands for the site's builder: what it is given, as text."""
    built.given = {name: str(notebook) for name, notebook in executed.items()}
    return 0


def test_the_others_run_and_the_failure_is_named(lessons, capsys):
    before = {file: file.read_bytes() for file in lessons.rglob("*.ipynb")}

    assert course.main([]) == 1

    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "FAILED 01_fails, cell cell-1: KeyError: 'absent'"
    rows = [line.split() for line in out.splitlines()]
    assert ["01_fails", "failed"] in [row[:2] for row in rows]
    assert ["02_passes", "ok"] in [row[:2] for row in rows]
    assert {file: file.read_bytes() for file in lessons.rglob("*.ipynb")} == before
    assert "so far" in built.given["01_fails"]
    assert "KeyError" in built.given["01_fails"]
    assert "02_passes" in built.given

    assert course.main(["deeper"]) == 0
    assert "'deeper'" in built.given["deeper/02_more"], "it ran in its own folder"


def test_lessons_by_name(lessons):
    def names(*wanted):
        return [str(f.relative_to(lessons)) for f in lesson_files(wanted, lessons)]

    assert names() == ["01_fails.ipynb", "02_passes.ipynb"]
    assert names("deeper") == ["deeper/02_more.ipynb"]
    assert names("02_passes", "notebooks/deeper/02_more.ipynb") == [
        *("02_passes.ipynb", "deeper/02_more.ipynb")
    ]
    assert len(all_notebooks(lessons)) == 3
    found = "There are: 01_fails, 02_passes, deeper/02_more[.]"
    with pytest.raises(SystemExit, match=f"No such lesson: 09_x[.] {found}"):
        names("09_x")
    (lessons / "ko").mkdir()
    with pytest.raises(SystemExit, match="There are no lessons"):
        names("ko")


def test_ctrl_c_stops_the_lesson_its_kernel_and_the_rest(lessons, tmp_path):
    write(
        lessons / "01_fails.ipynb",
        "import os, time\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(600)",
    )
    program = (
        "from pathlib import Path\nfrom tools import course\n"
        f"course.NOTEBOOKS = Path({str(lessons)!r})\ncourse.main([])"
    )
    command = [sys.executable, "-c", program]
    pid = tmp_path / "pid"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        while not (pid.exists() and pid.read_text()):
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert err.splitlines()[-1].startswith("Stopped.")
    assert "FAILED" not in err
    assert not psutil.pid_exists(int(pid.read_text()))
