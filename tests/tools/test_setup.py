"""The environment: made, completed, brought up to date, and no one else's touched.

All is real, make and pip included, in a small copy of the course: its torch and
torchvision are two modules of a line each, and pip is kept from the network.
"""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple

import pytest

from tools import ROOT

SCRIPT = ROOT / "tools" / "setup.py"


def write_wheel(folder, name, text="", version="1"):
    """A package of one line, ready to be installed."""
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": text,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: any",
        f"{about}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for place, content in files.items():
            wheel.writestr(place, content)


@pytest.fixture
def course(tmp_path):
    """A course that needs two tiny packages; its path has a space in it."""
    folder = tmp_path / "a course"
    (folder / "tools").mkdir(parents=True)
    # The disk of who runs this test is not the question.
    script = SCRIPT.read_text("utf-8").replace("NEEDED_GB = 7", "NEEDED_GB = 0")
    (folder / "tools" / "setup.py").write_text(script, "utf-8")
    # The command only says which Python runs it.
    makefile = (ROOT / "Makefile").read_text("utf-8")
    makefile += "\ntry: .venv/.complete\n\t@$(bin)/python -c 'import torch'\n"
    (folder / "Makefile").write_text(makefile, "utf-8")
    (folder / "requirements.txt").write_text("torch\n")
    (folder / "requirements-test.txt").write_text("torchvision\n")
    (folder / "requirements-site.txt").touch()
    (folder / "constraints.txt").write_text("torch==1\n")
    (tmp_path / "wheels").mkdir()
    write_wheel(tmp_path / "wheels", "torch")
    write_wheel(tmp_path / "wheels", "torchvision", "class ops: nms = None")
    return folder


def start(course, **variables):
    plain = {k: v for k, v in os.environ.items() if k[:4] not in ("PIP_", "MAKE")}
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(course.parent / "wheels")}
    return subprocess.Popen(
        ["make", "try", f"PYTHON={sys.executable}"],
        cwd=course,
        env=plain | offline | {"PIP_CONFIG_FILE": os.devnull} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def make(course, **variables):
    """The exit status of `make`, and all that it printed."""
    started = start(course, **variables)
    printed, _ = started.communicate(timeout=120)
    return started.returncode, printed


def test_set_up_by_two_commands_at_once_and_then_kept_up_to_date(course):
    (course / ".venv").mkdir()  # an empty folder will do
    both = [start(course), start(course)]
    printed = "".join(command.communicate(timeout=120)[0] for command in both)
    assert [command.returncode for command in both] == [0, 0], printed
    assert printed.count("Installing") == 1

    assert make(course) == (0, ""), "nothing to do"
    (course / "requirements.txt").touch()
    assert make(course) == (0, ""), "newer, but the same text"

    mine = course / ".venv" / "mine"
    mine.touch()
    (course / ".venv" / ".made-by-make").unlink()  # until 2026 the stamp alone said so
    write_wheel(course.parent / "wheels", "torch", version="2")
    (course / "constraints.txt").write_text("torch==2\n")
    code, printed = make(course)
    assert code == 0, printed
    assert list((course / ".venv").rglob("torch-2.dist-info"))
    assert mine.exists()

    python = course / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(course / "gone")  # as after an upgrade of the system
    code, printed = make(course)
    assert code == 0, printed
    assert python.exists()


def test_an_interrupted_set_up_is_completed_by_the_same_command(course):
    write_wheel(course.parent / "wheels", "torchvision", "class ops: nothing = None")
    code, printed = make(course)
    assert code != 0
    assert "AttributeError" in printed
    assert "torch and torchvision do not fit together" in printed

    # What stands in for an interrupt: all that the first command left, but half.
    shutil.rmtree(course / ".venv" / "bin")
    rest = course / ".venv" / "rest"
    rest.touch()
    write_wheel(course.parent / "wheels", "torchvision", "class ops: nms = None")
    code, printed = make(course)
    assert code == 0, printed
    assert not rest.exists()


def changes(folder):
    return {f: f.lstat().st_ctime_ns for f in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("kind", ["an environment", "a file"])
def test_an_environment_of_someone_else_is_not_touched(course, kind):
    env = course / ".venv"
    if kind == "a file":
        env.write_text("mine")
    else:
        (env / "bin").mkdir(parents=True)
        (env / "bin" / "python").symlink_to(sys.executable)
        (env / "pyvenv.cfg").write_text("mine")
    before = changes(env)
    code, printed = make(course)
    assert code != 0
    assert "leaves it alone. Rename it" in printed
    assert changes(env) == before


def test_without_a_network_it_says_so(course):
    code, printed = make(
        course,
        PIP_NO_INDEX="",
        PIP_FIND_LINKS="",
        PIP_RETRIES="0",
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
    )
    assert code != 0
    assert "If it reached no package index, check the network" in printed


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """The script as a module, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("setup", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stops(setup, folder, message):
    """It stops with one line that says so, and leaves nothing."""
    with pytest.raises(SystemExit, match=message) as stop:
        setup.bring_up_to_date(folder / ".venv" / ".complete", [])
    assert str(stop.value).startswith("Set-up stopped: ")
    assert len(str(stop.value).splitlines()) == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("version", [(3, 10, 14), (3, 14, 0)])
def test_a_python_that_will_not_do(setup, tmp_path, monkeypatch, version):
    monkeypatch.setattr(setup.sys, "version_info", version)
    stops(setup, tmp_path, r"Python 3\.1. was found, 3.11, 3.12 or 3.13 is needed")


def test_an_old_python_gets_as_far_as_the_message():
    ast.parse(SCRIPT.read_text("utf-8"), feature_version=(3, 7))


def test_no_venv_module(setup, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    stops(setup, tmp_path, "sudo apt install python3.*-venv")


def test_too_little_disk(setup, tmp_path, monkeypatch):
    disk = namedtuple("disk", "free")(1.25e9)
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: disk)
    stops(setup, tmp_path, r"1\.2 GB are free in .* GB are needed")
