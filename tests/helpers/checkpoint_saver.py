"""A process that saves and saves, to be killed: see test_checkpoint_kills.py.

Started once, it reads jobs from stdin, one JSON object a line, and runs each in a fork
of itself, so that a job starts in milliseconds. A job writes lines to stdout: "saved
EPOCH", "interrupted"; and this process "pid PID" and "ended STATUS". Every tensor of
epoch E holds E.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

from helpers import checkpoint


def tell(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def job(folder: Path, way: str) -> None:
    model = nn.Sequential(*[nn.Linear(512, 512, bias=False) for _ in range(4)])  # 4 MiB
    optimizer = torch.optim.SGD(model.parameters())
    epoch = 0
    if way == "safe" and checkpoint.list_checkpoints(folder):
        parts = {"model": model, "optimizer": optimizer}
        epoch = checkpoint.load_checkpoint(folder, **parts)["epoch"]
    while True:
        epoch += 1
        for parameter in model.parameters():
            parameter.data.fill_(epoch)
        if way == "safe":
            checkpoint.save_checkpoint(
                folder,
                epoch=epoch,
                model=model,
                optimizer=optimizer,
                loss=float(epoch),
                keep_last=2,
            )
        else:  # as most people do it
            torch.save({"model": model.state_dict()}, folder / f"{epoch % 2}.pt")
        tell(f"saved {epoch}")


def main() -> None:
    torch.set_num_threads(1)
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
