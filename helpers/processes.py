"""Processes that meet, fail and end together: under torchrun, or one alone."""

import gc
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group: see the end of run_group
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset

from helpers.checkpoint import CheckpointError
from helpers.storage import StorageError
from helpers.training import LossFn, evaluate, seed_everything

T = TypeVar("T")
# What a user can mend is said without a traceback
ERRORS = (ValueError, OSError, CheckpointError, StorageError)
PATIENCE = timedelta(minutes=10)  # with a process that stays away
MIXED = (
    "each process needs a GPU of its own, or none may use one: for that, set "
    "CUDA_VISIBLE_DEVICES= to nothing on every machine"
)


def run_group(train: Callable[[torch.device], None]) -> None:
    """Meet the other processes, run `train(device)`, and end this process.

    With enough GPUs each process has one to itself, and NCCL connects them. Else the
    device is the CPU, with Gloo. In both cases tensors on the CPU can be sent as well.
    Where machines differ in that, all processes end, with an error.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", 1)):
        device, backend = torch.device("cuda", local_rank), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    try:
        store, rank, world_size = _store_of_this_start()
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=PATIENCE
        )
    except (dist.DistError, ValueError) as error:
        host, port = map(os.environ.get, ("MASTER_ADDR", "MASTER_PORT"))
        if "EADDRINUSE" in str(error):
            sys.exit(f"error: port {port} is in use on {host}: choose another")
        sys.exit(f"error: the other processes were not met at {host}:{port}: {error}")
    code = 0
    try:
        check_equal(device.type, MIXED)  # or the first exchange of a GPU would hang
        train(device)
    except SystemExit as end:
        code = end.code
    # Gloo's threads run until nothing holds on to the group. At the interpreter's end
    # they may abort it (github.com/pytorch/pytorch/issues/190489). Two things hold on:
    # DDP, a reference cycle; and torch.distributed.nn, which DDP imports: its functions
    # take the group of that moment as their default.
    gc.collect()
    dist.destroy_process_group()
    sys.exit(code)


def _store_of_this_start() -> tuple[dist.Store, int, int]:
    """Where the processes leave their addresses, this rank, and how many there are.

    torchrun's own store outlives a restart of the processes, with the addresses of the
    dead. Who reads those waits in vain (github.com/pytorch/pytorch/issues/135712). So
    rank 0 opens a store for this start, and leaves its port in torchrun's.
    """
    if "RANK" not in os.environ:  # not under torchrun: one process, and no port
        return dist.HashStore(), 0, 1
    shared, rank, world_size = next(dist.rendezvous("env://", timeout=PATIENCE))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return shared, rank, world_size  # opened by rank 0, just now
    host, key = os.environ["MASTER_ADDR"], "port of this start's store"
    if rank == 0:
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        shared.set(key, str(store.port))
        return store, rank, world_size
    end = time.monotonic() + PATIENCE.total_seconds()
    while True:
        try:
            short = timedelta(seconds=2)  # nobody is at the last start's port
            store = dist.TCPStore(host, int(shared.get(key)), timeout=short)
            store.set_timeout(PATIENCE)
            return store, rank, world_size
        except dist.DistError:
            if time.monotonic() > end:
                raise


@contextmanager
def together() -> Iterator[None]:
    """If the block fails on any rank for one of ERRORS, all end with exit code 2.

    The first that failed says why, on stderr. SystemExit ends all as well, with its own
    code. All ranks must pass through the block, and it must not communicate: a rank
    that has failed no longer answers.
    """
    code, message = None, ""
    try:
        yield
    except SystemExit as end:
        code = end.code
    except ERRORS as error:
        code, message = 2, f"error: {error}"
    outcomes = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (code, message))
    failed = [rank for rank, (code, _) in enumerate(outcomes) if code is not None]
    if not failed:
        return
    if message and dist.get_rank() == failed[0]:
        print(message, file=sys.stderr, flush=True)
    largest(0)  # wait for the message: torchrun ends all as soon as one has left
    sys.exit(outcomes[failed[0]][0])


def check_equal(value: Any, otherwise: str) -> None:
    """End all processes, with this message, unless they have the same value."""
    expected = from_first(value)
    with together():
        if value != expected:
            raise ValueError(f"{otherwise} (rank 0 has {expected}, one {value})")


def from_first(value: T) -> T:
    """Rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def largest(value: int) -> int:
    """The largest of all ranks' values, on every rank."""
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def wrap(model: nn.Module, image: torch.Tensor) -> DistributedDataParallel:
    """DDP over the model, such that a restarted training adds up as it did before.

    After its first backward DDP sorts the gradients into other buckets. With three
    ranks or more that changes the order of the sums, and their last bits. Here it is
    done in advance, with `image` (3, H, W); the model's state stays as it is.
    """
    ddp = DistributedDataParallel(model)
    ddp.eval()(image[None]).sum().backward()
    model.zero_grad()
    return ddp.train()


def evaluate_together(
    model: nn.Module, data: Dataset, batch_size: int, loss_fn: LossFn
) -> tuple[float, float]:
    """`helpers.training.evaluate` over the whole data set, shared out to all ranks.

    Each sample counts once: where the shares are uneven, nothing is padded.

    Args:
        model: not wrapped in DDP, which would wait for ranks with fewer batches. Its
            buffers (BatchNorm's statistics) become those of rank 0 on all ranks.
    """
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)
    share = range(dist.get_rank(), len(data), dist.get_world_size())
    loss = acc = 0.0
    if share:
        loss, acc = evaluate(
            model, DataLoader(Subset(data, share), batch_size), loss_fn
        )
    sums = torch.tensor([loss, acc, 1.0], dtype=torch.float64) * len(share)
    dist.all_reduce(sums)
    return float(sums[0] / sums[2]), float(sums[1] / sums[2])


def seeded(loader: DataLoader, *seed: int) -> Iterator[Any]:
    """The loader's batches, with all random numbers seeded anew before each one.

    They depend on `seed`, the batch's number and the rank alone. So a training that
    starts again in mid-epoch, passing over batches, draws as it would have.
    """
    batches = None
    for number in range(len(loader)):
        place = random.Random(f"{seed} {number} {dist.get_rank()}")
        seed_everything(place.getrandbits(32))
        batches = batches or iter(loader)  # draws the seed of its workers
        yield next(batches)
