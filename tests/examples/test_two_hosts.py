"""Two hosts with addresses of their own: network namespaces joined by a cable."""

import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
from programs import TORCHRUN, Program

SCRIPT = Path(__file__).parent.parent.parent / "examples" / "train_ddp.py"
ADDRESSES = ("10.88.0.1", "10.88.0.2")


def ip(*words):
    command = ["ip", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def hosts():
    """Two namespaces; in each the interface `cable`, with one of the addresses."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("two hosts need network namespaces, and those need root")
    if shutil.which("ip") is None:
        pytest.skip("two hosts need `ip`, of Debian's package iproute2")
    tag = uuid.uuid4().hex[:6]
    names = [f"course-{tag}-{number}" for number in (0, 1)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespace can be made: {error.stderr.strip()}")
        first, second = names
        ip(*f"link add cable netns {first} type veth peer cable netns {second}".split())
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_a_run_over_two_hosts(hosts, tmp_path):
    for host, address in zip(hosts, ADDRESSES, strict=True):
        assert re.findall(r"inet ([\d.]+)/24", ip("-n", host, "address")) == [address]
    torchrun = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1"]
    torchrun += [f"--master-addr={ADDRESSES[0]}", "--master-port=29500"]
    saved = tmp_path / "saved"
    first, second = (
        Program(
            [
                *("ip", "netns", "exec", host, *torchrun, f"--node-rank={number}"),
                *(SCRIPT, "--epochs=2", "--batch-size=20", f"--folder={saved}"),
            ],
            tmp_path / f"host{number}",
            GLOO_SOCKET_IFNAME="cable",
        )
        for number, host in enumerate(hosts)
    )
    with first, second:
        said, said_1 = first.finish(), second.finish()
    header, *_, last = said.splitlines()
    assert header == "processes: 2, gloo, cpu (GPUs: 0 for 1)"
    assert last.startswith("epoch 2: ")
    assert float(last.split()[-1]) > 0.8, "it has learned"
    assert said_1 == "", "rank 0 speaks, on the first host"
    assert [file.name for file in sorted(saved.iterdir())] == [
        "epoch_0001.pt",
        "epoch_0002.pt",
    ]
