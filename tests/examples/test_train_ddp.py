"""helpers.train_ddp with real processes: equal, resumed to the last bit, never hung."""

import json
import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from helpers.checkpoint import list_checkpoints, read_checkpoint
from helpers.compare import max_difference
from helpers.launch import LaunchError, Program, launch
from helpers.photos import draw_shapes
from helpers.processes import MIXED

HERE = Path(__file__).parent
TWO = "torchrun --standalone --nproc-per-node=2"
SHORT_STEPS = "-m helpers.train_ddp --batch-size=20 --epochs=4 --resume"
STOPPED = 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    yield folder
    left = [p for p in psutil.process_iter(["cmdline"]) if mentions(p, str(folder))]
    assert left == [], "no process is left"


def mentions(process, text):
    return text in " ".join(process.info["cmdline"] or [])


def end(folder):
    return read_checkpoint(list_checkpoints(folder)[-1])


def assert_same(a, b):
    assert a["epoch"] == b["epoch"]
    assert max_difference(a["model_state_dict"], b["model_state_dict"]) == 0
    assert (a["loss"], a["acc"]) == (b["loss"], b["acc"])


def wait_for(program, text):
    """Until the program has shown `text` in its progress bars."""
    while text not in program.errors():
        assert program.running(), program.errors()
        time.sleep(0.02)


def ended(program, seconds=60):
    """The exit code of a program that ends by itself."""
    with pytest.raises(LaunchError, match="ended with exit code") as error:
        program.wait(seconds)
    return int(str(error.value).split("exit code ")[1].split(":")[0])


def mid_epoch(folder):
    """The checkpoints that were saved after some steps of an epoch."""
    return [f for f in list_checkpoints(folder) if f.name.endswith("_none_none.pt")]


def undisturbed(folder):
    launch(f"{TWO} {SHORT_STEPS} --folder={folder}")
    return end(folder)


def told(folder):
    """torchrun is told to end, as by Slurm, and started again."""
    with Program(f"{TWO} {SHORT_STEPS} --folder={folder}") as program:
        wait_for(program, "epoch 2:")
        os.kill(program.pid, signal.SIGTERM)
        ended(program)
    stopped = mid_epoch(folder) == list_checkpoints(folder)[-1:]
    launch(f"{TWO} {SHORT_STEPS} --folder={folder}")
    return stopped, end(folder)


def shot(folder):
    """One worker is told to end, and one of the next is shot; torchrun restarts all."""
    torchrun = TWO.replace("--nproc", "--max-restarts=2 --nproc")
    with Program(f"{torchrun} {SHORT_STEPS} --folder={folder}") as program:
        wait_for(program, "epoch 2:")
        program.workers()[-1].send_signal(signal.SIGTERM)
        wait_for(program, "epoch 3:")
        stopped = bool(mid_epoch(folder))
        program.workers()[0].send_signal(signal.SIGKILL)
        program.wait()
    return stopped, end(folder)


def three(folder):
    """Three processes, two epochs, in one run and in two."""
    command = "torchrun --standalone --nproc-per-node=3 -m helpers.train_ddp --lr=0.05"
    command += " --batch-size=60 --resume"
    with Program(f"{command} --epochs=2 --folder={folder / 'once'}") as once:
        for epochs in (1, 2):
            launch(f"{command} --epochs={epochs} --folder={folder / 'twice'}")
        once.wait()
    return end(folder / "once"), end(folder / "twice")


def photos(folder):
    """Photos cut at random by a loading process; one run of two is interrupted."""
    shapes = draw_shapes(folder / "photos", per_class=150)
    command = f"python -m helpers.train_ddp --data={shapes} --image-size=32 --workers=1"
    command += " --batch-size=4 --epochs=3 --resume"
    with (
        Program(f"{command} --folder={folder / 'cut'}") as cut,
        Program(f"{command} --folder={folder / 'uncut'}") as uncut,
    ):
        wait_for(cut, "epoch 2:")
        os.kill(cut.pid, signal.SIGTERM)
        code, stopped = ended(cut), bool(mid_epoch(folder / "cut"))
        launch(f"{command} --folder={folder / 'cut'}")
        uncut.wait()
    return code, stopped, end(folder / "cut"), end(folder / "uncut")


def plain(folder):
    """A model that is the same in any shares: one process, and two with two parts."""
    command = f"{HERE / 'ddp_plain.py'} --epochs=2"
    with Program(f"python {command} --folder={folder / 'one'}") as one:
        launch(f"{TWO} {command} --accumulate=2 --folder={folder / 'two'}")
        one.wait()
    return end(folder / "one"), end(folder / "two")


def cases(folder):
    return json.loads(launch(f"{TWO} {HERE / 'ddp_cases.py'} {folder}"))


@pytest.fixture(scope="module")
def results(folder):
    """What came of each, by name; three run at a time."""
    with ThreadPoolExecutor(3) as beside:
        yield {
            run.__name__: beside.submit(run, folder / run.__name__)
            for run in (shot, told, three, undisturbed, photos, cases, plain)
        }


def test_torchrun_told_to_end_saves_and_the_next_run_goes_on(results):
    stopped, last = results["told"].result()
    assert stopped, "the newest checkpoint was saved in mid-epoch"
    assert_same(last, results["undisturbed"].result())


def test_a_worker_told_to_end_and_one_shot_are_restarted_and_go_on(results):
    stopped, last = results["shot"].result()
    assert stopped, "the one that was told to end saved in mid-epoch"
    assert_same(last, results["undisturbed"].result())


def test_three_processes_resume_to_the_last_bit(results):
    """With three the order of the sums can change: see processes.wrap."""
    assert_same(*results["three"].result())


def test_photos_cut_at_random_by_loading_processes_resume_as_well(results):
    code, stopped, cut, uncut = results["photos"].result()
    assert code == STOPPED
    assert stopped
    assert_same(cut, uncut)


def test_two_processes_train_as_one_and_parts_add_up_to_a_batch(results):
    one, two = results["plain"].result()
    assert one["acc"] > 0.5, "it has learned"
    difference = max_difference(one["model_state_dict"], two["model_state_dict"])
    assert difference < 1e-12
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-12)
    assert one["acc"] == pytest.approx(two["acc"], rel=1e-12)


@pytest.fixture(scope="module")
def cases_met(results):
    return results["cases"].result()


def test_a_run_prints_its_epochs_once(cases_met):
    (out, _, code), (out_1, err_1, code_1) = cases_met["trains"]
    assert out.startswith("epoch 1, 2 processes: validation loss ")
    assert (out_1, err_1) == ("", "")
    assert code is code_1 is None
    assert "is at epoch 1: nothing left" in cases_met["nothing left"][0][0]
    assert [code for *_, code in cases_met["bf16"]] == [None, None]


def test_help_is_printed_once(cases_met):
    (out, err, code), (out_1, err_1, code_1) = cases_met["help"]
    assert all(f"--{name}" in out for name in ("epochs", "batch-size", "resume"))
    assert (out_1, err, err_1, code, code_1) == ("", "", "", 0, 0)


@pytest.mark.parametrize(
    ("case", "message"),
    {
        "in use": "used is in use: --resume, or another --folder",
        "other settings": "begun with other settings: .*'lr': 0.02",
        "no number": "argument --epochs: invalid int value: 'many'",
        "zero": "--epochs must be above 0",
        "unknown": "unrecognized arguments: --nodes=2",
        "indivisible": "--batch-size must be a multiple of 2",
        "indivisible parts": "--batch-size must be a multiple of 6",
        "too large": "--batch-size is above all 1000 images",
        "no data": "missing is not there, or is not a folder",
        "no model": "no classifier 'resnet' .*Unknown model resnet",
        "no classifier": "no classifier 'fcn_resnet50'",
        "too small": "'inception_v3' for images of 32 pixels",
        "not a folder": "ddp_cases.py",
        "data here, not there 0": "no such photo",
        "full 0": "the disk is full",
        "not one folder 0": r"must be one folder for all machines",
    }.items(),
)
def test_what_is_wrong_is_said_once_and_all_leave(cases_met, case, message):
    ranks = cases_met[case]
    assert [code for *_, code in ranks] == [2, 2]
    said = [line for _, err, _ in ranks for line in err.splitlines() if "error" in line]
    assert len(said) == 1
    assert re.search(message, said[0])


def test_trouble_of_rank_1_is_said_by_rank_1(cases_met):
    for case in ("data here, not there 1", "not one folder 1"):
        (_, err, code), (_, err_1, code_1) = cases_met[case]
        assert (code, code_1) == (2, 2)
        assert "error" not in err
        assert err_1.startswith("error: ")
    assert [code for *_, code in cases_met["full 1"]] == [None, None], (
        "rank 0 alone saves"
    )


def test_evaluation_counts_each_sample_once(cases_met):
    for per_rank in cases_met["evaluations"]:
        for together, alone in per_rank:
            assert together == pytest.approx(alone, rel=1e-5)


def test_a_port_in_use_is_said_without_a_hang(folder):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        train = f"-m helpers.train_ddp --folder={folder / 'port'}"
        env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        by_hand = Program(f"python {train}", MASTER_PORT=port, **env)
        torchrun = Program(f"torchrun --nproc-per-node=2 --master-port={port} {train}")
        with by_hand, torchrun:
            assert ended(by_hand) == 1
            assert by_hand.errors() == (
                f"error: port {port} is in use on 127.0.0.1: choose another\n"
            )
            ended(torchrun)
            assert "EADDRINUSE" in torchrun.errors()


def test_a_machine_with_gpus_beside_one_without_is_said_once():
    command = f"{TWO} {HERE / 'ddp_unlike.py'}"
    with Program(command, CUDA_VISIBLE_DEVICES="") as unlike:
        assert ended(unlike) == 1
        said = [s for s in unlike.errors().splitlines() if s.startswith("error:")]
        assert said == [f"error: {MIXED} (rank 0 has cpu, one cuda)"]
        assert "trained" not in unlike.output()
