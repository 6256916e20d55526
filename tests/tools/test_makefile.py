"""The Makefile's commands, with a stand-in for Python that says what it was given."""

import os
import subprocess

import pytest

from tools import ROOT

SAY = """#!/bin/sh
for name in CUDA_VISIBLE_DEVICES COURSE_OFFLINE OMP_NUM_THREADS; do
  eval "echo $name=[\\$$name]"
done
echo "python $*"
"""


def make(*words, **variables):
    # What a make around this one hands down would be printed too.
    plain = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    shown = subprocess.run(
        ["make", *words],
        cwd=ROOT,
        env=plain | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout


@pytest.fixture
def say(tmp_path):
    """What a command runs; no environment is made."""
    (tmp_path / "python").write_text(SAY)
    (tmp_path / "python").chmod(0o755)

    def say(target, *words):
        ready = ["--old-file=.venv/.complete", f"bin={tmp_path}"]
        return make(*ready, target, *words, CUDA_VISIBLE_DEVICES="0,1")

    return say


def test_make_help_lists_every_command_and_is_the_default():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (phony,) = [line for line in makefile.splitlines() if line.startswith(".PHONY:")]
    shown = make("help")
    listed = [line.split()[1] for line in shown.splitlines()]
    assert sorted(listed) == sorted(phony.split()[1:])
    assert make() == shown


def test_make_test_hides_gpus_and_says_so(say):
    printed = say("test")
    assert "CUDA_VISIBLE_DEVICES=[]\nCOURSE_OFFLINE=[1]\nOMP_NUM_THREADS=[1]" in printed
    assert "CUDA_VISIBLE_DEVICES=[0,1]" not in printed
    assert printed.startswith("On the CPU: a GPU is hidden from these tests")
    for command in ("ruff check .", "ruff format --check .", "tools.notebooks check"):
        assert f"\npython -m {command}\n" in printed
    assert "\npython -m pytest -n auto\n" in printed


def test_make_test_gpu_runs_the_lessons_on_gpus_and_compares_nothing(say):
    printed = say("test-gpu")
    assert "CUDA_VISIBLE_DEVICES=[0,1]\nCOURSE_OFFLINE=[1]" in printed
    assert "\npython -m pytest --nbval-lax notebooks\n" in printed


def test_make_course_make_deeper_and_the_rest_hand_on_what_they_are_given(say):
    assert "\npython -m tools.course\n" in say("course")
    assert "\npython -m tools.course deeper\n" in say("deeper")
    assert "\npython -m tools.site\n" in say("site")
    assert " --port 9999 " in say("lab", "PORT=9999")
    url = "https://github.com/you/your-copy"
    assert f"\npython -m tools.address {url}\n" in say("address", f"URL={url}")
