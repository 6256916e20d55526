"""Processes killed while they save, and a control that shows what a kill does else."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_support import strays, unreadable

from helpers.checkpoint import list_checkpoints, read_checkpoint

HERE = Path(__file__).resolve().parent
KILLS = int(os.environ.get("CHECKPOINT_KILLS", "25"))


class Saver:
    """Runs checkpoint_saver.py's jobs and sends signals to them."""

    def __init__(self) -> None:
        paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "checkpoint_saver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONUTF8": "1"},
        )
        assert self.process.stdout.readline() == "saved 1\n", "it is warmed up"

    def stop(
        self, folder: Path, number: int, draw: random.Random, way: str = "safe"
    ) -> list[tuple[str, int]]:
        """Let a job save two or three times, and send the signal within the next save.

        Returns what the job told, in order.
        """
        order = {"folder": str(folder), "way": way}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        told, times, after = [], [], draw.randrange(2, 4)
        for line in self.process.stdout:
            word, _, rest = line.strip().partition(" ")
            assert word != "error", rest
            told.append((word, int(rest)))
            if word == "ended":
                return told
            times += [time.monotonic()] * (word == "saved")
            # Python drops a KeyboardInterrupt that arrives in a destructor or in a
            # callback: if nothing happens, press Ctrl-C again, as a user does
            if word == "saved" and len(times) in (after, after + 20, after + 40):
                time.sleep(draw.uniform(0, 1.1 * (times[-1] - times[-2])))
                os.kill(told[0][1], number)
            assert len(times) < after + 60, f"the signal was dropped: {told}"
        raise AssertionError(f"the saver ended: {told}")


@pytest.fixture(scope="module")
def saver() -> Iterator[Saver]:
    saver = Saver()
    yield saver
    saver.process.stdin.close()
    saver.process.wait(timeout=30)
    saver.process.stdout.close()


def saved(told: list[tuple[str, int]]) -> int:
    return max(number for word, number in told if word == "saved")


def assert_nothing_is_lost(folder: Path, confirmed: int) -> None:
    """All files verify, none is a mixture, and the last two and the best are there."""
    assert unreadable(folder) == []
    contents = [read_checkpoint(file) for file in list_checkpoints(folder)]
    for content in contents:
        for tensor in content["model_state_dict"].values():
            assert (tensor == content["epoch"]).all(), "a mixed state"
    epochs = [content["epoch"] for content in contents]
    assert epochs[-1] >= confirmed, "a confirmed save was lost"
    assert epochs[-1] - 1 in epochs, "the last but one was lost"
    assert epochs[0] == 1, "the best was lost"


def test_killed_at_random_moments(saver: Saver, tmp_path: Path) -> None:
    draw, confirmed = random.Random(1), 0
    for _ in range(KILLS):
        confirmed = saved(saver.stop(tmp_path, signal.SIGKILL, draw))
        assert_nothing_is_lost(tmp_path, confirmed)
    stale, *fresh = strays(tmp_path)
    print(f"{KILLS} kills, {1 + len(fresh)} during a save, {confirmed} epochs saved")
    assert len(fresh) >= KILLS // 5, "the kills came at the wrong moments"
    # Temporary files stay for an hour: until then another process may write to them
    os.utime(tmp_path / stale, (time.time() - 7200, time.time() - 7200))
    saver.stop(tmp_path, signal.SIGKILL, draw)
    assert stale not in strays(tmp_path)
    assert {*fresh} <= {*strays(tmp_path)}


def test_the_same_kills_damage_a_plain_save(saver: Saver, tmp_path: Path) -> None:
    """The control: torch.save to its destination leaves files that can't be read."""
    draw, damaged = random.Random(2), 0
    for _ in range(12):
        saver.stop(tmp_path, signal.SIGKILL, draw, way="plain")
        for file in tmp_path.iterdir():
            try:
                torch.load(file, weights_only=True)
            except Exception:
                damaged += 1
            file.unlink()
    print(f"12 kills, {damaged} unreadable files")
    assert damaged >= 1


def test_ctrl_c_at_random_moments(saver: Saver, tmp_path: Path) -> None:
    """KeyboardInterrupt; the save at work is done or undone, and nothing is left."""
    draw = random.Random(3)
    for _ in range(KILLS):
        told = saver.stop(tmp_path, signal.SIGINT, draw)
        assert told[-2:] == [("interrupted", 0), ("ended", 0)]
        assert_nothing_is_lost(tmp_path, saved(told))
        assert strays(tmp_path) == []
