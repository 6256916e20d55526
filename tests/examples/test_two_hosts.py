"""Two hosts with addresses of their own: network namespaces joined by a cable."""

import os
import re
import shutil
import subprocess
import sys
import uuid

import pytest

from helpers.checkpoint import list_checkpoints, read_checkpoint
from helpers.launch import Program

ADDRESSES = ("10.88.0.1", "10.88.0.2")
ENV = {"GLOO_SOCKET_IFNAME": "cable", "CUDA_VISIBLE_DEVICES": ""}


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
            pytest.skip(
                f"no network namespace may be made here: {error.stderr.strip()}"
            )
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


def test_two_hosts_have_addresses_of_their_own(hosts):
    for host, address in zip(hosts, ADDRESSES, strict=True):
        assert re.findall(r"inet ([\d.]+)/24", ip("-n", host, "address")) == [address]


def test_a_training_over_two_hosts(hosts, tmp_path):
    nodes = [
        Program(
            f"ip netns exec {host} {sys.executable} -m torch.distributed.run "
            f"--nnodes=2 --node-rank={number} --nproc-per-node=1 "
            f"--master-addr={ADDRESSES[0]} --master-port=29500 "
            f"-m helpers.train_ddp --epochs=2 --folder={tmp_path}",
            **ENV,
        )
        for number, host in enumerate(hosts)
    ]
    with nodes[0], nodes[1]:
        said = [node.wait() for node in nodes]
    assert re.findall(r"epoch (\d), 2 processes", said[0]) == ["1", "2"]
    assert said[1] == "", "rank 0 speaks, on the first host"
    assert read_checkpoint(list_checkpoints(tmp_path)[-1])["acc"] > 0.5
