"""Train an image classifier with DistributedDataParallel: one file, yours to change.

Start it by `python`, or by `torchrun --standalone --nproc-per-node=2`. Each epoch is
saved, and --resume goes on as if nothing had happened. A restart by torchrun implies it
on one machine; on several, give it from the start, and let them share the folder.
Exit codes: 2 for wrong arguments or files, 143 after SIGTERM.
"""

import gc
import os
import signal
import sys
from argparse import ArgumentParser
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn  # before the group, which it would hold: see main()
from torch import nn, optim
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, Subset, random_split
from torchvision import datasets, models, transforms

parser = ArgumentParser(description="Train an image classifier.")
parser.error = sys.exit  # with the message, which agree() prints once
add = parser.add_argument
add("--data", help="a folder with one folder for each class (the digits)")
add("--image-size", type=int, default=32, help="in pixels (32)")
add("--model", default="small", help="or one of torchvision's, such as resnet18")
add("--epochs", type=int, default=5)
add("--batch-size", type=int, default=100, help="of all processes together (100)")
add("--accumulate", type=int, default=1, help="parts to take each batch in (1)")
add("--lr", type=float, default=0.02)
add("--bf16", action="store_true", help="autocast to bfloat16")
add("--workers", type=int, default=0, help="to load data, per process (0)")
add("--seed", type=int, default=0)
add("--folder", type=Path, default="checkpoints/train_ddp", help="for checkpoints")
add("--resume", action="store_true", help="from the newest checkpoint, if any")

env = os.environ.get  # torchrun tells each process which one it is
RANK, WORLD_SIZE = int(env("RANK", 0)), int(env("WORLD_SIZE", 1))
LOCAL_RANK, LOCAL_SIZE = int(env("LOCAL_RANK", 0)), int(env("LOCAL_WORLD_SIZE", 1))
ON_GPU = (GPUS := torch.cuda.device_count()) >= LOCAL_SIZE  # one for each process here
DEVICE, BACKEND = ("cuda", "cpu:gloo,cuda:nccl") if ON_GPU else ("cpu", "gloo")
sigterms = []
say = print if RANK == 0 else lambda *_, **__: None


def load_data(folder: str | None, size: int) -> tuple:
    """Training set, validation set (images (3, size, size) in 0..1), class count."""
    if folder:
        steps = [transforms.Resize((size, size)), transforms.ToTensor()]
        photos = datasets.ImageFolder(folder, transforms.Compose(steps))
        always_the_same = torch.Generator().manual_seed(0)
        return *random_split(photos, [0.8, 0.2], always_the_same), len(photos.classes)
    with np.load(Path(__file__).resolve().parent.parent / "data/digits.npz") as file:
        images, labels, split = (torch.from_numpy(file[name]) for name in file)
    # (1797, 8, 8) in 0..16 -> (1797, 1, size, size) in 0..1
    images = nn.functional.interpolate(images[:, None] / 16, size, mode="bilinear")
    digits = list(zip(images.expand(-1, 3, -1, -1), labels.long(), strict=True))
    return *(Subset(digits, torch.where(split == part)[0]) for part in (0, 1)), 10


def build_model(name: str, num_classes: int) -> nn.Module:
    """Images (B, 3, H, W) -> logits (B, num_classes)."""
    if name != "small":
        if name not in models.list_models(module=models):
            sys.exit(f"--model: torchvision has no classifier {name!r}")
        return models.get_model(name, num_classes=num_classes)
    conv1, conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
    body = [conv1, nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), conv2, nn.ReLU()]
    pool = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.2)]  # (B, 512)
    return nn.Sequential(*body, *pool, nn.Linear(512, num_classes))


def agree(outcome: object) -> None:
    """End all ranks with exit code 2 if one has an error (str) or if they differ."""
    met = [None] * WORLD_SIZE
    dist.all_gather_object(met, outcome)
    errors = [one for one in met if isinstance(one, str)]
    if errors or met != [outcome] * WORLD_SIZE:
        say("error:", *errors[:1] or ["the processes differ", *met], file=sys.stderr)
        sys.exit(2)


def save(folder: Path, epoch: int, **parts: nn.Module | optim.SGD) -> None:
    """Write epoch_0001.pt, ..., each whole or not at all, and keep the newest three."""
    temp = folder / "unfinished"
    torch.save({"epoch": epoch} | {k: v.state_dict() for k, v in parts.items()}, temp)
    with temp.open("rb") as file:
        os.fsync(file.fileno())  # on the disk, before it takes the name
    temp.replace(folder / f"epoch_{epoch:04}.pt")
    for old in sorted(folder.glob("epoch_*.pt"))[:-3]:
        old.unlink()


def train_epoch(ddp: DDP, loader: DataLoader, optimizer: optim.SGD, n: int) -> float:
    """Train on every rank's batches, each in n parts; the mean loss of all."""
    total = torch.zeros((), device=DEVICE)  # not read before the end: a GPU would wait
    for batch in loader:
        dist.all_reduce(stop := torch.tensor(len(sigterms)))
        if stop:  # on all ranks, before the same step
            say(f"SIGTERM: --resume will start at epoch {loader.sampler.epoch}")
            sys.exit(128 + signal.SIGTERM)
        batch = [tensor.to(DEVICE, non_blocking=True).chunk(n) for tensor in batch]
        optimizer.zero_grad()
        for part, (images, labels) in enumerate(zip(*batch, strict=True), start=1):
            # .grad adds up; the last part's backward averages it over the ranks
            with nullcontext() if part == n else ddp.no_sync():
                loss = nn.functional.cross_entropy(ddp(images).float(), labels) / n
                loss.backward()
            total += loss.detach()
        optimizer.step()
    dist.all_reduce(total)
    return total.item() / len(loader) / WORLD_SIZE


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader) -> tuple[float, float]:
    """Mean loss and accuracy. Without DDP, which waits for ranks with fewer batches."""
    for buffer in model.buffers():  # BatchNorm's statistics differ: rank 0's are saved
        dist.broadcast(buffer, 0)
    sums = torch.zeros(2, device=DEVICE)
    for batch in loader:
        images, labels = (tensor.to(DEVICE, non_blocking=True) for tensor in batch)
        logits = model(images).float()  # (B, num_classes)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss, (logits.argmax(1) == labels).sum()])
    dist.all_reduce(sums)
    return tuple((sums / len(loader.dataset)).tolist())


def train() -> None:
    try:  # an OSError here is about files that the user named
        args = parser.parse_args()
        train_set, val_set, num_classes = load_data(args.data, args.image_size)
        parts, images = args.accumulate * WORLD_SIZE, len(train_set)
        if args.batch_size not in range(parts, images + 1, parts):
            sys.exit(f"--batch-size: a multiple of {parts} is needed, up to {images}")
        args.folder.mkdir(parents=True, exist_ok=True)
        files = sorted(args.folder.glob("epoch_*.pt"))
        if files and not args.resume and env("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            sys.exit(f"{args.folder} is in use: --resume, or another --folder")
        torch.manual_seed(args.seed)
        model = build_model(args.model, num_classes)
    except (SystemExit, OSError) as problem:
        agree(getattr(problem, "code", str(problem)))
        raise  # all ranks were asked for --help
    agree((DEVICE, args, files))
    optimizer = optim.SGD(model.to(DEVICE).parameters(), args.lr, momentum=0.9)
    saved = torch.load(files[-1], "cpu", weights_only=True) if files else {"epoch": 0}
    if files:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        optimizer.param_groups[0]["lr"] = args.lr
    say("starting from", files[-1] if files else "the beginning: no checkpoint")
    model.forward = torch.autocast(DEVICE, torch.bfloat16, args.bf16)(model.forward)
    share = args.batch_size // WORLD_SIZE
    options = {"batch_size": share, "num_workers": args.workers, "pin_memory": ON_GPU}
    sampler = DistributedSampler(train_set, seed=args.seed, drop_last=True)
    loader = DataLoader(train_set, sampler=sampler, drop_last=True, **options)
    mine = range(RANK, len(val_set), WORLD_SIZE)  # DistributedSampler would repeat some
    ddp = DDP(model)  # sorts its buckets after one backward: now, for an exact resume
    ddp.eval()(train_set[0][0][None].to(DEVICE)).sum().backward()
    for epoch in range(saved["epoch"] + 1, args.epochs + 1):
        sampler.set_epoch(epoch)
        torch.manual_seed(hash((args.seed, epoch, RANK)))  # each rank its own Dropout
        train_loss = train_epoch(ddp.train(), loader, optimizer, args.accumulate)
        loss, acc = evaluate(model.eval(), DataLoader(val_set, sampler=mine, **options))
        if RANK == 0:
            save(args.folder, epoch, model=model, optimizer=optimizer)
        losses = f"train loss {train_loss:.4f}, val loss {loss:.4f}"
        say(f"epoch {epoch}: {losses}, val acc {acc:.4f}", flush=True)


@record
def main() -> None:
    torch.cuda.set_device(LOCAL_RANK if ON_GPU else -1)
    # Not torchrun's store, which after a restart has dead addresses: pytorch#135712
    port = int(env("MASTER_PORT", 1000)) - 1000  # alone: 0, which is any free one
    store = dist.TCPStore(env("MASTER_ADDR", "127.0.0.1"), port, WORLD_SIZE, RANK == 0)
    dist.init_process_group(BACKEND, store=store, rank=RANK, world_size=WORLD_SIZE)
    signal.signal(signal.SIGTERM, lambda *_: sigterms.append(True))
    say(f"processes: {WORLD_SIZE}, {BACKEND}, {DEVICE} (GPUs: {GPUS} for {LOCAL_SIZE})")
    try:
        code = train()
    except SystemExit as end:
        code = end.code
    # A cycle (DDP's, in torch 2.11) keeps threads that may abort exit: pytorch#190489
    gc.collect()
    dist.destroy_process_group()
    sys.exit(code)


if __name__ == "__main__":
    main()
