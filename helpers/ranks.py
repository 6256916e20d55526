"""Ranks for notebook cells: after `start_ranks(2)`, `%%px` runs a cell on each of them.

A rank is a process that lives from cell to cell: an engine of ipyparallel
(ipyparallel.readthedocs.io).
"""

import atexit
import logging
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from IPython import get_ipython

from helpers.training import keep_random_state

try:
    import cloudpickle
    import ipyparallel as ipp
    from ipyparallel.client.magics import ParallelMagics
except ImportError as missing:
    raise ImportError(
        f"{missing.name} is missing: run `%pip install {missing.name}` in a cell, then "
        "restart the kernel"
    ) from None

HOST = "127.0.0.1"
START_S = 60  # engines start in 5 to 20 s, most of it for importing torch
ANSWER_S = 15  # an idle engine needs less than one
# This shell reads process groups, one a line, until the kernel has ended, in whatever
# way: the pipe closes even after a SIGKILL. Then it ends them.
WATCH = """while read group; do groups="$groups -$group"; done
[ "$groups" ] && kill -s KILL -- $groups; rm -rf "$0"
"""


class _Engines:
    """The processes, the shell that ends them, and a view of them."""

    def __init__(self, n: int) -> None:
        self.n, self.folder = n, tempfile.mkdtemp(prefix="ranks-")
        self.watch = subprocess.Popen(
            ["/bin/sh", "-c", WATCH, self.folder],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # not what an interrupt of the kernel reaches
        )

    def start(self) -> None:
        cluster = ipp.Cluster(
            log_level=logging.CRITICAL,
            profile_dir=self.folder,
            load_profile=False,
            cluster_file="",
            shutdown_atexit=False,
            delay=0,
        )
        cluster.start_controller_sync()
        self.end_with_kernel(cluster.controller.pid)
        cluster.start_engines_sync(self.n)
        for engine in cluster.engine_set.launchers.values():
            self.end_with_kernel(engine.pid)
        client = cluster.connect_client_sync()
        client.wait_for_engines(self.n, timeout=START_S, interactive=False)
        for engine in cluster.engine_set.launchers.values():
            for nanny in engine.process.children():  # which passes signals on
                self.end_with_kernel(nanny.pid)
        self.view = client[:]
        self.view.block = True
        self.view.execute(f"import sys; sys.path[:] = {sys.path!r}")
        if shell := get_ipython():
            magics = ParallelMagics(shell, self.view)
            # Each rank's output once the cell has ended, in the order of the ranks
            magics.stream_output, magics.progress_after_seconds = False, -1
            shell.register_magics(magics)

    def end_with_kernel(self, process_group: int) -> None:
        self.watch.stdin.write(f"{process_group}\n")
        self.watch.stdin.flush()

    def meet(self, timeout_s: float, wait_s: float) -> None:
        """Join all in a new group; the store by which they find each other is here."""
        self.timeout_s = timeout_s
        self.store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        gpus = torch.cuda.device_count() >= self.n
        meetings = [
            self.view.client[engine].apply_async(
                _meet, rank, self.n, self.store.port, timeout_s, gpus
            )
            for rank, engine in enumerate(self.view.targets)
        ]
        end_s = time.monotonic() + wait_s
        for meeting in meetings:
            meeting.get(max(0.0, end_s - time.monotonic()))

    def log(self) -> str:
        files = sorted(Path(self.folder, "log").glob("ipengine*.log"))
        return "\n".join(file.read_text()[-1000:] for file in files)

    def stop(self) -> None:
        if hasattr(self, "view"):
            self.view.client.close()
        self.watch.stdin.close()
        self.watch.wait()


_engines: _Engines | None = None


@dataclass
class _Failure:
    """An error of a rank, and when it came."""

    error: Exception
    rank: int
    text: str
    time_s: float = field(default_factory=time.monotonic)


class OnRank(Exception):
    """Where an error of `run_on_ranks` came from: the rank, and the traceback there."""


def start_ranks(n: int, *, timeout_s: float = 20) -> ipp.DirectView:
    """Start n processes joined in one process group; `%%px` runs a cell on all of them.

    A cell finds `rank`, `world_size`, `device`, `torch` and `dist` there. With a GPU
    for each rank, the ranks use GPUs and NCCL; otherwise the CPU and Gloo. They end
    with the kernel.

    Call it again to repair the ranks. Ranks that still answer keep what your cells
    defined and meet in a new process group; what was built on the old group, such as a
    DDP model, has to be built again. If one does not answer, all are started again.

    Args:
        timeout_s: seconds until a collective that some rank never joins is an error.
            After that error the group is of no use: call `start_ranks` again.

    Returns:
        A view of all ranks: `ranks["loss"]` is a list of each rank's `loss`, and
        `ranks["lr"] = 0.1` sets `lr` on each.

    Raises:
        RuntimeError: they did not start; the message holds the end of their log.
    """
    view = _join(n, timeout_s)
    where = "nccl, cuda" if torch.cuda.device_count() >= n else "gloo, cpu"
    print(f"{n} ranks, {where}")
    return view


def stop_ranks() -> None:
    """End the ranks that are running; the end of the kernel does it as well."""
    global _engines
    if _engines:
        _engines.stop()
        _engines = None


atexit.register(stop_ranks)


def run_on_ranks(
    function: Callable[[int, int], Any], n: int = 2, *, timeout_s: float = 10
) -> list[Any]:
    """Call `function(rank, world_size)` on n ranks, for exercises.

    The ranks of `start_ranks(n)` are used; if there are none, they are started. If
    there are more or fewer, these end first. The function can stand in a notebook's
    cell and use what the notebook defines, but not what `%%px` cells define. What it
    prints is not shown. The states of random numbers do not change.

    Args:
        timeout_s: as in `start_ranks`, used only if the ranks are started here.

    Returns:
        What the function returned on each rank, in the order of the ranks.

    Raises:
        Exception: what the function raised, on the rank where that came first. The
            ranks then meet in a new group.
    """
    view = _engines.view if _engines and _engines.n == n else _join(n, timeout_s)
    try:
        view.apply_async(_barrier).get(ANSWER_S + _engines.timeout_s)
    except Exception:  # an earlier cell broke the group
        view = _join(n, _engines.timeout_s)
    calls = view.apply_async(_call, cloudpickle.dumps(function))
    try:
        results = [cloudpickle.loads(result) for result in calls.get()]
    except KeyboardInterrupt:
        view.client.send_signal("SIGINT", block=True)
        raise
    failures = [result for result in results if isinstance(result, _Failure)]
    if failures:
        _join(n, _engines.timeout_s)
        first = min(failures, key=lambda failure: failure.time_s)
        raise first.error from OnRank(f"rank {first.rank}\n\n{first.text}")
    return results


def _join(n: int, timeout_s: float) -> ipp.DirectView:
    global _engines
    if _engines and _engines.n == n:
        try:
            _engines.meet(timeout_s, ANSWER_S)
            return _engines.view
        except Exception:  # one is dead, or busy
            pass
    stop_ranks()
    _engines = _Engines(n)
    try:
        _engines.start()
        _engines.meet(timeout_s, START_S)
    except BaseException as error:
        log = _engines.log()
        stop_ranks()
        if not isinstance(error, Exception):
            raise
        raise RuntimeError(
            f"{n} ranks did not start within {START_S} s. Each needs about 0.6 GiB of "
            "memory: shut down other notebooks, restart this kernel and try again. "
            f"Their log ends in:\n{log}"
        ) from error
    return _engines.view


# What follows runs on the ranks.


def _meet(rank: int, n: int, port: int, timeout_s: float, gpus: bool) -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
    torch.set_num_threads(1)  # the ranks share the cores
    device, backend = torch.device("cpu"), "gloo"
    if gpus:
        device, backend = torch.device("cuda", rank), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    names = {"MASTER_ADDR": HOST, "MASTER_PORT": port, "LOCAL_RANK": rank}
    names |= {"RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
    # An error after the time-out, where NCCL would end the process
    names["TORCH_NCCL_BLOCKING_WAIT"] = 1
    os.environ.update({name: str(value) for name, value in names.items()})
    # Not by the host's name, which a VPN or a firewall may lead elsewhere
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    dist.init_process_group(
        backend,
        store=dist.TCPStore(HOST, port, is_master=False),
        rank=rank,
        world_size=n,
        timeout=timedelta(seconds=timeout_s),
    )
    get_ipython().push(
        {"rank": rank, "world_size": n, "device": device, "torch": torch, "dist": dist}
    )


def _barrier() -> None:
    dist.barrier()


def _call(pickled: bytes) -> bytes:
    function, rank = cloudpickle.loads(pickled), dist.get_rank()
    with keep_random_state():
        try:
            return cloudpickle.dumps(function(rank, dist.get_world_size()))
        except Exception as error:
            return cloudpickle.dumps(_Failure(error, rank, traceback.format_exc()))
