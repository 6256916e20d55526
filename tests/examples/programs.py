"""Programs of one or several processes, none of which outlives its test."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
PATIENCE_S = 120


class Program:
    """A command in the background; on leaving the `with` block, all it started ends."""

    def __init__(self, words: list, log: Path, **env: str) -> None:
        self.out, self.err = log.with_suffix(".out"), log.with_suffix(".err")
        env = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | env
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = psutil.Popen(
                [str(word) for word in words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=os.environ | env,
            )

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_) -> None:
        # If torchrun is killed it can't end its workers, so they are named before
        for process in [self.process, *self.workers()]:
            if process.is_running():
                process.kill()
        self.process.wait()

    def workers(self) -> list[psutil.Process]:
        """The processes that it has started, eldest first."""
        try:
            children = self.process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return sorted(children, key=lambda child: (child.create_time(), child.pid))

    def said(self) -> str:
        """What it has printed so far."""
        return self.out.read_text("utf-8", errors="replace")

    def errors(self) -> str:
        """What it has written to standard error so far."""
        return self.err.read_text("utf-8", errors="replace")

    def wait_for(self, text: str) -> None:
        """Until it has printed `text`."""
        end = time.monotonic() + PATIENCE_S
        while text not in self.said():
            assert self.process.poll() is None, self.errors()
            assert time.monotonic() < end, self.errors()
            time.sleep(0.02)

    def wait(self) -> int:
        """Its exit code."""
        try:
            return self.process.wait(PATIENCE_S)
        except psutil.TimeoutExpired:
            pytest.fail(f"still running: {self.errors()}")

    def finish(self) -> str:
        """What it has printed; its exit code must be 0."""
        assert self.wait() == 0, self.errors()
        return self.said()
