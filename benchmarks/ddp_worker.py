"""What torchrun starts for the benchmark `ddp`: one step in turn by one and by two.

Prints, on rank 0, one line of JSON. One rank measures FSDP2's bytes alone.
"""

import gc
import json
import sys
import time
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from helpers.models import SmallCNN

BATCH = 128  # of each process, so that caches serve one and two alike


def steps(model: nn.Module, batch: int, number: int) -> float:
    """Seconds of `number` steps of training on (batch, 3, 64, 64)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    inputs, labels = torch.rand(batch, 3, 64, 64), torch.randint(10, (batch,))
    start = time.perf_counter()
    for _ in range(number):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def loopback_bytes() -> int:
    nics = psutil.net_io_counters(pernic=True)
    return sum(nics[name].bytes_sent for name in ("lo", "lo0") if name in nics)


def throughput(rank: int, rounds: int, number: int) -> dict:
    """Samples a second: one process of 1 and of 2 threads, two of 1 thread each."""
    torch.manual_seed(0)
    model = SmallCNN()
    parallel = DistributedDataParallel(SmallCNN())
    result = {"1 x 1 thread": [], "1 x 2 threads": [], "2 x 1 thread": []}
    for round_number in range(rounds + 1):
        times = {}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            dist.monitored_barrier()  # the other process waits, and sleeps
            if rank == 0:
                name = f"1 x {threads} thread{'s' * (threads > 1)}"
                times[name] = steps(model, BATCH, number)
            dist.monitored_barrier()
        torch.set_num_threads(1)
        dist.barrier()
        times["2 x 1 thread"] = steps(parallel, BATCH, number)
        if rank == 0 and round_number:  # the first round warms up
            for way, seconds in times.items():
                batch = BATCH * (2 if way.startswith("2") else 1)
                result[way].append(number * batch / seconds)
    return result


def bytes_moved(rank: int, number: int = 20) -> dict:
    """Bytes over the loopback in a step of two processes, beside the model's size."""
    model = DistributedDataParallel(
        nn.Sequential(*[nn.Linear(1000, 1000) for _ in range(5)])
    )
    inputs = torch.rand(4, 1000)
    for step in range(number + 1):
        if step == 1:
            dist.barrier()
            before = loopback_bytes()
        model(inputs).sum().backward()
    dist.barrier()
    size = sum(p.nbytes for p in model.parameters())
    return {"model": size, "moved": (loopback_bytes() - before) / number}


def held(ranks: int) -> dict:
    """Bytes of parameters, gradients and Adam's averages on this rank, under FSDP2."""
    model = nn.Sequential(*[nn.Linear(1000, 1000) for _ in range(5)])
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in [*model, model]:
        fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(4, 1000)).sum().backward()
    optimizer.step()
    states = optimizer.state.values()
    tensors = [*model.parameters(), *(p.grad for p in model.parameters())]
    tensors += [state[key] for state in states for key in ("exp_avg", "exp_avg_sq")]
    return {"held": sum(tensor.to_local().nbytes for tensor in tensors)}


def main(rounds: int, number: int) -> None:
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    result = held(ranks)
    if ranks == 2:
        result |= {"samples": throughput(rank, rounds, number)} | bytes_moved(rank)
    if rank == 0:
        print(json.dumps(result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
    gc.collect()  # or a process may abort at its exit: pytorch/pytorch issue 190489
    dist.destroy_process_group()
