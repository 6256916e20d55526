"""Start programs of several processes from a notebook, and leave none behind.

A notebook can't start processes on functions that its own cells define, so the lessons
write a script to a file and start it with torchrun, as one would in a terminal.
"""

from __future__ import annotations

import atexit
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
TAIL_LINES = 80  # of a failed program's output: 40 are torchrun's own


class LaunchError(RuntimeError):
    """A program ended with an error or took too long; the message holds its output."""


class Program:
    """A command running in the background, with all the processes it starts.

    `command` is one line as for a terminal. `torchrun` and `python` are those of the
    notebook's own environment, and `helpers` can be imported. Each process has one
    thread for computing unless `env` says otherwise, so that they share the cores.

    Use it in a `with` block, or call `wait` or `stop`: each leaves no process behind.
    """

    def __init__(self, command: str, **env: str) -> None:
        words = shlex.split(command)
        if not words:
            raise ValueError("the command is empty: give it as for a terminal")
        if words[0] == "torchrun":
            words[:1] = [sys.executable, "-m", "torch.distributed.run"]
        elif words[0] == "python":
            words[0] = sys.executable
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.command = command
        # Files, as a pipe that nobody reads fills up and stops the program
        self._stdout = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._seen: set[psutil.Process] = set()
        self._process = psutil.Popen(
            words,
            stdout=self._stdout,
            stderr=self._stderr,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the notebook's, which then calls stop()
            env={
                "OMP_NUM_THREADS": "1",
                "PYTHONUNBUFFERED": "1",
                **{k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                **env,
            },
        )
        atexit.register(self.stop)  # of the notebook's kernel, or the program

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        return self._process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """The processes that it has started and that still run, eldest first."""
        try:
            children = self._process.children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self._seen.update(children)
        return sorted(children, key=lambda child: (child.create_time(), child.pid))

    def output(self) -> str:
        """What it has printed so far (standard output)."""
        return self._read(self._stdout)

    def errors(self) -> str:
        """What it has written to standard error so far: warnings, tracebacks."""
        return self._read(self._stderr)

    def wait(self, timeout_s: float = 120) -> str:
        """Wait for the end and return what was printed.

        Raises LaunchError if it takes longer than `timeout_s` seconds (everything is
        stopped then) or ends with an error.
        """
        end = time.monotonic() + timeout_s
        try:
            while self.running() and time.monotonic() < end:
                self.workers()  # remembered: if torchrun is killed, they have no parent
                time.sleep(0.05)
            code = self._process.poll()
        finally:
            self.stop()
        if code is None:
            raise LaunchError(
                f"stopped after {timeout_s:g} s: {self.command}\n{self._tail()}"
            )
        if code != 0:
            raise LaunchError(
                f"ended with exit code {code}: {self.command}\n{self._tail()}"
            )
        return self.output()

    def stop(self) -> None:
        """End the command and all it started: politely first, then by force."""
        self.workers()
        # torchrun gives each worker a session of its own and ends it when told to end
        # itself; killed outright, it would leave them running.
        self._end([self._process])
        self._end([child for child in self._seen if child.is_running()])
        atexit.unregister(self.stop)

    @staticmethod
    def _end(processes: list[psutil.Process], patience_s: float = 10) -> None:
        for process in processes:
            try:
                process.terminate()
            except psutil.NoSuchProcess:
                continue
        _, alive = psutil.wait_procs(processes, timeout=patience_s)
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(alive, timeout=patience_s)

    @staticmethod
    def _read(file) -> str:
        # A second reader's position would move the writer's, which shares it
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(
            errors="replace"
        )

    def _tail(self) -> str:
        lines = (self.output() + self.errors()).splitlines()
        return "\n".join(lines[-TAIL_LINES:])


def launch(command: str, *, timeout_s: float = 120, **env: str) -> str:
    """Run a command to its end and return what it printed (standard output).

    `launch("torchrun --standalone --nproc-per-node=2 script.py")`; `env` sets variables
    of its environment. Raises LaunchError, with the end of its output, if it fails or
    takes longer than `timeout_s` seconds. No process is left, whatever happens.
    """
    with Program(command, **env) as program:
        return program.wait(timeout_s)
