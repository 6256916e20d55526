"""Run programs of several processes from a notebook, and leave no process behind."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
MARK = "COURSE_PROGRAM"  # in the environment of a program and of all that it starts
TAIL_LINES = 80  # of a failed program's output: 40 are torchrun's own


class LaunchError(RuntimeError):
    """A program ended with an error or took too long; the message holds its output."""


class Program:
    """A command running in the background, with all the processes it starts.

    Use it in a `with` block, or call `wait` or `stop`: each leaves no process behind.

    Args:
        command: the arguments, as in `["torchrun", "--standalone", script]`. `torchrun`
            and `python` are those of the notebook's own environment; `helpers` can be
            imported.
        env: variables of its environment. Each process has one thread for computing
            unless OMP_NUM_THREADS is among them, so that they share the cores.
    """

    def __init__(self, command: Sequence[str | Path], **env: str) -> None:
        if isinstance(command, str) or not command:
            raise TypeError(f"the command should be a list of arguments: {command!r}")
        self.command = [str(word) for word in command]
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        programs = {"torchrun": torchrun, "python": [sys.executable]}
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        own = {
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            MARK: uuid.uuid4().hex,
        }
        self._mark = own[MARK]
        # Files, as a pipe that nobody reads fills up and stops the program
        self._stdout = tempfile.TemporaryFile()  # noqa: SIM115
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = psutil.Popen(
            programs.get(self.command[0], self.command[:1]) + self.command[1:],
            stdout=self._stdout,
            stderr=self._stderr,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the notebook's, which then calls stop()
            env={**os.environ, **own, **env},
        )
        self.pid = self._process.pid
        atexit.register(self.stop)  # of the notebook's kernel, or the program

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def running(self) -> bool:
        return self._process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """The processes that it has started and that still run, eldest first.

        They are known by the mark in their environment: torchrun gives each worker a
        session of its own, and if it is killed they have another parent.
        """
        found = []
        for process in psutil.process_iter():
            # It may have ended, or belong to someone else.
            with contextlib.suppress(psutil.Error):
                if process.pid != self.pid and self._mark in process.environ().values():
                    found.append(process)
        return sorted(found, key=lambda process: (process.create_time(), process.pid))

    def output(self) -> str:
        """What it has printed so far (standard output)."""
        return self._read(self._stdout)

    def errors(self) -> str:
        """What it has written to standard error so far: warnings, tracebacks."""
        return self._read(self._stderr)

    def wait(self, timeout_s: float = 120) -> str:
        """Wait for the end and return what was printed.

        Raises:
            LaunchError: it took longer than `timeout_s` seconds (everything is stopped
                then), or ended with an error.
        """
        try:
            code = self._process.wait(timeout_s)
            how = f"ended with exit code {code}"
        except psutil.TimeoutExpired:
            code, how = None, f"stopped after {timeout_s:g} s"
        finally:
            self.stop()
        if code == 0:
            return self.output()
        tail = (self.output() + self.errors()).splitlines()[-TAIL_LINES:]
        raise LaunchError("\n".join([f"{how}: {self.command}", *tail]))

    def stop(self) -> None:
        """End the command and all it started: politely first, then by force."""
        _end([self._process])  # first: told to end, torchrun ends its workers itself
        _end(self.workers())
        atexit.unregister(self.stop)

    @staticmethod
    def _read(file) -> str:
        # A second reader's position would move the writer's, which shares it
        size = os.fstat(file.fileno()).st_size
        return os.pread(file.fileno(), size, 0).decode(errors="replace")


def _end(processes: Sequence[psutil.Process], patience_s: float = 10) -> None:
    for how in ("terminate", "kill"):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, how)()
        _, processes = psutil.wait_procs(processes, timeout=patience_s)


def launch(command: Sequence[str | Path], *, timeout_s: float = 120, **env: str) -> str:
    """Run a command to its end and return what it printed; see `Program`.

    Raises:
        LaunchError: it failed, or took longer than `timeout_s` seconds; the message
            holds the end of its output. No process is left.
    """
    with Program(command, **env) as program:
        return program.wait(timeout_s)
