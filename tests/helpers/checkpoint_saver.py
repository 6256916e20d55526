"""A process that saves and saves, to be killed: see test_checkpoint_kills.py.

Started once, it reads jobs from stdin, one JSON object a line, and runs each in a fork
of itself, so that a job starts in milliseconds. A job writes lines to stdout: "saved
EPOCH", "interrupted"; and this process "pid PID" and "ended STATUS". Every tensor of
epoch E holds E.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from helpers import checkpoint


def tell(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def job(folder: Path, way: str, saves: int = sys.maxsize) -> None:
    model = nn.Sequential(*[nn.Linear(512, 512, bias=False) for _ in range(4)])  # 4 MiB
    parts, done = {"model": model, "generator": torch.Generator()}, 0
    if way == "safe" and checkpoint.list_checkpoints(folder):
        done = checkpoint.load_checkpoint(folder, **parts)["epoch"]
    for epoch in range(done + 1, done + 1 + saves):
        for parameter in model.parameters():
            parameter.data.fill_(epoch)
        if way == "safe":
            checkpoint.save_checkpoint(
                folder, epoch=epoch, loss=float(epoch), keep_last=2, **parts
            )
        else:  # as most people do it
            torch.save({"model": model.state_dict()}, folder / f"{epoch % 2}.pt")
        tell(f"saved {epoch}")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:  # imports what forks need
        job(Path(folder), "safe", saves=1)
    for line in sys.stdin:
        order = json.loads(line)
        if pid := os.fork():
            tell(f"pid {pid}")
            tell(f"ended {os.waitpid(pid, 0)[1]}")
            continue
        try:
            job(Path(order["folder"]), order["way"])
        except KeyboardInterrupt:
            tell("interrupted 0")
            os._exit(0)
        except BaseException as error:
            tell(f"error {error!r}")
            os._exit(1)


if __name__ == "__main__":
    main()
