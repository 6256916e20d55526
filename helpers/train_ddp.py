"""Train a classifier on any number of devices; torchrun starts this script.

    python -m helpers.train_ddp                                    # one process
    torchrun --standalone --nproc-per-node=2 -m helpers.train_ddp  # two

Each epoch ends with a checkpoint. On SIGTERM all save after the step they are at and
leave with exit code 143. `--resume` goes on right there, on the CPU to the last bit:
the data's order and all random numbers follow from seed, epoch, step and rank. Several
machines must share the checkpoints' folder; the arguments of rank 0 count for all.
"""

import argparse
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from tqdm import tqdm

from helpers import checkpoint, processes, storage
from helpers.data import load_digits
from helpers.models import classifier
from helpers.photos import split_photos
from helpers.training import seed_everything

STOPPED = 128 + signal.SIGTERM  # as shells have it; to torchrun: not finished
NOT_SETTINGS = {"data", "epochs", "folder", "resume", "workers"}
loss_fn = nn.CrossEntropyLoss()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("train_ddp", description="Train a classifier.")
    add = parser.add_argument
    add("--data", default="digits", help="or a folder with one folder for each class")
    add("--model", default="SmallCNN", help="or a torchvision classifier: resnet18")
    add("--image-size", type=int, help="in pixels (32 for the digits, else 224)")
    add("--epochs", type=int, default=5)
    add("--batch-size", type=int, default=100, help="of all processes together (100)")
    add("--accumulate", type=int, default=1, help="take a batch in so many parts (1)")
    add("--lr", type=float, default=0.02, help="of SGD with momentum 0.9 (0.02)")
    add("--bf16", action="store_true", help="autocast to bfloat16")
    add("--workers", type=int, default=0, help="that load data, for each process (0)")
    add("--seed", type=int, default=0)
    add("--folder", type=Path, help="for checkpoints (the course's own)")
    add("--resume", action="store_true", help="go on from the folder's checkpoints")
    args = parser.parse_args(argv)
    args.image_size = args.image_size or (32 if args.data == "digits" else 224)
    for name in ("image_size", "epochs", "batch_size", "accumulate", "lr"):
        if not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    if args.batch_size % (shares := dist.get_world_size() * args.accumulate):
        parser.error(f"--batch-size must be a multiple of {shares}, processes x parts")
    args.folder = args.folder or storage.checkpoint_dir("train_ddp")
    return args


def load_data(args: argparse.Namespace) -> tuple[Dataset, Dataset, int]:
    """What to train on, what to validate on, and the number of classes."""
    if args.data != "digits":
        return split_photos(args.data, args.image_size)
    train, val = load_digits("train"), load_digits("val")
    for digits in (train, val):
        digits.images = nn.Upsample((args.image_size,) * 2)(digits.images)
    return train, val, 10


def resume(args: argparse.Namespace, settings: dict, **state) -> tuple[int, int]:
    """Load the newest checkpoint: the epochs done, and the steps done after them."""
    if not checkpoint.list_checkpoints(args.folder):
        return 0, 0
    if not args.resume:
        raise ValueError(f"{args.folder} is in use: --resume, or another --folder")
    found = checkpoint.load_checkpoint(args.folder, **state)
    if (before := found["extra"].get("settings")) != settings:
        raise ValueError(f"{args.folder} was begun with other settings: {before}")
    return found["epoch"], found["extra"]["steps"]


def train_step(model, optimizer, batch, args: argparse.Namespace) -> None:
    """One step of the optimizer, for a batch in several parts."""
    optimizer.zero_grad()
    parts = zip(*(tensor.chunk(args.accumulate) for tensor in batch), strict=True)
    for part, (inputs, labels) in enumerate(parts, start=1):
        # Gradients are added up here; the last part's backward exchanges the sums
        with nullcontext() if part == args.accumulate else model.no_sync():
            with torch.autocast(inputs.device.type, torch.bfloat16, args.bf16):
                loss = loss_fn(model(inputs), labels)
            (loss / args.accumulate).backward()
    optimizer.step()


def train(device: torch.device, argv: list[str] | None = None) -> None:
    told_to_stop, first = [], dist.get_rank() == 0
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.append(True))
    with processes.together():
        args = parse(argv) if first else None
    args = processes.from_first(args)
    settings = {k: v for k, v in vars(args).items() if k not in NOT_SETTINGS}
    with processes.together():
        train_set, val_set, num_classes = load_data(args)
        if len(train_set) < args.batch_size:
            raise ValueError(f"--batch-size is above all {len(train_set)} images")
        seed_everything(args.seed)  # the same weights on every rank
        model = classifier(args.model, num_classes, args.image_size).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
        state = {"model": model, "optimizer": optimizer}
        done = resume(args, settings, **state)
    processes.check_equal(done, f"{args.folder} must be one folder for all machines")
    if first and done[0] >= args.epochs:
        print(f"{args.folder} is at epoch {done[0]}: nothing left to do")

    def save(epoch: int, steps: int, **measured: float) -> None:
        extra = {"steps": steps, "settings": settings}
        with processes.together():
            if first:
                checkpoint.save_checkpoint(
                    args.folder, epoch=epoch, extra=extra, **state, **measured
                )

    share = args.batch_size // dist.get_world_size()
    sampler = DistributedSampler(train_set, seed=args.seed, drop_last=True)
    loader = DataLoader(
        train_set, share, sampler=sampler, num_workers=args.workers, drop_last=True
    )
    ddp = processes.wrap(model, train_set[0][0].to(device))
    for epoch in range(done[0] + 1, args.epochs + 1):
        sampler.set_epoch(epoch)
        batches = processes.seeded(loader, args.seed, epoch)
        bar = tqdm(batches, f"epoch {epoch}", len(loader), disable=not first)
        for step, batch in enumerate(bar):
            if (epoch - 1, step) < done:
                continue  # it was trained on before
            if processes.largest(len(told_to_stop)):
                save(epoch - 1, step)
                sys.exit(STOPPED)
            train_step(ddp, optimizer, [tensor.to(device) for tensor in batch], args)
        with torch.autocast(device.type, torch.bfloat16, args.bf16):
            loss, acc = processes.evaluate_together(model, val_set, share, loss_fn)
        save(epoch, 0, loss=loss, acc=acc)
        if first:
            by = f"epoch {epoch}, {dist.get_world_size()} processes"
            print(f"{by}: validation loss {loss:.4f}, accuracy {acc:.2%}")


if __name__ == "__main__":
    processes.run_group(train)
