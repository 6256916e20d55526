"""`start_ranks`, in a real kernel, and `run_on_ranks`; each start costs about 10 s."""

import re
import runpy
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from jupyter_client.manager import KernelManager

from helpers.ranks import run_on_ranks, start_ranks, stop_ranks

COURSE = Path(__file__).parents[2]
START = f"""
import sys
sys.path.insert(0, {str(COURSE)!r})
from helpers.ranks import start_ranks
ranks = start_ranks(2, timeout_s=2)
"""
ALL_REDUCE = """%%px
number = torch.tensor([rank + 1.0])
dist.all_reduce(number)
print(f"{device}: rank {rank} of {world_size} has {number.item()}")
"""
NEVER_ARRIVES = "%%px\nif rank == 0:\n    dist.all_reduce(torch.ones(1))"


class Kernel:
    """A notebook's kernel, without the notebook."""

    def __init__(self, folder: Path) -> None:
        self.manager = KernelManager()
        self.manager.start_kernel(cwd=str(folder))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.process = psutil.Process(int(self.run("import os; print(os.getpid())")))

    def run(self, cell: str) -> str:
        """What the cell writes and shows; an error as its message, after "!"."""
        seen = []

        def add(message: dict) -> None:
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                seen.append(content["text"])
            elif kind in ("display_data", "execute_result"):
                seen.append(content["data"]["text/plain"])
            elif kind == "error":
                seen.append("!" + content["evalue"])

        self.client.execute_interactive(cell, timeout=100, output_hook=add)
        return "".join(seen)

    def processes(self) -> list[psutil.Process]:
        return self.process.children(recursive=True)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path_factory.mktemp("kernel"))
    assert kernel.run(START) == "2 ranks, gloo, cpu\n"
    processes = kernel.processes()
    assert len(processes) > 4, "an engine and its nanny for each rank, and more"
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel()
    assert_gone(processes)


@pytest.fixture
def started() -> Iterator[None]:
    yield
    stop_ranks()


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


def test_a_cell_runs_on_every_rank(kernel):
    assert kernel.run(ALL_REDUCE).split("\n") == [
        "[stdout:0] ",
        "cpu: rank 0 of 2 has 3.0",
        "[stdout:1] ",
        "cpu: rank 1 of 2 has 3.0",
        "",
    ]
    assert kernel.run("ranks['number'], ranks['rank']") == (
        "([tensor([3.]), tensor([3.])], [0, 1])"
    )
    assert kernel.run("%px from helpers.models import SmallCNN") == ""


def test_an_error_on_one_rank_leaves_the_others_alive(kernel):
    out = kernel.run("%%px\nassert rank == 0, 'not here'\nprint('fine')")
    assert "fine" in out
    assert out.endswith("[1:execute]AssertionError: not here")
    assert kernel.run("%px alive = rank") == ""
    assert kernel.run("ranks['alive']") == "[0, 1]"


def test_a_rank_that_never_arrives_is_an_error_again_and_again(kernel):
    kernel.run("ranks['kept'] = 5")
    for _ in range(3):
        began_s = time.monotonic()
        out = kernel.run(NEVER_ARRIVES)
        assert time.monotonic() - began_s < 15
        assert "[0:execute]RuntimeError" in out
        assert "Timed out" in out
        assert "[1:execute]" not in out
        assert kernel.run("start_ranks(2, timeout_s=2);") == "2 ranks, gloo, cpu\n"
        assert kernel.run(ALL_REDUCE).count("has 3.0") == 2
    assert kernel.run("ranks['kept']") == "[5, 5]"


def test_an_interrupt_reaches_the_ranks(kernel, tmp_path):
    def interrupt() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.1)
        kernel.manager.interrupt_kernel()

    threading.Thread(target=interrupt).start()
    began_s = time.monotonic()
    out = kernel.run(
        "%%px\nimport time, pathlib\n"
        f"pathlib.Path({str(tmp_path)!r}, str(rank)).touch()\ntime.sleep(60)"
    )
    assert "Interrupt" in out
    assert time.monotonic() - began_s < 30
    assert kernel.run(ALL_REDUCE).count("has 3.0") == 2


def test_the_same_outputs_in_another_kernel_which_leaves_nothing_when_killed(
    kernel, tmp_path
):
    cells = [START, ALL_REDUCE, "%px 1 / rank", "%%px\nif rank:\n    print('one')"]
    other = Kernel(tmp_path)
    here, there = [[run(cell) for cell in cells] for run in (kernel.run, other.run)]
    processes = other.processes()
    assert len(processes) > 4
    other.process.kill()
    assert_gone(processes)
    other.client.stop_channels()
    other.manager.cleanup_resources()
    assert "ZeroDivisionError" in there[2]
    number = r"Out\[1:\d+\]"  # counts a rank's cells, and `kernel` has run more
    assert [re.sub(number, "", text) for text in here] == [
        re.sub(number, "", text) for text in there
    ]


class Mine(Exception):
    pass


def test_a_function_runs_on_two_ranks(started, capsys):
    factor = 10

    def total(rank: int, world_size: int) -> float:
        number = torch.rand(1).fill_(rank + 1)
        dist.all_reduce(number)
        return factor * number.item() + rank

    def fails(rank: int, world_size: int) -> None:
        if rank == 1:
            raise Mine("on one rank")
        dist.barrier()

    def hangs(rank: int, world_size: int) -> None:
        if rank == 0:
            dist.barrier()

    assert run_on_ranks(total, timeout_s=5) == [30, 31]
    with pytest.raises(Mine, match="on one rank") as raised:
        run_on_ranks(fails)
    assert "rank 1" in str(raised.value.__cause__)
    with pytest.raises(RuntimeError, match="Timed out"):
        run_on_ranks(hangs)
    assert run_on_ranks(lambda *sizes: sizes) == [(0, 2), (1, 2)]

    ranks = start_ranks(2, timeout_s=5)
    ranks.execute("import os; rank and os._exit(1)", block=False).wait(10)
    ranks = start_ranks(2, timeout_s=5)
    assert ranks["rank"] == [0, 1]
    assert capsys.readouterr().out == 2 * "2 ranks, gloo, cpu\n"


def test_ranks_that_do_not_start_say_what_to_do(monkeypatch, started):
    before = psutil.Process().children()
    monkeypatch.setattr("helpers.ranks.START_S", 0.1)
    with pytest.raises(RuntimeError, match="restart this kernel"):
        start_ranks(3)
    assert_gone([p for p in psutil.Process().children() if p not in before])


def test_without_ipyparallel_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipyparallel", None)
    with pytest.raises(ImportError, match="%pip install ipyparallel"):
        runpy.run_path(str(COURSE / "helpers" / "ranks.py"))
