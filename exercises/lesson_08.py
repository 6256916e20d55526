"""Lesson 08: many nodes."""

import math
import os
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from exercises import N_, Exercise, Wrong, choice, define
from helpers.ranks import run_on_ranks


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


QUIZZES = {
    "ranks": [
        choice(
            "Three nodes with four workers each. Which ranks live on node 1?",
            ("0, 1, 2, 3", False, "Those are node 0's, and each node's *local* ranks."),
            ("4, 5, 6, 7", True, "Yes: ranks are numbered across all nodes."),
            (
                "1, 4, 7, 10",
                False,
                "The nodes do not take turns: a node's ranks are consecutive.",
            ),
        ),
        choice(
            "Two nodes with four GPUs each. Which GPU index should rank 5 use?",
            ("5", False, "There is no GPU 5 on its node: the indices are 0 to 3."),
            ("1", True, "Yes: its local rank. Rank 4 has GPU 0 of node 1."),
            ("0", False, "That is rank 4's GPU. NCCL refuses two ranks on one."),
        ),
    ],
    "one_dies": [
        choice(
            "What happens to the other worker?",
            (
                "It continues alone, with half of the batch",
                False,
                "It needs the dead rank's gradients: a process group cannot shrink.",
            ),
            (
                "It waits until a new rank 0 has joined",
                False,
                "A process group cannot replace a member.",
            ),
            (
                "torchrun stops it and starts both again",
                True,
                "Yes: all workers are stopped and started, on all nodes.",
            ),
        ),
        choice(
            "Where does training continue?",
            (
                "At the step of the kill: torchrun has saved the state",
                False,
                "torchrun knows nothing about your model.",
            ),
            (
                "Where the script decides: here, after the last saved epoch",
                True,
                "Yes: the script runs again from its first line. It loads the "
                "newest checkpoint if you wrote it to do so.",
            ),
            (
                "Always at epoch 1",
                False,
                "That is what happens if the script does not load a checkpoint.",
            ),
        ),
    ],
    "node_lost": [
        choice(
            "Node 1 has sent its last heartbeat. What does node 0 do?",
            (
                "It goes on at once, with its own share of the batch",
                False,
                "Its worker is in a process group of two, and all_reduce fails.",
            ),
            (
                "It restarts its worker at once, with world size 1",
                False,
                "Its agent can't tell yet: a node that is slow looks the same.",
            ),
            (
                "Its worker fails at once; after some seconds, a new one goes on alone",
                True,
                "Yes: the agent waits until node 1 counts as lost, and a bit longer.",
            ),
            (
                "It waits until node 1 is back",
                False,
                "With --nnodes=2 it would. --nnodes=1:2 says that one is enough.",
            ),
        ),
    ],
}

# 1: the command


def _check_command(torchrun_command):
    for node_rank, nnodes, gpus, host in [(0, 2, 4, "10.0.0.7"), (2, 3, 8, "gpu01")]:
        case = f"torchrun_command({node_rank}, {nnodes}, {gpus}, {host!r})"
        words = torchrun_command(node_rank, nnodes, gpus, host)
        if isinstance(words, str):
            raise Wrong(
                "{}: that is one string. Return a list, with one string for each "
                'argument: ["torchrun", "--nnodes=2", ...].',
                case,
            )
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise Wrong(
                "{}: expected a list of strings, found {!r}.",
                case,
                words,
            )
        if words[:1] != ["torchrun"] or words[-1:] != ["train.py"]:
            raise Wrong(
                "{}: the list should begin with 'torchrun' and end with 'train.py'. "
                "Arguments after the script's name go to the *script*; torchrun "
                "does not read them. Found {}.",
                case,
                words,
            )
        if bad := [word for word in words if " " in word]:
            raise Wrong(
                "{}: {!r} has a space. torchrun would get it as one argument: write "
                '"--nnodes=2", or "--nnodes", "2".',
                case,
                bad[0],
            )
        found = _options(words[1:-1])
        wanted = {
            "nnodes": str(nnodes),
            "node-rank": str(node_rank),
            "nproc-per-node": str(gpus),
            "master-addr": host,
            "master-port": "29500",
            "max-restarts": "3",
        }
        if found.get("nproc-per-node") == str(nnodes * gpus):
            raise Wrong(
                "{}: --nproc-per-node is {}, the world size. Each agent starts the "
                "workers of its own node: {}. Section 1.",
                case,
                nnodes * gpus,
                gpus,
            )
        if node_rank and found.get("master-addr") in ("127.0.0.1", "localhost"):
            raise Wrong(
                "{}: node {} looks for node 0 on itself ({}). Every node needs node "
                "0's address.",
                case,
                node_rank,
                found["master-addr"],
            )
        for name, value in wanted.items():
            if name not in found:
                raise Wrong(
                    "{}: --{} is missing; its value is {}. See In short.",
                    case,
                    name,
                    value,
                )
            if found[name] != value:
                raise Wrong(
                    "{}: --{} should be {}, found {}. See In short.",
                    case,
                    name,
                    value,
                    found[name],
                )
        if extra := found.keys() - wanted.keys():
            raise Wrong(
                "{}: leave out {}.",
                case,
                ", ".join(sorted(extra)),
            )


def _options(words):
    """--a=1 and --a 1 -> {"a": "1"}; underscores as torchrun takes them, too."""
    words, options = [part for word in words for part in word.split("=", 1)], {}
    for word in words:
        if word.startswith("--"):
            options[name := word[2:].replace("_", "-")] = ""
        elif options and not options[name] and not word.startswith("-"):
            options[name] = word
        else:
            raise Wrong(
                "torchrun does not know {!r}: its options begin with two dashes, "
                "and each has one value. See In short.",
                word,
            )
    return options


def _command_start(node_rank, nnodes, gpus, host):
    """The command for this node, a list of strings."""


def _command_with(per_node=lambda nnodes, gpus: gpus, **changed):
    def torchrun_command(node_rank, nnodes, gpus, host):
        options = {
            "nnodes": nnodes,
            "node-rank": node_rank,
            "nproc-per-node": per_node(nnodes, gpus),
            "master-addr": host,
            "master-port": 29500,
            "max-restarts": 3,
        } | changed
        options = [f"--{k}={v}" for k, v in options.items() if v is not None]
        return ["torchrun", *options, "train.py"]

    return torchrun_command


torchrun_command = Exercise(
    _check_command,
    start=_command_start,
    hints=[
        "Six options: the number of nodes, this node's number, its workers, "
        "node 0's address and port, and the restarts.",
        "The command is in In short. Only --node-rank differs between nodes.",
        '["torchrun", f"--nnodes={nnodes}", f"--node-rank={node_rank}", ..., '
        '"--max-restarts=3", "train.py"]',
    ],
    solution=_command_with(),
    text="""
def torchrun_command(node_rank, nnodes, gpus, host):
    return [
        "torchrun",
        f"--nnodes={nnodes}",
        f"--node-rank={node_rank}",
        f"--nproc-per-node={gpus}",
        f"--master-addr={host}",
        "--master-port=29500",
        "--max-restarts=3",
        "train.py",
    ]
""",
    wrong_answers=[
        (_command_with(lambda nnodes, gpus: nnodes * gpus), "the world size"),
        (_command_with(**{"master-addr": "127.0.0.1"}), "--master-addr should be"),
        (_command_with(**{"node-rank": 0}), "--node-rank should be"),
        (_command_with(**{"node-rank": None}), "--node-rank is missing"),
        (lambda *case: " ".join(_command_with()(*case)), "one string"),
        (
            lambda *case: ["torchrun", "train.py", *_command_with()(*case)[1:-1]],
            "go to the *script*",
        ),
        (_command_with(lambda nnodes, gpus: nnodes), "--nproc-per-node should be"),
        (
            lambda *case: [word.replace("--", "-") for word in _command_with()(*case)],
            "two dashes",
        ),
        (
            lambda *case: [word.replace("=", " ") for word in _command_with()(*case)],
            "has a space",
        ),
    ],
)

# 2: who saves


@contextmanager
def _environment(**values):
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _check_save(save):
    state = {"weight": torch.arange(3.0)}
    writers, barriers = [], []
    for rank in range(4):
        numbers = {
            "RANK": rank,
            "LOCAL_RANK": rank % 2,
            "GROUP_RANK": rank // 2,
            "WORLD_SIZE": 4,
            "LOCAL_WORLD_SIZE": 2,
        }
        with (
            tempfile.TemporaryDirectory() as folder,
            _environment(**{name: str(value) for name, value in numbers.items()}),
            mock.patch.object(dist, "is_initialized", return_value=True),
            mock.patch.object(dist, "get_world_size", return_value=4),
            mock.patch.object(dist, "get_rank", return_value=rank),
            mock.patch.object(dist, "barrier", return_value=None) as barrier,
        ):
            save(state, folder)
            barriers.append(barrier.call_count)
            files = [file.name for file in Path(folder).iterdir()]
            if files and files != ["model.pt"]:
                raise Wrong(
                    "Rank {} leaves {}: expected model.pt alone. One rank writes "
                    "one file. A file for each rank would hold the same weights "
                    "again.",
                    rank,
                    sorted(files),
                )
            if files:
                writers.append(rank)
                saved = torch.load(f"{folder}/model.pt", weights_only=True)
                if saved.keys() != state.keys() or saved["weight"].tolist() != [
                    0,
                    1,
                    2,
                ]:
                    raise Wrong("model.pt does not hold the state.")
    if len(set(barriers)) > 1:
        raise Wrong(
            "Only some ranks call dist.barrier(), and they wait for the others. "
            "Call it outside the `if`, on every rank. Section 6."
        )
    if writers == [0]:
        return
    if writers == [0, 2]:
        raise Wrong(
            "Ranks 0 and 2 write the same file: each is local rank 0 of its node. In "
            "a shared folder, only one rank of the whole job should write: the "
            "global rank 0. Section 5."
        )
    if writers == [0, 1]:
        raise Wrong(
            "Ranks 0 and 1 write: all workers of node 0. GROUP_RANK is the node's "
            "number. Section 1."
        )
    if writers == [0, 1, 2, 3]:
        raise Wrong("Every rank writes the same file. One should. Section 5.")
    if not writers:
        raise Wrong(
            'No rank writes. Values of os.environ are strings, and "0" == 0 is False: '
            "compare int(os.environ[...])."
        )
    raise Wrong(
        "Rank 0 should write, and no other; here these write: {}.",
        writers,
    )


def _save_start(state, folder):
    """Write state to folder/model.pt."""
    if int(os.environ["LOCAL_RANK"]) == 0:
        torch.save(state, f"{folder}/model.pt")


def _save_if(writes, name="model.pt"):
    def save(state, folder):
        if writes(
            {key: int(value) for key, value in os.environ.items() if "RANK" in key}
        ):
            torch.save(state, f"{folder}/{name.format(**os.environ)}")

    return save


save = Exercise(
    _check_save,
    start=_save_start,
    hints=[
        "Two nodes with two workers each. Which of the four have local rank 0?",
        "One worker of the whole job should write. Which number identifies it?",
        'int(os.environ["RANK"]). It is the same as dist.get_rank().',
    ],
    solution=_save_if(lambda env: env["RANK"] == 0),
    text="""
def save(state, folder):
    if int(os.environ["RANK"]) == 0:  # across all nodes; or dist.get_rank()
        torch.save(state, f"{folder}/model.pt")
""",
    wrong_answers=[
        (_save_if(lambda env: env["LOCAL_RANK"] == 0 and True), "global rank 0"),
        (_save_if(lambda env: env["GROUP_RANK"] == 0), "all workers of node 0"),
        (_save_if(lambda env: True), "Every rank writes"),
        (_save_if(lambda env: env["RANK"]), "Rank 0 should write"),
        (_save_if(lambda env: env["RANK"] == 0 and not dist.barrier()), "Only some"),
        (_save_if(lambda env: dist.get_rank() == 1), "these write: [1]"),
        (_save_if(lambda env: os.environ["RANK"] == 0), "are strings"),
        (_save_if(lambda env: True, "model_{RANK}.pt"), "expected model.pt alone"),
    ],
)

# 3: find the hang


def _check_epochs(epochs_trained):
    # Each rank's losses, and after which epoch all should stop. Mean: 4, 3, 3.5, 1
    cases = [
        ([5.0, 4.0, 3.0, 1.0], [3.0, 2.0, 4.0, 1.0], 3),
        (
            [4.0, 5.0, 3.0, 2.0],
            [4.0, 1.0, 4.0, 1.0],
            3,
        ),  # 4, 3, 3.5: rank 0 rises first
        ([3.0, 2.0, 1.0], [3.0, 2.0, 1.0], 3),  # never: all epochs
        ([2.0, 2.0, 1.0], [4.0, 4.0, 1.0], 2),  # no better is enough to stop
        ([6.0, 3.0, 4.0, 1.0], [1.0, 2.0, 3.0, 1.0], 3),  # 3.5, 2.5, 3.5: rank 1 rises
    ]
    for losses_0, losses_1, expected in cases:

        def on_each(rank, world_size, losses=(losses_0, losses_1)):
            return epochs_trained([torch.tensor(loss) for loss in losses[rank]])

        case = f"With rank 0's losses {losses_0} and rank 1's {losses_1}"
        try:
            found = run_on_ranks(on_each, timeout_s=3)
        except RuntimeError as error:
            words = "timed out", "timeout", "connection closed", "mismatch"
            if not any(word in str(error).lower() for word in words):
                raise
            raise Wrong(
                "{} it hangs: one rank leaves the loop, and the other waits in the "
                "next collective. All ranks must make the same decision. So they "
                "must compare the same number, computed by a collective that "
                "*every* rank calls in each epoch. Section 6.",
                case,
            ) from None
        if found == [expected, expected]:
            continue
        if not all(isinstance(epochs, int) for epochs in found):
            raise Wrong(
                "{}: expected a number of epochs, found {!r}.",
                case,
                found[0],
            )
        if found[0] != found[1]:
            raise Wrong(
                "{} the ranks train {} and {} epochs: they still decide by "
                "different numbers. Section 6.",
                case,
                found[0],
                found[1],
            )
        raise Wrong(
            "{} both train {} epochs, but it should be {}: they stop at the first "
            "epoch whose *mean* loss is not below the best mean so far. The "
            "decision of one rank may differ from the mean's.",
            case,
            found[0],
            expected,
        )


def _epochs_start(losses):
    """The number of epochs trained, including the last one."""
    best = float("inf")
    for epoch, loss in enumerate(losses, start=1):
        dist.barrier()  # stands for the epoch's collectives
        if loss >= best:
            return epoch
        best = loss
    return len(losses)


def _epochs_with(share):
    """Early stopping by what `share(loss)` leaves in this rank's loss."""

    def epochs_trained(losses):
        best = float("inf")
        for epoch, loss in enumerate(losses, start=1):
            dist.barrier()
            share(loss)
            if loss >= best:
                return epoch
            best = loss
        return len(losses)

    return epochs_trained


def _reduce_in_if(loss):
    if dist.get_rank() == 0:
        dist.all_reduce(loss)


def _epochs_only_0(losses):
    best = float("inf")
    for epoch, loss in enumerate(losses, start=1):
        dist.barrier()
        if dist.get_rank() == 0 and loss >= best:
            return epoch
        best = loss
    return len(losses)


def _epochs_no_return(losses):
    best = float("inf")
    for loss in losses:
        dist.barrier()
        dist.all_reduce(loss)
        if loss >= best:
            break
        best = loss


def _epochs_greater(losses):
    best = float("inf")
    for epoch, loss in enumerate(losses, start=1):
        dist.barrier()
        dist.all_reduce(loss)
        if loss > best:
            return epoch
        best = loss
    return len(losses)


def _epochs_no_barrier(losses):
    best = float("inf")
    for epoch, loss in enumerate(losses, start=1):
        if loss >= best:
            return epoch
        best = loss
    return len(losses)


epochs_trained = Exercise(
    _check_epochs,
    start=_epochs_start,
    hints=[
        "Say rank 0's loss rises in epoch 2, and rank 1's falls. Where is each then?",
        "All ranks must compare the same number. Which collective gives it to all?",
        "dist.all_reduce(loss) before the `if`, on every rank. (The sum rises and "
        "falls with the mean, so you need not divide.)",
    ],
    solution=_epochs_with(dist.all_reduce),
    text="""
def epochs_trained(losses):
    best = float("inf")
    for epoch, loss in enumerate(losses, start=1):
        dist.barrier()
        dist.all_reduce(loss)  # the sum, on every rank: now all decide alike
        if loss >= best:
            return epoch
        best = loss
    return len(losses)
""",
    wrong_answers=[
        (_epochs_only_0, "should be 3"),
        (_epochs_with(_reduce_in_if), "it hangs"),
        (_epochs_with(lambda loss: dist.broadcast(loss, 0)), "decision of one rank"),
        (_epochs_greater, "should be 2"),
        (_epochs_no_barrier, "decide by different numbers"),
        (_epochs_with(lambda loss: dist.broadcast(loss, 1)), "decision of one rank"),
        (
            _epochs_with(lambda loss: dist.all_reduce(loss, dist.ReduceOp.MIN)),
            "should be 3",
        ),
        (_epochs_with(lambda loss: dist.reduce(loss, 0)), "it hangs"),
        (_epochs_no_return, "found None"),
    ],
)

# 4: how often to save


def _check_interval(best_interval):
    for save_s, node_mtbf_s, nodes in [(30, 1e6, 1), (30, 1e6, 100), (120, 4e5, 16)]:
        case = f"best_interval({save_s}, {node_mtbf_s:g}, {nodes})"
        found = best_interval(save_s, node_mtbf_s, nodes)
        best = math.sqrt(2 * save_s * node_mtbf_s / nodes)
        if isinstance(found, int | float) and math.isclose(found, best, rel_tol=0.01):
            continue
        if not isinstance(found, int | float) or found <= 0:
            raise Wrong(
                "{}: expected seconds, more than 0; found {!r}.",
                case,
                found,
            )
        reasons = [
            (best * math.sqrt(nodes), N_(
                "that is the best for *one* node. A failure of any node stops the "
                "job, so the job fails `nodes` times as often."
            )),
            (best * nodes, N_(
                "more nodes fail more often, not less: the time between two "
                "failures of the job is node_mtbf_s / nodes."
            )),
            (best / math.sqrt(nodes), N_(
                "`nodes` belongs under the root: it divides the mean time between "
                "failures, M."
            )),
            (best / math.sqrt(2), N_(
                "a failure loses T / 2 on average, not T: it can come at any moment "
                "between two saves."
            )),
            (best**2, N_(
                "the derivative is zero where T *squared* has this value: the "
                "square root is missing."
            )),
        ]  # fmt: skip
        for value, reason in reasons:
            if math.isclose(found, value, rel_tol=0.01):
                raise Wrong(
                    "{} is {:.6g}: {}",
                    case,
                    found,
                    reason,
                )

        def lost(interval_s, save_s=save_s, mtbf_s=node_mtbf_s / nodes):
            return save_s / interval_s + interval_s / 2 / mtbf_s

        raise Wrong(
            "{} is {:.6g} s, which loses {:.2%} of the time; another interval loses "
            "{:.2%}.",
            case,
            found,
            lost(found),
            lost(best),
        )


def _interval_start(save_s, node_mtbf_s, nodes):
    """Seconds between two saves, for the smallest loss of time."""


def _interval_solution(save_s, node_mtbf_s, nodes):
    return (2 * save_s * node_mtbf_s / nodes) ** 0.5


best_interval = Exercise(
    _check_interval,
    start=_interval_start,
    hints=[
        "The mean time between two failures of the job, M, is node_mtbf_s / nodes.",
        "Cost: save_s / T + T / (2 M). Derivative: -save_s / T**2 + 1 / (2 M).",
        "It is zero where T**2 = 2 * save_s * M.",
    ],
    solution=_interval_solution,
    text="""
def best_interval(save_s, node_mtbf_s, nodes):
    job_mtbf_s = node_mtbf_s / nodes
    return (2 * save_s * job_mtbf_s) ** 0.5  # Young, 1974
""",
    wrong_answers=[
        (lambda save_s, mtbf_s, nodes: (2 * save_s * mtbf_s) ** 0.5, "`nodes` times"),
        (lambda save_s, mtbf_s, n: (2 * save_s * mtbf_s * n) ** 0.5, "not less"),
        (lambda save_s, mtbf_s, n: (save_s * mtbf_s / n) ** 0.5, "not T"),
        (lambda save_s, mtbf_s, n: 2 * save_s * mtbf_s / n, "root is missing"),
        (lambda save_s, mtbf_s, n: (2 * save_s * mtbf_s) ** 0.5 / n, "under the root"),
        (lambda save_s, mtbf_s, n: mtbf_s / n, "of the time"),
        (lambda save_s, mtbf_s, n: -((2 * save_s * mtbf_s / n) ** 0.5), "more than 0"),
    ],
)

# Deeper 08: three nodes left of four


def _check_elastic_loss(elastic_loss):
    for batch_size, world_size in [(100, 3), (100, 1), (100, 2), (10, 4)]:
        case = f"With a batch of {batch_size} on {world_size} rank(s)"
        weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        x = torch.arange(batch_size, dtype=torch.float64) ** 2  # not symmetric
        gradients = []
        for rank in range(world_size):
            mine = x[rank::world_size]
            loss = elastic_loss(weight * mine, batch_size, world_size)
            if not isinstance(loss, torch.Tensor) or loss.shape != ():
                raise Wrong(
                    "{}: expected a tensor of shape (), found {!r}.",
                    case,
                    loss,
                )
            if not loss.requires_grad:
                raise Wrong(
                    "{}: the loss has no gradient. Keep it a tensor: .item(), "
                    "float() and .detach() cut it off.",
                    case,
                )
            gradients += torch.autograd.grad(loss, weight)
        found = sum(gradients).item() / world_size  # as DDP does
        best = x.mean().item()
        if math.isclose(found, best, rel_tol=1e-9):
            continue
        means = [x[rank::world_size].mean().item() for rank in range(world_size)]
        reasons = [
            (sum(means) / world_size, N_(
                "that is the mean of the ranks' means. An image in a smaller share "
                "counts for more than one in a larger share."
            )),
            (best / world_size, N_(
                "it is too small by the world size: DDP divides the sum of the "
                "gradients by it, so your loss has to make up for that."
            )),
            (sum(means) / world_size**2, N_(
                "it is a mean of means, divided by the world size twice: DDP does "
                "that already."
            )),
            (sum(means), N_(
                "it is a mean of means, and DDP has already divided by the world "
                "size: yours grows with the number of ranks."
            )),
            (best * batch_size / world_size, N_(
                "it grows with the batch: divide the sum by the *global* batch size."
            )),
            (best * batch_size, N_(
                "it grows with the batch: divide the sum by the *global* batch size."
            )),
        ]  # fmt: skip
        for value, reason in reasons:
            if math.isclose(found, value, rel_tol=1e-9):
                raise Wrong(
                    "{} the gradient is {:.6g}: {} Section 4.",
                    case,
                    found,
                    reason,
                )
        raise Wrong(
            "{} the gradient is {:.6g} after DDP's average, but the mean over the "
            "whole batch has {:.6g}. Section 4.",
            case,
            found,
            best,
        )


def _elastic_loss_start(losses, batch_size, world_size):
    return losses.mean()


def _elastic_loss_solution(losses, batch_size, world_size):
    return losses.sum() * world_size / batch_size


elastic_loss = Exercise(
    _check_elastic_loss,
    start=_elastic_loss_start,
    hints=[
        "Write the mean over the batch as a sum over ranks: which factor stands "
        "before the sum of one rank's losses?",
        "It is 1 / batch_size. DDP's average divides by the world size once more.",
        "losses.sum() * world_size / batch_size",
    ],
    solution=_elastic_loss_solution,
    text="""
def elastic_loss(losses, batch_size, world_size):
    return losses.sum() * world_size / batch_size  # DDP divides by world_size
""",
    wrong_answers=[
        (lambda losses, batch, world: losses.mean() * 1.0, "mean of the ranks' means"),
        (lambda losses, batch, world: losses.sum() / batch, "too small by the world"),
        (lambda losses, batch, world: losses.mean() / world, "twice"),
        (lambda losses, batch, world: losses.mean() * world, "grows with the number"),
        (lambda losses, batch, world: losses.sum(), "grows with the batch"),
        (lambda losses, batch, world: losses.sum() * world, "grows with the batch"),
        (lambda losses, batch, world: losses.sum().item() / batch, "shape ()"),
        (lambda losses, batch, world: losses.sum().detach() / batch, "no gradient"),
        (lambda losses, batch, world: losses / batch, "shape ()"),
        (lambda losses, batch, world: losses.max(), "over the whole batch has"),
    ],
)

quiz = define(globals())
