"""Run by test_train_ddp.py: rank 1 believes that it has a GPU.

Its group then joins CPUs by Gloo, as rank 0's does, and GPUs by what NCCL stands for.
"""

import os
from unittest import mock

import torch
import torch.distributed as dist

from helpers import processes

meet = dist.init_process_group


def without_nccl(backend, **options):
    meet(backend.replace("nccl", "gloo"), **options)


if os.environ["RANK"] == "1":
    mock.patch.object(torch.cuda, "device_count", return_value=2).start()
    mock.patch.object(torch.cuda, "set_device").start()
    mock.patch.object(dist, "init_process_group", without_nccl).start()

processes.run_group(lambda device: print("trained"))
