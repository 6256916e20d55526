"""tools/setup.py, the Makefile: a set-up that can't work says so, and leaves nothing.

Each test gives setup.py a course folder of its own. But for the one that meets a closed
network, no environment is made: a stand-in takes the commands that setup.py would run.
"""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import pytest

from tools import ROOT

SCRIPT = ROOT / "tools" / "setup.py"
Disk = namedtuple("Disk", "free")


class Commands:
    """In place of the module `subprocess`: makes the environment, installs nothing."""

    DEVNULL, CalledProcessError = subprocess.DEVNULL, subprocess.CalledProcessError

    def __init__(self):
        self.ran, self.fail_at = [], None  # "venv", "download", "install", "import"

    def call(self, command, **_):
        kinds = ("venv", "download", "install", "import")
        words = " ".join(command).split()
        kind = next((kind for kind in kinds if kind in words), "works")
        self.ran.append(kind)
        if kind == "venv":
            python = os.path.join(command[-1], "bin", "python")  # noqa: PTH118
            os.makedirs(os.path.dirname(python))  # noqa: PTH103, PTH120
            shutil.copy(shutil.which("true"), python)
        if self.fail_at == (kind, "interrupt"):
            raise KeyboardInterrupt
        return int(self.fail_at == kind)

    def run(self, command, check=False, **_):
        code = self.call(command)
        if check and code:
            raise subprocess.CalledProcessError(code, command)
        return SimpleNamespace(returncode=code)


@pytest.fixture
def course(tmp_path):
    """A course folder with setup.py and the files that it reads."""
    (tmp_path / "tools").mkdir()
    shutil.copy(SCRIPT, tmp_path / "tools")
    for name in ("requirements.txt", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.fixture
def commands():
    return Commands()


@pytest.fixture
def setup(course, commands, monkeypatch):
    """The script as a module, on a machine where everything is as it should be."""
    spec = importlib.util.spec_from_file_location(
        "setup", course / "tools" / "setup.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "subprocess", commands)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Disk(free=50e9))
    return module


def run(setup):
    setup.main(".venv", "constraints.txt")


def stops(setup, message):
    """It stops with one line that says so, and the exit status is not 0."""
    with pytest.raises(SystemExit, match=message) as stop:
        run(setup)
    assert str(stop.value).startswith("Set-up stopped: ")
    assert len(str(stop.value).splitlines()) == 1


@pytest.mark.parametrize("version", [(3, 8), (3, 10), (3, 14)])
def test_a_wrong_python(setup, course, commands, monkeypatch, version):
    fake = SimpleNamespace(version_info=(*version, 0), exit=sys.exit)
    monkeypatch.setattr(setup, "sys", fake)
    stops(
        setup,
        "Python 3.{} was found, 3.11, 3.12 or 3.13 is needed".format(*version[1:]),
    )
    assert not (course / ".venv").exists()
    assert commands.ran == []


def test_an_old_python_gets_as_far_as_the_message():
    ast.parse(SCRIPT.read_text("utf-8"), feature_version=(3, 7))


def test_no_venv_module(setup, course, monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    stops(setup, "sudo apt install python3.*-venv")
    assert not (course / ".venv").exists()


def test_too_little_disk(setup, course, monkeypatch):
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: Disk(free=1.25e9))
    stops(setup, r"1\.2 GB are free in .* GB are needed")
    assert not (course / ".venv").exists()


def test_an_environment_that_can_not_be_made(setup, course, commands):
    commands.fail_at = "venv"
    stops(setup, "could not make a virtual environment")
    assert not (course / ".venv").exists()


def test_no_network(course):
    """The real thing, up to pip's first look at an index that does not answer."""
    closed = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_CONFIG_FILE": os.devnull,
    }
    plain = {key: value for key, value in os.environ.items() if key[:4] != "PIP_"}
    # The disk of who runs this test is not the question.
    script = course / "tools" / "setup.py"
    script.write_text(
        script.read_text("utf-8").replace("NEEDED_GB = 7", "NEEDED_GB = 0")
    )
    ran = subprocess.run(
        [sys.executable, "tools/setup.py", ".venv", "constraints.txt"],
        cwd=course,
        env=plain | closed,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert "pip reaches no package index" in line
    assert not (course / ".venv").exists()


def test_set_up_once_then_at_once(setup, commands, capsys):
    run(setup)
    assert commands.ran == ["venv", "download", "install", "import"]
    commands.ran.clear()
    capsys.readouterr()
    run(setup)
    assert commands.ran == ["works"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name", ["requirements.txt", "pyproject.toml", "constraints.txt"]
)
def test_changed_requirements_are_installed(setup, course, commands, name):
    run(setup)
    commands.ran.clear()
    (course / name).write_text("changed")
    run(setup)
    assert commands.ran == ["works", "download", "install", "import"]


def test_requirements_that_do_not_install_are_tried_again(setup, course, commands):
    run(setup)
    (course / "requirements.txt").write_text("changed")
    commands.fail_at = "install"
    stops(setup, "pip could not install everything")
    (course / "requirements.txt").write_text("requirements.txt")  # as it was
    commands.fail_at = None
    commands.ran.clear()
    run(setup)
    assert "install" in commands.ran, "what pip left half-way is not trusted"


@pytest.mark.parametrize(
    "fault",
    ["install", "import", ("install", "interrupt"), ("import", "interrupt")],
)
def test_an_unfinished_environment_is_made_again(setup, course, commands, fault):
    commands.fail_at = fault
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        run(setup)
    assert not (course / ".venv" / ".complete").exists()
    (course / ".venv" / "rest").touch()
    commands.fail_at = None
    commands.ran.clear()
    run(setup)
    assert commands.ran == ["venv", "download", "install", "import"]
    assert not (course / ".venv" / "rest").exists()


def test_an_environment_whose_python_is_gone_is_made_again(setup, course, commands):
    run(setup)
    (course / ".venv" / "bin" / "python").unlink()
    commands.ran.clear()
    run(setup)
    assert "venv" in commands.ran


def test_make_help_lists_every_command():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = [line for line in makefile.splitlines() if line.startswith(".PHONY:")]
    # What a make around this one hands down would be printed too.
    plain = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    shown = subprocess.run(
        ["make", "help"],
        cwd=ROOT,
        env=plain,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    listed = [
        line.split()[1] for line in shown.splitlines() if line.split()[0] == "make"
    ]
    assert sorted(listed) == sorted(phony.split()[1:])
    by_default = subprocess.run(
        ["make"], cwd=ROOT, env=plain, capture_output=True, text=True, check=True
    ).stdout
    assert by_default == shown
