"""A process that saves and saves, to be shot: see test_checkpoint_kills.py.

Started once, it reads jobs from stdin, one JSON object a line, and runs each in a fork
of itself, so that a job starts in milliseconds. A job writes lines to stdout:
"start", "began EPOCH" when torch.save is entered, "saved EPOCH", "interrupted EPOCH",
and at last, from this process, "ended STATUS". Every tensor of epoch E holds E.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from helpers import checkpoint


def tell(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def job(folder: Path, kind: str, layers: int) -> None:
    model = nn.Sequential(*[nn.Linear(512, 512, bias=False) for _ in range(layers)])
    epoch, torch_save = 0, torch.save

    def save(content: dict, target: object) -> None:
        tell(f"began {epoch}")
        torch_save(content, target)

    torch.save = save
    try:
        epoch = checkpoint.load_checkpoint(folder, model=model)["epoch"]
    except (FileNotFoundError, checkpoint.CheckpointError):
        if kind == "safe" and checkpoint.list_checkpoints(folder):
            raise
    tell("start")
    try:
        while True:
            epoch += 1
            for parameter in model.parameters():
                parameter.data.fill_(epoch)
            if kind == "safe":
                checkpoint.save_checkpoint(
                    folder, epoch=epoch, model=model, loss=float(epoch), keep_last=2
                )
            else:  # as most people do it
                name = f"checkpoint_model_1_{epoch % 2:.4f}_none.pt"
                torch.save({"model": model.state_dict()}, folder / name)
            tell(f"saved {epoch}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        tell(f"interrupted {epoch}")


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        if pid := os.fork():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            tell(f"pid {pid}")
            tell(f"ended {os.waitpid(pid, 0)[1]}")
        else:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                job(Path(order["folder"]), order["kind"], order["layers"])
            except KeyboardInterrupt:  # pressed again while it was told
                os._exit(0)
            except BaseException as error:
                tell(f"error {error!r}")
                os._exit(1)
            os._exit(0)


if __name__ == "__main__":
    main()
