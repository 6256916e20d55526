"""Lesson 06: data parallel. The checkers run the answers on two ranks."""

import contextlib
import io
import pickle
import re
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from ipyparallel.error import CompositeError
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from exercises import N_, Exercise, Wrong, _, choice, define
from helpers.compare import max_difference
from helpers.ranks import run_on_ranks

QUIZZES = {
    "collectives": [
        choice(
            "Rank 0 has x = 1, rank 1 has x = 2. Both call gather with dst=0. "
            "Who has the list [1, 2]?",
            ("both ranks", False, "That would be all_gather. gather has one receiver."),
            ("rank 0 only", True, "Yes: dst=0 is the only rank that receives."),
            ("nobody: each keeps its own", False, "Rank 1 sends, and rank 0 receives."),
        ),
        choice(
            "Both call broadcast(x, src=1), with x = 1 and 2 again. What is x?",
            ("1 on both", False, "src=1 is the number of the rank that sends."),
            ("2 on both", True, "Yes: rank 1 sends its x, and rank 0's is replaced."),
            ("3 on both", False, "Nothing is added up: that would be all_reduce."),
            ("2 on rank 0, and 1 on rank 1", False, "It is a copy, not an exchange."),
        ),
        choice(
            "Rank 0 calls scatter(x, [5, 7], src=0), rank 1 calls "
            "scatter(x, None, src=0). What is x?",
            ("[5, 7] on both", False, "Every rank receives one element, not the list."),
            ("5 on rank 0, 7 on rank 1", True, "Yes: element r goes to rank r."),
            ("12 on both", False, "Nothing is added up: that would be all_reduce."),
        ),
        choice(
            "Only rank 0 calls broadcast(x, src=0). Rank 1 does not. What happens?",
            (
                "Rank 1's x is replaced anyway",
                False,
                "No rank can write into "
                "another's memory: rank 1 has to receive, by the same call.",
            ),
            (
                "Rank 0, or a later collective, waits until a timeout",
                True,
                "Yes: a collective is complete when all ranks have called it.",
            ),
            (
                "An error, at once",
                False,
                "Rank 0 can't know that rank 1 will never call it. It may be late.",
            ),
        ),
    ],
    "made_different": [
        choice(
            "You add 1 to a parameter on rank 1 and go on training. What happens to "
            "the difference?",
            (
                "It is gone after one step",
                False,
                "That would take an average of the parameters. DDP averages gradients.",
            ),
            (
                "It shrinks, step by step",
                False,
                "Both ranks apply the same averaged "
                "gradient, so both weights move by the same amount.",
            ),
            (
                "It stays 1",
                True,
                "Yes: equal gradients move both by the same amount, "
                "and DDP never compares the parameters.",
            ),
            (
                "DDP raises an error",
                False,
                "It compares shapes when it wraps the model, "
                "and never compares values.",
            ),
        ),
    ],
    "adam": [
        choice(
            "You train with Adam and DDP, and your loss is a sum. What changes, "
            "compared with one process?",
            (
                "In effect, the learning rate is halved",
                False,
                "That is true of SGD, whose "
                "step is proportional to the gradient. Adam divides by its size.",
            ),
            (
                "Hardly anything",
                True,
                "Yes: Adam divides the gradient by a running "
                "average of its own size, and the factor of two cancels.",
            ),
            (
                "Training diverges",
                False,
                "The gradient is only smaller, by the number of ranks.",
            ),
        ),
    ],
}


def _net(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def _samples(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (n,), generator=generator)


def _on_ranks(function, waiting):
    """Each rank's result; a collective that never ends is a wrong answer.

    So is one that meets another one of the other rank: Gloo ends the process.
    """
    try:
        return run_on_ranks(function)
    except CompositeError as error:
        if "died" in str(error):
            raise Wrong(waiting) from None
        raise
    except RuntimeError as error:
        if "Timed out" in str(error) or "timeout" in str(error).lower():
            raise Wrong(waiting) from None
        raise


# 1: find the hang


def _check_accuracy(accuracy):
    counts = [(9, 10), (1, 2)]  # correct, of: 10 of 12 on both ranks together

    def on_each(rank, world_size):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            result = accuracy(*counts[rank])
        return result, printed.getvalue()

    results = _on_ranks(
        on_each,
        N_(
            "A rank waits in a collective until the timeout: not every rank calls it. "
            "Which lines does rank 1 skip? Put only the print under "
            "`if dist.get_rank() == 0`. Section 4, the hang."
        ),
    )
    found = [None if value is None else round(float(value), 3) for value, _ in results]
    printed = [bool(text.strip()) for _, text in results]
    case = _("Rank 0 has 9 correct of 10, rank 1 has 1 of 2. ")
    if found[0] == 0.7:
        raise Wrong(
            "{}Rank 0 returns 0.7, the mean of 0.9 and 0.5, as if both ranks had "
            "equally many samples. Sum the counts and divide once: 10 of 12. "
            "Section 5.",
            case,
        )
    if found == [0.9, 0.5]:
        raise Wrong(
            "{}Each rank returns its own accuracy: nothing was exchanged. All ranks "
            "should return 10 / 12. Section 3.",
            case,
        )
    if found == [1.4, 1.4]:
        raise Wrong(
            "{}You return 1.4: 0.9 + 0.5, a sum of accuracies. Sum the counts and "
            "divide once: 10 of 12. Section 5.",
            case,
        )
    if found == [1.0, 5.0]:
        raise Wrong(
            "{}You divide both ranks' 10 correct ones by one rank's samples. "
            "num_samples, too, must be summed over all ranks. Section 5.",
            case,
        )
    if found == [0.417, 0.417]:
        raise Wrong(
            "{}You return 5 / 12. The sums are right, and their quotient is the "
            "accuracy already: the world size has no place here. Section 5.",
            case,
        )
    if found[0] == 0.833 != found[1]:
        raise Wrong(
            "Rank 0 returns 10 / 12, but rank 1 returns {}. Every rank needs it: "
            "reduce has one receiver, all_reduce gives it to all. Section 3.",
            found[1],
        )
    if found != [0.833, 0.833]:
        raise Wrong(
            "{}Expected 0.833 on both ranks, found {}. Section 5.",
            case,
            found,
        )
    if printed != [True, False]:
        who = [rank for rank in (0, 1) if printed[rank]]
        raise Wrong(
            "Rank 0 alone should print the result; these printed: {}.",
            who,
        )
    if "83" not in results[0][1]:
        raise Wrong(
            "All ranks return 10 / 12, but rank 0 prints {!r}. Print the result of "
            "all ranks, after the exchange.",
            results[0][1].strip(),
        )


def _accuracy_start(num_correct, num_samples):
    """Of all ranks' samples together, a float on every rank; rank 0 prints it."""
    mean = torch.tensor(num_correct / num_samples)
    if dist.get_rank() == 0:
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
        print(f"accuracy {mean.item():.3f}")
    return mean.item()


def _accuracy_solution(num_correct, num_samples):
    counts = torch.tensor([num_correct, num_samples])
    dist.all_reduce(counts)
    result = (counts[0] / counts[1]).item()
    if dist.get_rank() == 0:
        print(f"accuracy {result:.3f}")
    return result


def _accuracy_mean_of_ratios(num_correct, num_samples):
    mean = torch.tensor(num_correct / num_samples)
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    if dist.get_rank() == 0:
        print(f"accuracy {mean.item():.3f}")
    return mean.item()


def _accuracy_halved_on_rank_0(num_correct, num_samples):
    mean = torch.tensor(num_correct / num_samples)
    dist.all_reduce(mean)
    if dist.get_rank() == 0:
        mean /= dist.get_world_size()
        print(f"accuracy {mean.item():.3f}")
    return mean.item()


def _accuracy_counts_wait(num_correct, num_samples):
    counts = torch.tensor([num_correct, num_samples])
    if dist.get_rank() == 0:
        dist.all_reduce(counts)
        print(counts[0] / counts[1])
    return (counts[0] / counts[1]).item()


def _accuracy_to_rank_0(num_correct, num_samples):
    counts = torch.tensor([num_correct, num_samples])
    dist.reduce(counts, 0)
    if dist.get_rank() == 0:
        print(counts[0] / counts[1])
        return (counts[0] / counts[1]).item()


def _accuracy_own(num_correct, num_samples):
    if dist.get_rank() == 0:
        print(num_correct / num_samples)
    return num_correct / num_samples


def _accuracy_divided_twice(num_correct, num_samples):
    counts = torch.tensor([num_correct, num_samples])
    dist.all_reduce(counts)
    result = (counts[0] / counts[1]).item() / dist.get_world_size()
    if dist.get_rank() == 0:
        print(result)
    return result


def _accuracy_sum_of_ratios(num_correct, num_samples):
    total = torch.tensor(num_correct / num_samples)
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        print(total.item())
    return total.item()


def _accuracy_own_samples(num_correct, num_samples):
    count = torch.tensor(num_correct)
    dist.all_reduce(count)
    if dist.get_rank() == 0:
        print(count.item() / num_samples)
    return count.item() / num_samples


def _accuracy_prints_own(num_correct, num_samples):
    if dist.get_rank() == 0:
        print(f"accuracy {num_correct / num_samples:.3f}")
    counts = torch.tensor([num_correct, num_samples])
    dist.all_reduce(counts)
    return (counts[0] / counts[1]).item()


def _accuracy_all_print(num_correct, num_samples):
    counts = torch.tensor([num_correct, num_samples])
    dist.all_reduce(counts)
    print(counts[0] / counts[1])
    return (counts[0] / counts[1]).item()


accuracy = Exercise(
    _check_accuracy,
    start=_accuracy_start,
    hints=[
        "Go through the function as rank 1. Which collective does it call?",
        "Call all_reduce before the `if`, and print inside it. And which numbers, "
        "unlike accuracies, can be summed?",
        "counts = torch.tensor([num_correct, num_samples]), then one all_reduce.",
    ],
    solution=_accuracy_solution,
    text="""
def accuracy(num_correct, num_samples):
    counts = torch.tensor([num_correct, num_samples])
    dist.all_reduce(counts)  # on every rank
    result = (counts[0] / counts[1]).item()
    if dist.get_rank() == 0:
        print(f"accuracy {result:.3f}")
    return result
""",
    wrong_answers=[
        (_accuracy_counts_wait, "not every rank calls it"),
        (_accuracy_mean_of_ratios, "the mean of 0.9 and 0.5"),
        (_accuracy_halved_on_rank_0, "the mean of 0.9 and 0.5"),
        (_accuracy_to_rank_0, "reduce has one receiver"),
        (_accuracy_own, "nothing was exchanged"),
        (_accuracy_divided_twice, "the world size has no place here"),
        (_accuracy_sum_of_ratios, "a sum of accuracies"),
        (_accuracy_own_samples, "num_samples, too"),
        (_accuracy_all_print, "Rank 0 alone should print"),
        (_accuracy_prints_own, "but rank 0 prints"),
    ],
)


# 2: save once


def _check_save(save):
    waiting = N_(
        "A rank waits until the timeout: a collective, such as barrier, stands under "
        "an `if` that only some ranks enter. All ranks must call it. Section 4."
    )
    with tempfile.TemporaryDirectory() as folder:

        def own_file(rank, world_size):  # who writes, and what
            model = DistributedDataParallel(_net(rank))
            save(model, Path(folder, f"own_{rank}.pt"))
            return model.module.state_dict()

        state = _on_ranks(own_file, waiting)[0]
        written = [rank for rank in (0, 1) if Path(folder, f"own_{rank}.pt").exists()]
        if written == [0, 1]:
            raise Wrong(
                "Every rank writes the file: two processes write to the same file at "
                "once, and may damage it. Only rank 0 should write. Section 6."
            )
        if written != [0]:
            raise Wrong("Rank 0 should write the file; these wrote it: {}.", written)
        try:
            saved = torch.load(Path(folder, "own_0.pt"), weights_only=True)
        except pickle.UnpicklingError:
            saved = None
        if not isinstance(saved, dict):
            raise Wrong(
                "The file holds more than weights, perhaps the whole model: save "
                "model.module.state_dict(). Section 6."
            )
        if any("module." in key for key in saved):
            raise Wrong(
                "The file's keys begin with `module.`, the name under which DDP holds "
                "your model: a plain model refuses them. Section 2."
            )
        if saved.keys() != state.keys() or max_difference(saved, state):
            raise Wrong("The file does not hold the model's own state_dict.")

        def one_file(rank, world_size):  # rank 0 is slow: does rank 1 wait for it?
            model = DistributedDataParallel(_net())
            if rank == 0:
                pause = lambda *_: time.sleep(0.3)  # noqa: E731
                model.module.register_state_dict_pre_hook(pause)
            file = Path(folder, "one.pt")
            save(model, file)
            there = file.exists()
            dist.barrier()
            return there

        if not _on_ranks(one_file, waiting)[1]:
            raise Wrong(
                "Rank 1 returns before rank 0 has written the file. If rank 1 loads it "
                "next, it finds no file, or half of one. All ranks must wait for "
                "rank 0: dist.barrier()."
            )


def _save_start(model, file):
    """Write the weights of the model under DDP; on return, the file is there."""
    torch.save(model.state_dict(), file)


def _save_solution(model, file):
    if dist.get_rank() == 0:
        torch.save(model.module.state_dict(), file)
    dist.barrier()


def _save_everywhere(model, file):
    torch.save(model.module.state_dict(), file)
    dist.barrier()


def _save_prefixed(model, file):
    if dist.get_rank() == 0:
        torch.save(model.state_dict(), file)
    dist.barrier()


def _save_whole(model, file):
    if dist.get_rank() == 0:
        torch.save(model.module, file)
    dist.barrier()


def _save_in_a_dict(model, file):
    if dist.get_rank() == 0:
        torch.save({"model": model.module.state_dict()}, file)
    dist.barrier()


def _save_and_go(model, file):
    if dist.get_rank() == 0:
        torch.save(model.module.state_dict(), file)


def _save_barrier_in_if(model, file):
    if dist.get_rank() == 0:
        torch.save(model.module.state_dict(), file)
        dist.barrier()


def _save_on_1(model, file):
    if dist.get_rank():
        torch.save(model.module.state_dict(), file)
    dist.barrier()


def _save_barrier_first(model, file):
    dist.barrier()
    if dist.get_rank() == 0:
        torch.save(model.module.state_dict(), file)


save = Exercise(
    _check_save,
    start=_save_start,
    hints=[
        "Three questions: who writes, which keys, and what does rank 1 do meanwhile?",
        "Save model.module.state_dict() under `if dist.get_rank() == 0:`.",
        "After that, outside the `if`: dist.barrier(), where every rank waits for all.",
    ],
    solution=_save_solution,
    text="""
def save(model, file):
    if dist.get_rank() == 0:
        torch.save(model.module.state_dict(), file)
    dist.barrier()  # every rank waits here for all others
""",
    wrong_answers=[
        (_save_everywhere, "Every rank writes the file"),
        (_save_prefixed, "begin with `module.`"),
        (_save_whole, "more than weights"),
        (_save_in_a_dict, "does not hold the model's own state_dict"),
        (_save_and_go, "Rank 1 returns before rank 0"),
        (_save_barrier_first, "Rank 1 returns before rank 0"),
        (_save_barrier_in_if, "stands under an `if`"),
        (_save_on_1, "Rank 0 should write the file"),
    ],
)


# 3: from one process to many


class _Recorded(Dataset):
    """Samples that remember in which order they were asked for."""

    def __init__(self, n):
        self.inputs, self.labels = _samples(n)
        self.asked = []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.asked.append(int(index))
        return self.inputs[index], self.labels[index]


def _check_many(program, n=24, batch_size=8, num_epochs=2, lr=0.5):
    compile(program, "one.py", "exec")  # a SyntaxError comes before any rank runs

    def on_each(rank, world_size):
        names = {"__name__": "one"}  # not "__main__": `train` alone is called
        exec(compile(program, "one.py", "exec"), names)
        train = names.get("train")
        if train is None:
            raise Wrong("one.py should define the function train.")
        dataset = _Recorded(n)
        # Another seed on each rank: DDP has to make the weights equal
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            state = train(_net(rank), dataset, num_epochs, batch_size, lr)
        state = {key: value.clone() for key, value in state.items()}
        return state, dataset.asked, printed.getvalue()

    (state_0, asked_0, printed_0), (state_1, asked_1, printed_1) = _on_ranks(
        on_each,
        N_(
            "A rank waits, or is ended: the ranks do not call the same collectives. "
            "Give each the same number of batches, and keep all_reduce out of any `if` "
            "that only rank 0 enters. Section 4, the hang."
        ),
    )
    if any(key.startswith("module.") for key in state_0):
        raise Wrong(
            "The keys you return begin with `module.`: return the state_dict of the "
            "model inside DDP's wrapper, model.module. Section 2."
        )
    seen = len(asked_0) + len(asked_1)
    if seen == 2 * n * num_epochs:
        raise Wrong(
            "In {} epochs the two ranks together take {} samples, but there are {}: "
            "each rank goes through *all* data. Give each its share: "
            "DistributedSampler. Section 5.",
            num_epochs,
            seen,
            n,
        )
    epochs = [
        {*asked_0[e : e + n // 2], *asked_1[e : e + n // 2]}
        for e in range(0, len(asked_0), n // 2)
    ]
    if len(asked_0) != len(asked_1) or any(len(epoch) != n for epoch in epochs):
        raise Wrong(
            "In each epoch, each sample should be used once, by one rank. Here "
            "some are used twice, and some never. Section 5."
        )
    if max_difference(state_0, state_1) > 1e-9:
        raise Wrong(
            "The two ranks end with different weights: their gradients were not "
            "averaged. Wrap the model in DistributedDataParallel, and call the wrapped "
            "model, not model.module. Section 4."
        )

    def one_process(size):
        """Train on the ranks' batches, put together, in one process.

        Returns the weights, and each epoch's mean loss: rank 0's own and all samples'.
        """
        model = _net()
        data = _Recorded(n)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        own, everyone = [], []
        for epoch in range(0, len(asked_0), n // 2):
            losses_0, losses_1 = [], []
            for start in range(epoch, epoch + n // 2, size):
                mine = slice(start, min(start + size, epoch + n // 2))
                rows = asked_0[mine] + asked_1[mine]
                logits = model(data.inputs[rows])
                losses = cross_entropy(logits, data.labels[rows], reduction="none")
                optimizer.zero_grad()
                losses.mean().backward()
                optimizer.step()
                half = len(rows) // 2
                losses_0 += losses[:half].tolist()
                losses_1 += losses[half:].tolist()
            own.append(sum(losses_0) / (n // 2))
            everyone.append(sum(losses_0 + losses_1) / n)
        return model.state_dict(), own, everyone

    expected, own, everyone = one_process(batch_size // 2)
    if max_difference(state_0, expected) > 1e-9:
        if max_difference(state_0, one_process(batch_size)[0]) < 1e-9:
            raise Wrong(
                "Each rank takes batches of {}, so each step uses {} samples, and "
                "an epoch has half as many steps. batch_size is the global one: "
                "divide it by the world size. Section 5.",
                batch_size,
                2 * batch_size,
            )
        raise Wrong(
            "The ranks agree, but one process with the same batches ends with "
            "different weights. Did you keep the mean loss, lr and plain SGD, and "
            "take batch_size // world_size samples a step on each rank?"
        )
    if asked_0[: n // 2] == asked_0[n // 2 : n]:
        raise Wrong(
            "Both epochs have the same order, so each rank only ever sees half of "
            "the data: let the sampler shuffle, and call sampler.set_epoch(epoch). "
            "Section 5."
        )
    if printed_1.strip():
        raise Wrong(
            "Rank 1 prints too, so every line appears once for each process. Print "
            "under `if dist.get_rank() == 0`. Section 5, exercise 1."
        )
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", printed_0)]

    def prints(losses):
        """Whether each is among the numbers, to the two decimals of a short format."""
        return all(any(abs(x - loss) < 0.006 for x in numbers) for loss in losses)

    if not prints(everyone):
        case = f"Rank 0 prints {numbers}, and the loss over all data is "
        case += f"{[round(loss, 3) for loss in everyone]}. "
        if prints(own):
            raise Wrong(
                "{}You print rank 0's own loss, which knows half of the data: "
                "all_reduce it, and divide by the world size. Section 5.",
                case,
            )
        if prints([2 * loss for loss in everyone]):
            raise Wrong(
                "{}all_reduce gives the sum of the ranks' losses: divide it by the "
                "world size. Section 5.",
                case,
            )
        raise Wrong(
            "{}Print one line an epoch, with the mean of all ranks' losses. Section 5.",
            case,
        )


ONE = """\
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from helpers import data, models, training


def train(model, dataset, num_epochs, batch_size, lr):
    loader = DataLoader(dataset, batch_size, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for epoch in range(num_epochs):
        loss, _ = training.train_one_epoch(model, loader, cross_entropy, optimizer)
        print(f"epoch {epoch}: loss {loss:.3f}")
    return model.state_dict()


if __name__ == "__main__":
    torch.manual_seed(0)
    model = models.SmallCNN()
    state = train(model, data.load_digits("train"), 4, 100, lr=0.01)
    torch.save(state, "one.pt")
"""
MANY = """\
import gc
import os
import torch
import torch.distributed as dist
import torch.distributed.nn  # exit: import it before there is a process group
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from helpers import data, models, training


def train(model, dataset, num_epochs, batch_size, lr):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(model)
    torch.manual_seed(1 + rank)  # another Dropout mask on each rank
    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size // world_size, sampler=sampler)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for epoch in range(num_epochs):
        sampler.set_epoch(epoch)
        loss, _ = training.train_one_epoch(model, loader, cross_entropy, optimizer)
        mean = torch.tensor(loss) / world_size
        dist.all_reduce(mean)  # on every rank: not inside the `if`
        if rank == 0:
            print(f"epoch {epoch}: loss {mean:.3f}")
    return model.module.state_dict()


if __name__ == "__main__":
    # NCCL if there is a GPU for each process, else Gloo on the CPU
    gpus = torch.cuda.device_count() >= int(os.environ["WORLD_SIZE"])
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    device = torch.device("cuda", dist.get_node_local_rank()) if gpus else "cpu"
    torch.manual_seed(0)
    model = models.SmallCNN().to(device)
    state = train(model, data.load_digits("train"), 4, 100, lr=0.01)
    if dist.get_rank() == 0:
        torch.save(state, "many.pt")
    gc.collect()  # exit: delete what is left of DDP before the process group
    dist.destroy_process_group()
"""


def _many_without(*pairs):
    """The converted program with texts replaced: (what stands there, instead)."""
    program = MANY
    for old, new in pairs:
        assert old in program, old
        program = program.replace(old, new)
    return program


_ALL_REDUCE = "        dist.all_reduce(mean)  # on every rank: not inside the `if`\n"

many = Exercise(
    _check_many,
    start=ONE,
    hints=[
        "Your change is not seen? Run the cell that writes one.py. It takes seven "
        "changes: the wrapper, the sampler, the batch size, the epoch, the loss over "
        "all ranks, who prints, and what you return.",
        "Pass DistributedSampler(dataset) to the DataLoader as sampler=..., instead "
        "of shuffle=True. Each rank's batch is batch_size // dist.get_world_size().",
        "model = DistributedDataParallel(model); sampler.set_epoch(epoch) at the "
        "start of each epoch; return model.module.state_dict().",
        "mean = torch.tensor(loss) / dist.get_world_size(), then dist.all_reduce(mean) "
        "on every rank, and the print under `if dist.get_rank() == 0:`.",
    ],
    solution=MANY,
    text=MANY,
    wrong_answers=[
        (
            _many_without(
                ("    model = DistributedDataParallel(model)\n", ""),
                ("model.module.", "model."),
            ),
            "their gradients were not averaged",
        ),
        (
            _many_without(("train_one_epoch(model,", "train_one_epoch(model.module,")),
            "not model.module",
        ),
        (
            _many_without(("sampler=sampler", "shuffle=True")),
            "each rank goes through *all* data",
        ),
        (_many_without((" // world_size", "")), "batch_size is the global one"),
        (
            _many_without(("        sampler.set_epoch(epoch)\n", "")),
            "call sampler.set_epoch(epoch)",
        ),
        (
            _many_without(
                ("Sampler(dataset)", "Sampler(dataset, shuffle=False)"),
            ),
            "let the sampler shuffle",
        ),
        (_many_without(("lr=lr", "lr=lr * world_size")), "Did you keep"),
        (_many_without(("def train(", "def train_ddp(")), "define the function train"),
        (_many_without(("model.module.", "model.")), "begin with `module.`"),
        (_many_without(("if rank == 0:", "if True:")), "Rank 1 prints too"),
        (
            _many_without(
                ("(loss) / world_size", "(loss)"),
                (_ALL_REDUCE, ""),
            ),
            "rank 0's own loss",
        ),
        (_many_without(("(loss) / world_size", "(loss)")), "the sum of the ranks'"),
        (_many_without((_ALL_REDUCE, "")), "the mean of all ranks' losses"),
        (
            _many_without(
                (_ALL_REDUCE, ""),
                (
                    "if rank == 0:\n",
                    "if rank == 0:\n            dist.all_reduce(mean)\n",
                ),
            ),
            "keep all_reduce out of any `if`",
        ),
        (_many_without(("size // world_size", "size // 2 + 1")), "// world_size"),
    ],
)


# 4: accumulate


def _check_accumulate(step_in_parts, lr=0.5):
    inputs, labels = _samples(24)

    def on_each(rank, world_size):
        net, sent, held = _net(), [], [0]  # rows whose backward is still to come

        def keep(_, args):
            held.append(held[-1] + len(args[0]) * torch.is_grad_enabled())

        net.register_forward_pre_hook(keep)
        net[0].weight.register_post_accumulate_grad_hook(lambda _: held.append(0))
        model = DistributedDataParallel(net)
        all_reduce = dist.all_reduce

        def counted(tensor, *args, **options):
            sent.append(tensor.nbytes)
            return all_reduce(tensor, *args, **options)

        model.register_comm_hook(None, allreduce_hook)  # calls dist.all_reduce
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        mine = slice(rank, None, world_size)
        parts = zip(inputs[mine].chunk(3), labels[mine].chunk(3), strict=True)
        with mock.patch.object(dist, "all_reduce", counted):
            step_in_parts(model, list(parts), optimizer)
        return net.state_dict(), sum(sent), max(held)

    results = _on_ranks(on_each, N_("A rank waits: both must take the same steps."))
    (state_0, sent, rows), (state_1, *_) = results
    model = _net()
    size = sum(p.nbytes for p in model.parameters())
    if sent >= 2 * size:  # once, and perhaps a loss or two
        raise Wrong(
            "Each rank passes {} bytes to all_reduce, but the model's gradients "
            "have {}: they are exchanged more than once. The forward pass, too, "
            "must be inside `with model.no_sync():`. Section 4.",
            sent,
            size,
        )
    if max_difference(state_0, state_1) > 1e-9:
        if not sent:
            raise Wrong(
                "No gradient was ever exchanged: run the last part's forward and "
                "backward outside no_sync. Section 4."
            )
        raise Wrong(
            "The two ranks end with different weights: a later part added gradients "
            "that were never exchanged. Exchange in the *last* part."
        )
    before = _net().state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    expected = model.state_dict()
    if max_difference(state_0, expected) > 1e-9:
        moved = max_difference(state_0, before) / max_difference(expected, before)
        if abs(moved - 2) < 1e-3:
            raise Wrong(
                "The step is twice that of a single process with the whole batch: "
                "all_reduce sums. Divide by the world size. Section 3."
            )
        more = f" (it moved {moved:.1f} times as far)" if moved > 1.1 else ""
        raise Wrong(
            "The step differs from that of a single process with the whole batch{}: "
            "gradients add up, so each part's loss must be divided by the number of "
            "parts. Take one step, after the last part, and call zero_grad only "
            "before the first.",
            more,
        )
    if rows > len(inputs) // 2 // 3:
        raise Wrong(
            "The result is right, but {} samples are in memory at once, and a part "
            "has {}. No memory is saved: call backward() after each part's forward: "
            "it frees what that part needed.",
            rows,
            len(inputs) // 2 // 3,
        )


def _accumulate_start(model, parts, optimizer):
    """One step on several parts (inputs, labels) of equal size; exchange once."""
    optimizer.zero_grad()
    for inputs, labels in parts:
        (cross_entropy(model(inputs), labels) / len(parts)).backward()
    optimizer.step()


def _accumulate_solution(model, parts, optimizer):
    optimizer.zero_grad()
    with model.no_sync():
        for inputs, labels in parts[:-1]:
            (cross_entropy(model(inputs), labels) / len(parts)).backward()
    inputs, labels = parts[-1]
    (cross_entropy(model(inputs), labels) / len(parts)).backward()
    optimizer.step()


def _accumulate_never(model, parts, optimizer):
    optimizer.zero_grad()
    for inputs, labels in parts:
        with model.no_sync():
            (cross_entropy(model(inputs), labels) / len(parts)).backward()
    optimizer.step()


def _accumulate_backward_only(model, parts, optimizer):
    optimizer.zero_grad()
    for number, (inputs, labels) in enumerate(parts, start=1):
        loss = cross_entropy(model(inputs), labels) / len(parts)
        if number < len(parts):
            with model.no_sync():
                loss.backward()
        else:
            loss.backward()
    optimizer.step()


def _accumulate_first(model, parts, optimizer):
    optimizer.zero_grad()
    inputs, labels = parts[0]
    (cross_entropy(model(inputs), labels) / len(parts)).backward()
    with model.no_sync():
        for inputs, labels in parts[1:]:
            (cross_entropy(model(inputs), labels) / len(parts)).backward()
    optimizer.step()


def _accumulate_undivided(model, parts, optimizer):
    optimizer.zero_grad()
    with model.no_sync():
        for inputs, labels in parts[:-1]:
            cross_entropy(model(inputs), labels).backward()
    inputs, labels = parts[-1]
    cross_entropy(model(inputs), labels).backward()
    optimizer.step()


def _accumulate_sum(model, parts, optimizer):
    optimizer.zero_grad()
    with model.no_sync():
        for inputs, labels in parts:
            (cross_entropy(model(inputs), labels) / len(parts)).backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    optimizer.step()


def _accumulate_by_hand_each_time(model, parts, optimizer):
    optimizer.zero_grad()
    for inputs, labels in parts:
        with model.no_sync():
            (cross_entropy(model(inputs), labels) / len(parts)).backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
    optimizer.step()


def _accumulate_whole(model, parts, optimizer):
    inputs, labels = map(torch.cat, zip(*parts, strict=True))
    optimizer.zero_grad()
    cross_entropy(model(inputs), labels).backward()
    optimizer.step()


def _accumulate_one_backward(model, parts, optimizer):
    optimizer.zero_grad()
    losses = [cross_entropy(model(inputs), labels) for inputs, labels in parts]
    (sum(losses) / len(parts)).backward()
    optimizer.step()


def _accumulate_steps(model, parts, optimizer):
    for inputs, labels in parts:
        optimizer.zero_grad()
        last = inputs is parts[-1][0]
        with contextlib.nullcontext() if last else model.no_sync():
            (cross_entropy(model(inputs), labels) / len(parts)).backward()
        optimizer.step()


def _accumulate_last_alone(model, parts, optimizer):
    with model.no_sync():
        for inputs, labels in parts[:-1]:
            (cross_entropy(model(inputs), labels) / len(parts)).backward()
    optimizer.zero_grad()
    inputs, labels = parts[-1]
    (cross_entropy(model(inputs), labels) / len(parts)).backward()
    optimizer.step()


step_in_parts = Exercise(
    _check_accumulate,
    start=_accumulate_start,
    hints=[
        "Which backward pass has to exchange? The gradients add up in .grad.",
        "Run all parts but the last under `with model.no_sync():`, forward included.",
        "contextlib.nullcontext() does nothing: `with model.no_sync() if number < "
        "len(parts) else nullcontext():`. Or treat the last part after the loop.",
    ],
    solution=_accumulate_solution,
    text="""
def step_in_parts(model, parts, optimizer):
    optimizer.zero_grad()
    with model.no_sync():
        for inputs, labels in parts[:-1]:
            (cross_entropy(model(inputs), labels) / len(parts)).backward()
    inputs, labels = parts[-1]  # exchanges what has added up
    (cross_entropy(model(inputs), labels) / len(parts)).backward()
    optimizer.step()
""",
    wrong_answers=[
        (_accumulate_never, "No gradient was ever exchanged"),
        (_accumulate_backward_only, "forward pass, too"),
        (_accumulate_first, "Exchange in the *last* part"),
        (_accumulate_undivided, "divided by the number of parts"),
        (_accumulate_sum, "all_reduce sums"),
        (_accumulate_by_hand_each_time, "more than once"),
        (_accumulate_steps, "The two ranks end with different weights"),
        (_accumulate_last_alone, "differs from that of a single process"),
        (_accumulate_whole, "are in memory at once"),
        (_accumulate_one_backward, "are in memory at once"),
    ],
)


# The deeper lesson: shares for an evaluation


def _check_share_of(share_of):
    for n in (0, 1, 5, 8, 397):
        for world_size in (1, 2, 3, 8):
            shares = [list(share_of(n, r, world_size)) for r in range(world_size)]
            case = f"n = {n}, {world_size} ranks"
            everything = sorted(index for share in shares for index in share)
            if len(everything) > len(set(everything)):
                raise Wrong(
                    "{}: some samples are counted twice, as DistributedSampler "
                    "does, and the accuracy is wrong. {}Section 4.",
                    case,
                    _shown(shares),
                )
            if everything != list(range(n)):
                missing = sorted(set(range(n)) - set(everything))
                extra = sorted(set(everything) - set(range(n)))
                raise Wrong(
                    "{}: every index from 0 to n - 1 should come once. Missing: {}; "
                    "outside: {}. {}Section 4.",
                    case,
                    missing[:5],
                    extra[:5],
                    _shown(shares),
                )
            lengths = [len(share) for share in shares]
            if max(lengths) - min(lengths) > 1:
                raise Wrong(
                    "{}: the shares have {} samples. They may differ by one at "
                    "most, or the other ranks wait for the longest. Section 4.",
                    case,
                    lengths,
                )
            if any(list(s) != list(range(s[0], s[0] + len(s))) for s in shares if s):
                raise Wrong(
                    "{}: a share should be *neighbouring* indices, in order. {}",
                    case,
                    _shown(shares),
                )


def _shown(shares):
    return f"Shares: {shares}. " if sum(map(len, shares)) <= 16 else ""


def _share_start(n, rank, world_size):
    """The indices, a range or a list, that this rank evaluates of n samples."""


def _share_solution(n, rank, world_size):
    return range(n * rank // world_size, n * (rank + 1) // world_size)


def _share_floor(n, rank, world_size):
    size = n // world_size
    return range(rank * size, (rank + 1) * size)


def _share_rest_to_last(n, rank, world_size):
    size = n // world_size
    end = n if rank == world_size - 1 else (rank + 1) * size
    return range(rank * size, end)


def _share_ceiling(n, rank, world_size):
    size = -(-n // world_size)
    return range(rank * size, (rank + 1) * size)


def _share_padded(n, rank, world_size):
    size = -(-n // world_size)
    return [i % max(n, 1) for i in range(rank * size, (rank + 1) * size)]


share_of = Exercise(
    _check_share_of,
    start=_share_start,
    hints=[
        "Where does rank r's share begin, as a fraction of n?",
        "It begins at n * rank // world_size, and ends where the next one begins.",
    ],
    solution=_share_solution,
    text="""
def share_of(n, rank, world_size):
    return range(n * rank // world_size, n * (rank + 1) // world_size)
""",
    wrong_answers=[
        (_share_floor, "Missing"),
        (_share_rest_to_last, "differ by one at most"),
        (_share_ceiling, "outside"),
        (_share_padded, "counted twice"),
        (lambda n, rank, world_size: range(rank, n, world_size), "*neighbouring*"),
    ],
)

quiz = define(globals())
