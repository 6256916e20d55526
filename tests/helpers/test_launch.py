"""helpers.launch: output comes back, failures speak, and no process is left behind."""

import os
import re
import subprocess
import sys
import time

import psutil
import pytest

from helpers.launch import LaunchError, Program, launch
from tools import ROOT

HANGS = """
import os, sys, time
line = f"rank {os.environ['RANK']} {os.getpid()}\\n"
print(line, end="", flush=True)  # in one piece: two ranks' lines must not mix
time.sleep(600)
"""


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


@pytest.fixture
def hanging(tmp_path):
    """A script of two ranks that never end, and its command.

    Its folder has a space, a quote and a letter that is not English in its name.
    """
    script = tmp_path / "l'été à moi" / "hangs.py"
    script.parent.mkdir()
    script.write_text(HANGS)
    return ["torchrun", "--standalone", "--nproc-per-node=2", script]


def pids(output):
    """Of the ranks that have said theirs; a line may be half there."""
    return [int(pid) for pid in re.findall(r"rank \d (\d+)\n", output)]


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


def test_output_comes_back_and_helpers_can_be_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = "import helpers.models, os, sys; print(os.environ['WORD'], sys.argv[1])"
    said = launch(["python", "-c", program, "two  words; é"], WORD="hello")
    assert said == "hello two  words; é\n"


def test_one_thread_each_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    command = ["python", "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"]
    assert launch(command) == "1\n"
    assert launch(command, OMP_NUM_THREADS="2") == "2\n"


def test_a_failure_says_the_command_the_code_and_the_traceback():
    program = "import sys; print(1, file=sys.stderr); sys.exit(3)"
    with pytest.raises(LaunchError, match=r"exit code 3: \['python', '-c'") as error:
        launch(["python", "-c", program])
    assert "\n1" in str(error.value)


def test_a_hang_is_stopped_with_all_its_workers(hanging):
    program = Program(hanging)
    wait_for(lambda: len(pids(program.output())) == 2)
    ranks = pids(program.output())
    with pytest.raises(LaunchError, match=r"stopped after 0\.5 s"):
        program.wait(timeout_s=0.5)
    assert not program.running()
    assert all(gone(pid) for pid in ranks)


def test_leaving_the_block_ends_the_workers_even_if_torchrun_was_killed(hanging):
    with Program(hanging) as program:
        wait_for(lambda: len(pids(program.output())) == 2)
        ranks = pids(program.output())
        assert {worker.pid for worker in program.workers()} >= set(ranks)
        os.kill(program.pid, 9)
        wait_for(lambda: not program.running())
    assert all(gone(pid) for pid in ranks)


def test_a_program_that_nobody_stopped_ends_with_its_parent(hanging):
    code = f"""
import time
from helpers.launch import Program
program = Program({[*map(str, hanging)]!r})
while "rank 1" not in program.output() or "rank 0" not in program.output():
    time.sleep(0.05)
time.sleep(0.2)
print(program.output())
"""
    command = [sys.executable, "-c", code]  # not launch(), which would end them itself
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ranks = pids(done.stdout)
    assert len(ranks) == 2
    assert all(gone(pid) for pid in ranks)


def test_waiting_costs_next_to_nothing():
    """A benchmark that is waited for has the cores for itself."""
    with Program(["python", "-c", "import time; time.sleep(3)"]) as program:
        before = time.process_time()
        program.wait()
        assert time.process_time() - before < 0.1


@pytest.mark.parametrize("command", [[], "python x.py", ""])
def test_a_command_is_a_list(command):
    with pytest.raises(TypeError, match="should be a list of arguments"):
        launch(command)
