"""No process of a group ends while Gloo's threads run, as it may then abort.

That happens to one in hundreds only (SIGABRT, "terminate called without an active
exception"), so it is the threads that are looked at, and not the aborts.
"""

import json
from pathlib import Path

import pytest

from helpers.launch import launch
from tools import lesson_files, read_notebook

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").exists(),
    reason="the threads' names are read from /proc, which is Linux's",
)

# What is registered first is called last when Python ends
LOOK = """
import atexit, json, os, sys
from pathlib import Path

def look():
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    Path(sys.argv[1]).write_text(json.dumps([n for n in names if "gloo" in n]))

atexit.register(look)
"""
DDP = """
import torch
from torch.nn.parallel import DistributedDataParallel

def train():
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
"""
SHARDED = """
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

def train():
    model = torch.nn.Linear(2, 2)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    model(torch.ones(1, 2)).sum().backward()
"""
PLAIN = """
import gc
import torch.distributed as dist
dist.init_process_group("gloo")
train()
gc.collect()
dist.destroy_process_group()
"""
OF_HELPERS = """
from helpers import processes
processes.run_group(lambda device: train())
"""
OF_LESSON = """
start()
train()
end()
"""
ONE_PROCESS = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
    "CUDA_VISIBLE_DEVICES": "",
}


def written(lesson, name):
    """The script that the lesson's cells write to build/, of this name."""
    sources = [c.source for c in read_notebook(*lesson_files([lesson])).cells]
    parts = [s.split("\n", 1) for s in sources if s.startswith("%%writefile")]
    found = [text for magic, text in parts if magic.endswith(f"/{name}")]
    assert found, f"{lesson} writes no {name}"
    return "\n".join(found) + "\n"


def threads_at_the_end(folder, script):
    """Names of Gloo's threads; None if the process ended without Python's own end."""
    (folder / "script.py").write_text(LOOK + script, "utf-8")
    seen = folder / "seen.json"
    launch(["python", folder / "script.py", seen], **ONE_PROCESS)
    return json.loads(seen.read_text()) if seen.exists() else None


@pytest.mark.upstream
@pytest.mark.parametrize("training", [DDP, SHARDED], ids=["DDP", "sharded"])
def test_without_the_cures_threads_are_left(tmp_path, training):
    """Where this fails, PyTorch has mended it, and the cures can go."""
    assert threads_at_the_end(tmp_path, training + PLAIN)


def test_run_group_leaves_no_thread(tmp_path):
    assert threads_at_the_end(tmp_path, DDP + OF_HELPERS) == []


def test_lesson_06_leaves_no_thread(tmp_path):
    script = written("06_data_parallel", "group.py") + DDP + OF_LESSON
    assert threads_at_the_end(tmp_path, script) == []


def test_lesson_07_ends_at_once(tmp_path):
    script = written("07_model_parallel", "common.py") + SHARDED + OF_LESSON
    assert threads_at_the_end(tmp_path, script) is None
