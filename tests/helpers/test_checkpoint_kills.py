"""Processes shot in mid-save: SIGKILL, and a control that shows what it does else."""

import contextlib
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

from helpers.checkpoint import list_checkpoints, read_checkpoint, save_checkpoint

TESTS = Path(__file__).resolve().parent
KILLS = 40


class Saver:
    """Runs tests/checkpoint_saver.py's jobs and sends signals to them."""

    def __init__(self) -> None:
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        self.save_s = 0.05  # how long a save takes here: measured as it goes on
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "checkpoint_saver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONUTF8": "1"},
        )

    def shoot(
        self, folder: Path, signals: list[int], draw: random.Random, kind: str = "safe"
    ) -> list[tuple[str, int]]:
        """Start a job, let it save 0 to 2 times, and send the signals within the next.

        Returns what the job told, in order.
        """
        order = {"folder": str(folder), "kind": kind, "layers": 8}  # 8 MiB
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        told, pid, began_s, waits = [], None, 0.0, draw.randrange(3)
        for line in self.process.stdout:
            word, _, rest = line.strip().partition(" ")
            assert word != "error", rest
            told.append((word, int(rest or 0)))
            if word == "pid":
                pid = int(rest)
            elif word == "began":
                began_s = time.monotonic()
            elif word == "saved":
                self.save_s = 0.7 * self.save_s + 0.3 * (time.monotonic() - began_s)
                waits -= 1
            elif word == "ended":
                return told
            if pid and waits <= 0 and ("start", 0) in told:
                time.sleep(draw.uniform(0, 1.2 * self.save_s))
                for number in signals or [signal.SIGKILL]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                    time.sleep(0.001)
                assert signals, f"the signal was dropped: {told}"
                signals, waits = [], 20
        raise AssertionError(f"the saver ended: {told}")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def saver() -> Iterator[Saver]:
    saver = Saver()
    yield saver
    saver.close()


def numbers(told: list[tuple[str, int]], word: str) -> list[int]:
    return [number for name, number in told if name == word]


def test_case_01_sigkill_at_random_moments(saver: Saver, tmp_path: Path) -> None:
    """No unreadable file, no confirmed save lost, no mixed state; epoch 1 is best."""
    draw, confirmed, in_mid_save = random.Random(1), 0, 0
    for _ in range(KILLS):
        told = saver.shoot(tmp_path, [signal.SIGKILL], draw)
        confirmed = max([confirmed, *numbers(told, "saved")])
        assert unreadable(tmp_path) == []
        files = list_checkpoints(tmp_path)
        for file in files:
            content = read_checkpoint(file)
            for tensor in content["model_state_dict"].values():
                assert (tensor == content["epoch"]).all(), "a mixed state"
        epochs = [read_checkpoint(file)["epoch"] for file in files]
        if confirmed:
            assert epochs[-1] >= confirmed, "a confirmed save was lost"
            assert epochs[-1] - 1 in [0, *epochs], "the last but one was lost"
            assert epochs[0] == 1, "the best was lost"
        for name in strays(tmp_path):
            assert name.endswith(".tmp")
            in_mid_save += 1
            (tmp_path / name).unlink()
    print(f"{KILLS} kills, {in_mid_save} of them in mid-save, {confirmed} epochs saved")
    assert in_mid_save >= KILLS // 4, "the kills came at the wrong moments"
    assert confirmed >= 5


def test_case_01_control_the_same_kills_damage_a_plain_save(
    saver: Saver, tmp_path: Path
) -> None:
    """The shooting can do harm: torch.save on the destination leaves rubbish."""
    draw, damaged = random.Random(2), 0
    for _ in range(12):
        saver.shoot(tmp_path, [signal.SIGKILL], draw, kind="plain")
        for file in list_checkpoints(tmp_path):
            try:
                torch.load(file, weights_only=True)
            except Exception:
                damaged += 1
            file.unlink()
    print(f"12 kills, {damaged} unreadable files")
    assert damaged >= 1


@pytest.mark.parametrize(
    "name", ["plain", "Übung 4/模型 ✓"], ids=["02", "03_non_ascii"]
)
def test_case_02_03_sigint_at_random_moments(
    saver: Saver, tmp_path: Path, name: str
) -> None:
    """KeyboardInterrupt, the file in the making whole, no temporary left."""
    folder, draw, in_mid_save = tmp_path / name, random.Random(name), 0
    folder.mkdir(parents=True)
    for turn in range(KILLS):
        presses = [signal.SIGINT] * (1 + turn % 3)  # the impatient press again
        told = saver.shoot(folder, presses, draw)
        assert strays(folder) == []
        assert unreadable(folder) == []
        epochs = [read_checkpoint(file)["epoch"] for file in list_checkpoints(folder)]
        began, saved = numbers(told, "began"), numbers(told, "saved")
        assert ("ended", 0) in told
        assert numbers(told, "interrupted") or len(presses) > 1
        if began:
            assert epochs[-1] == began[-1], "the save that had begun is not there"
            in_mid_save += began != saved
    print(f"{KILLS} times SIGINT, {in_mid_save} of them in mid-save")
    assert in_mid_save >= KILLS // 4, "the signals came at the wrong moments"


def test_case_19_stale_temporaries_are_ignored_and_later_removed(
    saver: Saver, tmp_path: Path
) -> None:
    """A temporary as old as an hour goes; one that may be in use stays."""
    draw = random.Random(19)
    for _ in range(40):
        saver.shoot(tmp_path, [signal.SIGKILL], draw)
        if len(strays(tmp_path)) >= 2:
            break
    stale, fresh = strays(tmp_path)[:2]
    long_ago = time.time() - 2 * 3600
    os.utime(tmp_path / stale, (long_ago, long_ago))
    epochs = len(list_checkpoints(tmp_path))
    save_checkpoint(tmp_path, epoch=1000, model=torch.nn.Linear(2, 2), keep_last=50)
    assert len(list_checkpoints(tmp_path)) == epochs + 1
    left = strays(tmp_path)
    assert stale not in left
    assert fresh in left, "a temporary that may be in use was removed"


CELL = """
import torch
from pathlib import Path
from helpers.checkpoint import save_checkpoint
torch.set_num_threads(1)
model = torch.nn.Linear(1500, 1500)
epoch = 0
while True:
    epoch += 1
    save_checkpoint({folder!r}, epoch=epoch, model=model)
    print(epoch, flush=True)
"""


def test_case_02_stop_button_in_a_real_kernel(tmp_path: Path) -> None:
    """A cell of a Jupyter kernel is interrupted five times."""
    from jupyter_client.manager import start_new_kernel

    paths = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    manager, client = start_new_kernel(kernel_name="python3", env=paths)
    draw = random.Random(3)
    try:
        for _ in range(5):
            request = client.execute(CELL.format(folder=str(tmp_path)))
            said = ""
            while "2\n" not in said:  # it saves; now at any moment
                message = client.get_iopub_msg(timeout=60)
                if message["msg_type"] == "stream":
                    said += message["content"]["text"]
            time.sleep(draw.uniform(0, 0.1))
            manager.interrupt_kernel()
            reply = client.get_shell_msg(timeout=60)
            while reply["parent_header"].get("msg_id") != request:
                reply = client.get_shell_msg(timeout=60)
            assert reply["content"]["ename"] == "KeyboardInterrupt"
            assert strays(tmp_path) == []
            assert unreadable(tmp_path) == []
            assert len(list_checkpoints(tmp_path)) >= 2
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
