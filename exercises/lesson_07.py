"""Lesson 07: model parallel. Two of the checkers run the answers on two ranks."""

import contextlib
import copy
import itertools
import math

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.functional import cross_entropy, silu
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DistributedSampler

from exercises import Exercise, Wrong, choice, define
from helpers.ranks import run_on_ranks

QUIZZES = {
    "memory": [
        choice(
            "A language model has 7 billion parameters. How much memory does training "
            "it with Adam in float32 need, without activations?",
            (
                "about 26 GiB",
                False,
                "That is the weights alone, 4 bytes each: enough to "
                "run the model, but not to train it.",
            ),
            (
                "about 52 GiB",
                False,
                "Weights and gradients: enough for plain SGD. Adam "
                "keeps two averages for each parameter.",
            ),
            ("about 104 GiB", True, "Yes: 7e9 times 16 bytes, divided by 2**30."),
            (
                "about 104 GiB, but half as much in mixed precision",
                False,
                "In bfloat16, a weight and its gradient take 2 bytes each. But a "
                "float32 copy of the weights comes on top: 16 bytes again.",
            ),
        ),
    ],
    "fsdp": [
        choice(
            "Two ranks train under FSDP. What does each rank hold between two steps?",
            (
                "All weights, and half of the optimizer state",
                False,
                "Sharding only the optimizer state is called ZeRO stage 1. FSDP "
                "shards weights and gradients as well.",
            ),
            (
                "The weights of half of the blocks",
                False,
                "That is a pipeline. FSDP gives each rank a part of *every* parameter.",
            ),
            (
                "Half of each weight, each gradient and each average",
                True,
                "Yes: the 16 bytes are divided by the number of ranks.",
            ),
        ),
        choice(
            "What weights does a rank hold in the middle of block 2's forward?",
            (
                "Still only halves: each rank computes with its half",
                False,
                "That is tensor parallel. FSDP gathers the block, and computes "
                "with all of it.",
            ),
            (
                "All of block 2, and halves of the others",
                True,
                "Yes: gathered before, dropped afterwards, gathered again in backward.",
            ),
            (
                "The whole model, until the step ends",
                False,
                "That happens if you call only fully_shard(model): one group, gathered "
                "all at once.",
            ),
        ),
    ],
}


def _on_ranks(function):
    """Each rank's result; a collective that never ends is a wrong answer."""
    try:
        return run_on_ranks(function)
    except RuntimeError as error:
        if "Timed out" in str(error) or "timeout" in str(error).lower():
            raise Wrong(
                "A rank waited in a collective until the timeout. Both ranks must make "
                "the same calls, in the same order. Lesson 06, section 4."
            ) from None
        raise


# 1: how many devices


def _check_min_devices(min_devices):
    cases = [
        (7e9, 16, 24, 5),
        (7e9, 16, 74.5, 2),
        (70e9, 16, 74.5, 15),
        (1e9, 16, 74.5, 1),
        (7e9, 2, 16, 1),
        (2**30, 16, 8, 2),  # fits exactly
    ]
    for params, bytes_each, device_gib, expected in cases:
        found = min_devices(params, bytes_each, device_gib)
        total_gib = params * bytes_each / 2**30
        asked = f"min_devices({params:g}, {bytes_each}, {device_gib})"
        if found == expected and isinstance(found, int):
            continue
        if found is None:
            raise Wrong(
                "{} returns None. Is there a `return`?",
                asked,
            )
        if found == expected:
            raise Wrong(
                "{} returns {!r}. Return an int.",
                asked,
                found,
            )
        if found < expected and found == math.floor(total_gib / device_gib):
            raise Wrong(
                "{} should be {}, found {}: {} devices hold only {:.1f} of the "
                "{:.1f} GiB. Round up, not down.",
                asked,
                expected,
                found,
                found,
                found * device_gib,
                total_gib,
            )
        if found == math.floor(total_gib / device_gib) + 1:
            raise Wrong(
                "{} should be {}, found {}. Here the model fits exactly, so always "
                "adding 1 gives one device too many.",
                asked,
                expected,
                found,
            )
        if found == math.ceil(params * bytes_each / 1e9 / device_gib):
            raise Wrong(
                "{} should be {}, found {}: dividing by 1e9 gives GB. A GiB is "
                "2**30 bytes. Section 1.",
                asked,
                expected,
                found,
            )
        if found == math.ceil(params * 4 / 2**30 / device_gib):
            raise Wrong(
                "{} should be {}, found {}: you count 4 bytes per parameter, the "
                "weights alone. Use bytes_each. Section 1.",
                asked,
                expected,
                found,
            )
        if math.isclose(found, total_gib / device_gib):
            raise Wrong(
                "{} returns {!r}. The number of devices is an int.",
                asked,
                found,
            )
        raise Wrong(
            "{} should be {}, found {}: {:.1f} GiB are needed, and each device has "
            "{}. Section 1.",
            asked,
            expected,
            found,
            total_gib,
            device_gib,
        )


def _min_devices_start(params, bytes_each, device_gib):
    """The smallest number of devices whose memory is enough."""


def _min_devices_solution(params, bytes_each, device_gib):
    return math.ceil(params * bytes_each / 2**30 / device_gib)


min_devices = Exercise(
    _check_min_devices,
    start=_min_devices_start,
    hints=[
        "How many GiB are needed in all? A GiB is 2**30 bytes.",
        "Divide by one device's GiB. What do 1.4 devices mean?",
        "math.ceil rounds up.",
    ],
    solution=_min_devices_solution,
    text="""
import math

def min_devices(params, bytes_each, device_gib):
    total_gib = params * bytes_each / 2**30
    return math.ceil(total_gib / device_gib)
""",
    wrong_answers=[
        (lambda p, b, gib: int(p * b / 2**30 // gib), "Round up, not down"),
        (lambda p, b, gib: int(p * b / 2**30 // gib) + 1, "one device too many"),
        (lambda p, b, gib: math.ceil(p * b / 1e9 / gib), "A GiB is 2**30 bytes"),
        (lambda p, b, gib: math.ceil(p * 4 / 2**30 / gib), "the weights alone"),
        (lambda p, b, gib: p * b / 2**30 / gib, "is an int"),
        (lambda p, b, gib: print(p), "Is there a `return`?"),
    ],
)


# 2: unequal micro-batches


def _check_backward_in_parts(backward_in_parts):
    generator = torch.Generator().manual_seed(0)
    for num_samples, size in ((8, 4), (10, 4), (7, 3), (5, 8)):
        torch.manual_seed(0)
        model = nn.Linear(3, 4).double()
        inputs = torch.randn(num_samples, 3, generator=generator, dtype=torch.float64)
        labels = torch.randint(4, (num_samples,), generator=generator)
        rows, no_gradient = [], []

        def note(model, args, rows=rows, no_gradient=no_gradient):
            rows.append(args[0])
            no_gradient.append(model.weight.grad is None)

        model.register_forward_pre_hook(note)
        backward_in_parts(model, inputs, labels, size)
        found = model.weight.grad
        if found is None:
            raise Wrong("The parameters have no gradient. Is backward() ever called?")
        seen, rows = [len(part) for part in rows], torch.cat(rows)
        if max(seen) > size:
            raise Wrong(
                "With size={}, the model gets {} samples at once. Larger "
                "micro-batches need more memory, so this saves no memory. Section 2.",
                size,
                max(seen),
            )
        if len(rows) < num_samples:
            raise Wrong(
                "The model sees only {} of {} samples. The last, smaller "
                "micro-batch belongs to the batch too.",
                len(rows),
                num_samples,
            )

        def gradient(reduce, model=model, inputs=inputs, labels=labels):
            losses = cross_entropy(model(inputs), labels, reduction="none")
            return torch.autograd.grad(reduce(losses), model.weight)[0]

        def is_of(reduce, found=found, gradient=gradient):
            return torch.allclose(found, gradient(reduce), atol=1e-9)

        given, num_parts = f"With {num_samples} samples and size={size}", len(seen)

        def sum_of_means(losses, size=size):
            return sum(part.mean() for part in losses.split(size))

        if is_of(torch.mean):
            if any(no_gradient[1:]):
                raise Wrong(
                    "There is no backward() between two micro-batches, so the "
                    "activations of all stay in memory. Call backward() in the loop. "
                    "Section 2."
                )
            continue
        if is_of(torch.sum):
            raise Wrong(
                "{}, the gradient is that of the *sum* of the losses, {} times too "
                "large. Divide by len(inputs).",
                given,
                num_samples,
            )
        if is_of(sum_of_means):
            raise Wrong(
                "{}, the means of the micro-batches are added up and not averaged: "
                "the gradient is about {} times too large.",
                given,
                num_parts,
            )
        if is_of(lambda losses, n=num_parts: sum_of_means(losses) / n):
            raise Wrong(
                "{}, every micro-batch counts the same, so a sample in the last one "
                "(size {}) counts more than the others. Weight each mean by its "
                "number of samples.",
                given,
                seen[-1],
            )
        if is_of(lambda losses, n=seen[-1]: losses[-n:].sum() / len(losses)) or is_of(
            lambda losses, n=seen[-1]: losses[-n:].mean()
        ):
            raise Wrong(
                "{}, the gradient is that of the last micro-batch alone. backward() "
                "adds to .grad; do not set it to zero in between.",
                given,
            )
        raise Wrong(
            "{}, the gradient is not that of the batch's mean loss: it differs by "
            "up to {:.2g}.",
            given,
            (found - gradient(torch.mean)).abs().max(),
        )


def _in_parts_start(model, inputs, labels, size):
    """Leave in the parameters the gradient of the batch's mean loss."""
    some_inputs, some_labels = inputs.split(size), labels.split(size)
    for i in range(len(some_inputs)):
        loss = cross_entropy(model(some_inputs[i]), some_labels[i])
        (loss / len(some_inputs)).backward()


def _in_parts_solution(model, inputs, labels, size):
    some_inputs, some_labels = inputs.split(size), labels.split(size)
    for i in range(len(some_inputs)):
        loss = cross_entropy(model(some_inputs[i]), some_labels[i])
        (loss * len(some_inputs[i]) / len(inputs)).backward()


def _in_parts_by_number(model, inputs, labels, size):
    num_parts = math.ceil(len(inputs) / size)
    for i in range(0, len(inputs), size):
        loss = cross_entropy(model(inputs[i : i + size]), labels[i : i + size])
        (loss / num_parts).backward()


def _in_parts_not_divided(model, inputs, labels, size):
    for i in range(0, len(inputs), size):
        cross_entropy(model(inputs[i : i + size]), labels[i : i + size]).backward()


def _in_parts_sum(model, inputs, labels, size):
    for i in range(0, len(inputs), size):
        out = model(inputs[i : i + size])
        cross_entropy(out, labels[i : i + size], reduction="sum").backward()


def _in_parts_zeroed(model, inputs, labels, size):
    for i in range(0, len(inputs), size):
        model.zero_grad()
        some = inputs[i : i + size]
        loss = cross_entropy(model(some), labels[i : i + size])
        (loss * len(some) / len(inputs)).backward()


def _in_parts_dropped(model, inputs, labels, size):
    num_parts = len(inputs) // size
    for i in range(0, num_parts * size, size):
        loss = cross_entropy(model(inputs[i : i + size]), labels[i : i + size])
        (loss / num_parts).backward()


def _in_parts_late(model, inputs, labels, size):
    loss = 0
    for i in range(0, len(inputs), size):
        some = inputs[i : i + size]
        part = cross_entropy(model(some), labels[i : i + size])
        loss = loss + part * len(some) / len(inputs)
    loss.backward()


def _in_parts_at_once(model, inputs, labels, size):
    cross_entropy(model(inputs), labels).backward()


backward_in_parts = Exercise(
    _check_backward_in_parts,
    start=_in_parts_start,
    hints=[
        "Take losses 1, 1, 1, 4 in micro-batches of 3 and 1. What is the mean of the "
        "two means, and what is the mean of all four?",
        "A micro-batch should count in proportion to its number of samples.",
        "Multiply the loss by len(some_inputs[i]) / len(inputs).",
    ],
    solution=_in_parts_solution,
    text="""
def backward_in_parts(model, inputs, labels, size):
    some_inputs, some_labels = inputs.split(size), labels.split(size)
    for i in range(len(some_inputs)):
        loss = cross_entropy(model(some_inputs[i]), some_labels[i])
        (loss * len(some_inputs[i]) / len(inputs)).backward()
""",
    wrong_answers=[
        (_in_parts_by_number, "every micro-batch counts the same"),
        (_in_parts_not_divided, "added up and not averaged"),
        (_in_parts_sum, "Divide by len(inputs)"),
        (_in_parts_zeroed, "the last micro-batch alone"),
        (_in_parts_dropped, "belongs to the batch too"),
        (_in_parts_at_once, "saves no memory"),
        (_in_parts_late, "Call backward() in the loop"),
    ],
)


# 3: shard a model


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def _two_steps(model, optimizer, inputs, labels):
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def _check_shard(shard):
    def on_each(rank, world_size):
        torch.manual_seed(0)
        model, plain = _Net().double(), _Net().double()
        plain.load_state_dict(model.state_dict())
        mesh = init_device_mesh("cpu", (world_size,))
        try:
            optimizer = shard(model, mesh)
        except TypeError as error:
            if not isinstance(model, FSDPModule) or "Invariant" not in str(error):
                raise
            raise Wrong(
                "fully_shard fails on a block, because the model is sharded already: "
                "its call took *all* parameters, those of the blocks too. Call "
                "fully_shard on the blocks first, and on the model last. Section 5."
            ) from None
        if not isinstance(optimizer, torch.optim.Adam):
            raise Wrong(
                "Return the Adam optimizer; found {}.",
                type(optimizer).__name__,
            )
        found = {"model": isinstance(model, FSDPModule)}
        found["blocks"] = [
            any(isinstance(module, FSDPModule) for module in block.modules())
            for block in model.blocks
        ]
        parameters = dict(model.named_parameters())
        found["whole"] = [
            name for name, p in parameters.items() if not isinstance(p, DTensor)
        ]
        ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
        found["foreign"] = ids != {id(p) for p in parameters.values()}
        if found["whole"] or found["foreign"]:
            return found
        inputs, labels = torch.randn(8, 6).double(), torch.randint(4, (8,))
        mine = slice(rank, None, world_size)
        _two_steps(model, optimizer, inputs[mine], labels[mine])
        reference = torch.optim.Adam(plain.parameters(), lr=0.01)
        _two_steps(plain, reference, inputs, labels)
        gaps = [
            (p.full_tensor() - whole).abs().max().item()
            for p, whole in zip(parameters.values(), plain.parameters(), strict=True)
        ]
        return found | {"gap": max(gaps)}

    found = _on_ranks(on_each)[0]
    if not found["model"] and not any(found["blocks"]):
        raise Wrong(
            "Nothing is sharded: each rank holds the whole model. Call "
            "fully_shard(block, mesh=mesh) on each block, and then on the model. "
            "Section 5."
        )
    if not any(found["blocks"]):
        raise Wrong(
            "Only the model itself is wrapped, so all parameters are in one group: "
            "every rank gathers the *whole* model at once. Shard each block first. "
            "Section 5."
        )
    if not all(found["blocks"]):
        raise Wrong(
            "Some blocks are not wrapped: {}. Section 5.",
            found["blocks"],
        )
    if not found["model"] and not found["whole"]:
        raise Wrong(
            "All layers are sharded, but the model itself is not wrapped. Call "
            "fully_shard on the model last, instead of on its other layers. Section 5."
        )
    if found["whole"]:
        raise Wrong(
            "Every rank holds all of {}. They are in no block, so call fully_shard "
            "on the model too, after the blocks. Section 5.",
            found["whole"],
        )
    if found["foreign"]:
        raise Wrong(
            "The optimizer holds the old parameters: fully_shard has replaced them "
            "with DTensors, so its steps change nothing in the model. Make the "
            "optimizer after sharding. In short, and section 5."
        )
    if found["gap"] > 1e-9:
        raise Wrong(
            "After two steps, the weights differ by {:.2g} from those of one "
            "process with Adam and lr=0.01. Which optimizer do you return?",
            found["gap"],
        )


def _shard_start(model, mesh):
    """Shard the model on the mesh; return an Adam optimizer for it, with lr=0.01."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    fully_shard(model, mesh=mesh)
    return optimizer


def _shard_solution(model, mesh):
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return torch.optim.Adam(model.parameters(), lr=0.01)


def _shard_nothing(model, mesh):
    model.to(mesh.device_type)
    return torch.optim.Adam(model.parameters(), lr=0.01)


def _shard_root_only(model, mesh):
    fully_shard(model, mesh=mesh)
    return torch.optim.Adam(model.parameters(), lr=0.01)


def _shard_blocks_only(model, mesh):
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return torch.optim.Adam(model.parameters(), lr=0.01)


def _shard_optimizer_first(model, mesh):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return optimizer


def _shard_first_block(model, mesh):
    fully_shard(model.blocks[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return torch.optim.Adam(model.parameters(), lr=0.01)


def _shard_other_lr(model, mesh):
    _shard_solution(model, mesh)
    return torch.optim.Adam(model.parameters())


def _shard_model_first(model, mesh):
    fully_shard(model, mesh=mesh)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return torch.optim.Adam(model.parameters(), lr=0.01)


def _shard_returns_model(model, mesh):
    _shard_solution(model, mesh)
    return model


shard = Exercise(
    _check_shard,
    start=_shard_start,
    hints=[
        "How many groups of parameters should there be? One for each block, and one "
        "for the rest.",
        "fully_shard(block, mesh=mesh) for each block, then the same for the model.",
        "fully_shard replaces the parameters. When does the optimizer get them?",
    ],
    solution=_shard_solution,
    text="""
def shard(model, mesh):
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return torch.optim.Adam(model.parameters(), lr=0.01)
""",
    wrong_answers=[
        (_shard_nothing, "Nothing is sharded"),
        (_shard_root_only, "Only the model itself is wrapped"),
        (_shard_blocks_only, "They are in no block"),
        (_shard_optimizer_first, "after sharding"),
        (_shard_first_block, "Some blocks are not wrapped"),
        (_shard_model_first, "on the blocks first, and on the model last"),
        (_shard_other_lr, "Which optimizer do you return?"),
        (_shard_returns_model, "Return the Adam optimizer"),
    ],
)


# 4: tensor parallel by hand


class _Products(TorchDispatchMode):
    """Notes the width of each matrix product, whichever function computes it."""

    def __init__(self):
        super().__init__()
        self.widths = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "mm" in str(func):  # aten.mm, addmm, bmm
            self.widths.append(out.shape[-1])
        return out


def _check_pair(pair):
    def on_each(rank, world_size):
        torch.manual_seed(0)
        first, second = nn.Linear(6, 8).double(), nn.Linear(8, 4).double()
        x, calls, all_reduce = torch.randn(3, 6).double(), [], dist.all_reduce

        def counted(tensor, *args, **kwargs):
            calls.append(tensor.detach().clone())
            return all_reduce(tensor, *args, **kwargs)

        dist.all_reduce = counted
        try:
            with torch.no_grad(), _Products() as products:
                found = pair(x, first, second)
        finally:
            dist.all_reduce = all_reduce
        with torch.no_grad():
            expected = second(torch.relu(first(x)))
            bias = second.bias
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            shape = tuple(getattr(found, "shape", ())) or type(found).__name__
            return {"shape": shape}
        return {
            "shape": None,
            "calls": len(calls),
            "halved": all(width <= 4 for width in products.widths),
            "equal": torch.allclose(found, expected, atol=1e-9),
            "bias twice": torch.allclose(found, expected + bias, atol=1e-9),
            "no bias": torch.allclose(found, expected - bias, atol=1e-9),
            "sent": [tuple(tensor.shape) for tensor in calls],
        }

    results = _on_ranks(on_each)
    for rank, found in enumerate(results):
        if found["shape"]:
            raise Wrong(
                "For x of shape (3, 6), rank {} returns {}, not (3, 4). Take rows "
                "of first.weight, and *columns* of second.weight: weights are "
                "stored as (outputs, inputs). Section 7.",
                rank,
                found["shape"],
            )
        if found["bias twice"]:
            raise Wrong(
                "The result is right, except that second.bias is in it twice: both "
                "ranks add it before the all_reduce. Add it once, after the sum."
            )
        if found["no bias"]:
            raise Wrong("second.bias is missing: add it once, after the sum.")
        if not found["calls"] and not found["equal"]:
            raise Wrong(
                "Nothing is exchanged: each rank returns only the contribution of its "
                "half of the hidden numbers. Add both with dist.all_reduce. Section 7."
            )
        if not found["calls"]:
            raise Wrong(
                "The result is right without dist.all_reduce. If each rank computes "
                "all 8 hidden numbers, nothing is saved. If you exchange in another "
                "way, use one all_reduce. Section 7."
            )
        if not found["halved"]:
            raise Wrong(
                "Each rank computes all 8 hidden numbers, so nothing is saved. Rank r "
                "should compute 4 of them: 4 rows of first.weight. Section 7."
            )
        if found["calls"] > 1:
            raise Wrong(
                "{} all_reduce calls with shapes {}. One is enough: ReLU works on "
                "each hidden number separately, so nothing has to be exchanged "
                "before the second Linear. Section 7.",
                found["calls"],
                found["sent"],
            )
        if not found["equal"]:
            raise Wrong(
                "Rank {}'s result differs from second(relu(first(x))). Does each "
                "rank take *other* rows of first.weight, the same part of "
                "first.bias, and the matching columns of second.weight?",
                rank,
            )


def _pair_start(x, first, second):
    """Two Linears with a ReLU in between, by halves: first (6, 8), second (8, 4)."""
    hidden = torch.relu(first(x))
    return second(hidden)


def _half(rank):
    return slice(4 * rank, 4 * rank + 4)


def _pair_solution(x, first, second):
    half = _half(dist.get_rank())
    hidden = torch.relu(x @ first.weight[half].T + first.bias[half])
    out = hidden @ second.weight[:, half].T
    dist.all_reduce(out)
    return out + second.bias


def _pair_bias_twice(x, first, second):
    half = _half(dist.get_rank())
    hidden = torch.relu(x @ first.weight[half].T + first.bias[half])
    out = hidden @ second.weight[:, half].T + second.bias
    dist.all_reduce(out)
    return out


def _pair_no_bias(x, first, second):
    half = _half(dist.get_rank())
    hidden = torch.relu(x @ first.weight[half].T + first.bias[half])
    out = hidden @ second.weight[:, half].T
    dist.all_reduce(out)
    return out


def _pair_alone(x, first, second):
    half = _half(dist.get_rank())
    hidden = torch.relu(x @ first.weight[half].T + first.bias[half])
    return hidden @ second.weight[:, half].T + second.bias


def _pair_rows_twice(x, first, second):
    half = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    hidden = torch.relu(first(x))
    out = hidden @ second.weight[half].T
    dist.all_reduce(out)
    return out


def _pair_whole_hidden(x, first, second):
    half = _half(dist.get_rank())
    hidden = torch.relu(first(x))
    out = hidden[:, half] @ second.weight[:, half].T
    dist.all_reduce(out)
    return out + second.bias


def _pair_whole_by_method(x, first, second):
    half = _half(dist.get_rank())
    out = first(x).relu()[:, half] @ second.weight[:, half].T
    dist.all_reduce(out)
    return out + second.bias


def _pair_whole_clamped(x, first, second):
    half = _half(dist.get_rank())
    out = first(x).clamp(min=0)[:, half] @ second.weight[:, half].T
    dist.all_reduce(out)
    return out + second.bias


def _pair_two_exchanges(x, first, second):
    half = _half(dist.get_rank())
    hidden = torch.zeros(len(x), 8, dtype=x.dtype)
    hidden[:, half] = torch.relu(x @ first.weight[half].T + first.bias[half])
    dist.all_reduce(hidden)
    out = hidden[:, half] @ second.weight[:, half].T
    dist.all_reduce(out)
    return out + second.bias


def _pair_same_half(x, first, second):
    half = _half(0)
    hidden = torch.relu(x @ first.weight[half].T + first.bias[half])
    out = hidden @ second.weight[:, half].T
    dist.all_reduce(out)
    return out + second.bias


pair = Exercise(
    _check_pair,
    start=_pair_start,
    hints=[
        "Which rows of first.weight (8, 6) give the hidden numbers 4 to 7?",
        "With half = slice(4 * rank, 4 * rank + 4): x @ first.weight[half].T + "
        "first.bias[half] is this rank's half, before the ReLU.",
        "Of the second weight, take columns: hidden @ second.weight[:, half].T. Then "
        "call all_reduce, and only then add the bias.",
    ],
    solution=_pair_solution,
    text="""
def pair(x, first, second):
    rank = dist.get_rank()
    half = slice(4 * rank, 4 * rank + 4)
    hidden = torch.relu(x @ first.weight[half].T + first.bias[half])
    out = hidden @ second.weight[:, half].T
    dist.all_reduce(out)
    return out + second.bias  # once, after the sum
""",
    wrong_answers=[
        (_pair_bias_twice, "in it twice"),
        (_pair_no_bias, "second.bias is missing"),
        (_pair_alone, "Nothing is exchanged"),
        (_pair_rows_twice, "*columns* of second.weight"),
        (_pair_whole_hidden, "all 8 hidden numbers"),
        (_pair_whole_by_method, "all 8 hidden numbers"),
        (_pair_whole_clamped, "all 8 hidden numbers"),
        (_pair_two_exchanges, "nothing has to be exchanged"),
        (_pair_same_half, "*other* rows"),
    ],
)


# The deeper lesson: tensor parallel, meshes of two dimensions


QUIZZES["rows_first"] = [
    choice(
        "Cut A by rows and B by columns instead. What has to be exchanged in forward?",
        (
            "The same: one all_reduce of y",
            False,
            "Each rank has only a part of the sum that makes a hidden number, and ReLU "
            "must be applied to the whole sum.",
        ),
        (
            "Nothing: columns of B give whole outputs",
            False,
            "They do if the rank has all hidden numbers. With rows of A, it has only "
            "parts of their sums.",
        ),
        (
            "An all_reduce of x @ A, and an all_gather of y's columns",
            True,
            "Yes: the sums must be complete before the ReLU, and each rank ends with "
            "its own columns of y.",
        ),
    ),
]


# deeper, 1: a plan for a gated block


class _Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(6, 8), nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)

    def forward(self, x):
        return self.down(silu(self.gate(x)) * self.up(x))


def _check_gated_plan(gated_plan):
    def on_each(rank, world_size):
        torch.manual_seed(0)
        plain = _Gated().double()
        model = copy.deepcopy(plain)
        x = torch.randn(4, 6).double()
        mesh = init_device_mesh("cpu", (world_size,))
        plan = gated_plan()
        if not isinstance(plan, dict):
            return {"kind": type(plan).__name__}
        if unknown := set(plan) - {"gate", "up", "down"}:
            return {"unknown": sorted(unknown)}
        if missing := {"gate", "up", "down"} - set(plan):
            return {"missing": sorted(missing)}
        if any(isinstance(style, type) for style in plan.values()):
            return {"classes": True}
        model = parallelize_module(model, mesh, plan)
        sizes = {name: p.to_local().numel() for name, p in model.named_parameters()}
        found = {"whole": [n for n in plan if sizes[f"{n}.weight"] == 48]}
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        try:
            with CommDebugMode() as comm:
                out = model(mine)
            counts = {
                str(op).rpartition(".")[2]: n
                for op, n in comm.get_comm_counts().items()
            }
            out.sum().backward()
        except (RuntimeError, ValueError) as error:
            if "Timed out" in str(error):
                raise
            return found | {"error": str(error).strip().splitlines()[0]}
        expected = plain(theirs)
        expected.sum().backward()
        same = isinstance(out, torch.Tensor) and out.shape == expected.shape
        found["counts"] = counts
        found["equal"] = same and torch.allclose(out, expected, atol=1e-9)
        found["gradient"] = torch.allclose(mine.grad, theirs.grad, atol=1e-9)
        return found

    found = _on_ranks(on_each)[0]
    if "kind" in found:
        raise Wrong(
            "Return a dictionary, name: style. Found a {}.",
            found["kind"],
        )
    if "unknown" in found:
        raise Wrong(
            "The block has no {}: its Linears are gate, up and down.",
            found["unknown"],
        )
    if "missing" in found:
        raise Wrong(
            "{} is not in the plan, so every rank computes it whole. gate's output "
            "and up's output are multiplied elementwise: both need the same split, "
            "and down needs the one that fits. Section 2.",
            found["missing"],
        )
    if "classes" in found:
        raise Wrong("Give instances, ColwiseParallel(), and not the class itself.")
    if "error" in found:
        raise Wrong(
            "The block fails: {!r}. Its halves do not fit together. Which input "
            "does each style expect, and which output does it return? Section 2.",
            found["error"],
        )
    if not found["equal"] or not found["gradient"]:
        raise Wrong(
            "It runs, but the result or the gradient is not that of the whole block. "
            "Leave input_layouts and output_layouts as they are."
        )
    total = sum(found["counts"].values())
    if total != 1:
        raise Wrong(
            "Right, but forward calls {} collectives: {}, where one is enough. "
            "Which split lets silu and the product work on a rank's own hidden "
            "numbers? Sections 1 and 2.",
            total,
            found["counts"],
        )


def _gated_plan_start():
    """The plan: name of the Linear -> style."""


def _gated_plan_solution():
    return {
        "gate": ColwiseParallel(),
        "up": ColwiseParallel(),
        "down": RowwiseParallel(),
    }


def _gated_gathered():
    return {
        name: ColwiseParallel(output_layouts=Replicate())
        for name in ("gate", "up", "down")
    }


def _gated_rows_first():
    whole = {"input_layouts": Replicate(), "output_layouts": Replicate()}
    return {
        "gate": RowwiseParallel(**whole),
        "up": RowwiseParallel(**whole),
        "down": ColwiseParallel(output_layouts=Replicate()),
    }


gated_plan = Exercise(
    _check_gated_plan,
    start=_gated_plan_start,
    hints=[
        "silu and the product are elementwise. Which split gives a rank complete "
        "hidden numbers, only fewer of them?",
        "gate and up both play the part of A, and down plays the part of B.",
        "ColwiseParallel() for gate and up.",
    ],
    solution=_gated_plan_solution,
    text="""
def gated_plan():
    return {
        "gate": ColwiseParallel(),
        "up": ColwiseParallel(),
        "down": RowwiseParallel(),
    }
""",
    wrong_answers=[
        (
            lambda: {"gate": ColwiseParallel(), "down": RowwiseParallel()},
            "is not in the plan",
        ),
        (
            lambda: dict.fromkeys(("gate", "up", "down"), ColwiseParallel()),
            "halves do not fit together",
        ),
        (
            lambda: {
                "gate": ColwiseParallel(),
                "up": RowwiseParallel(),
                "down": RowwiseParallel(),
            },
            "halves do not fit together",
        ),
        (_gated_gathered, "where one is enough"),
        (_gated_rows_first, "where one is enough"),
        (
            lambda: {
                "gate": ColwiseParallel,
                "up": ColwiseParallel,
                "down": RowwiseParallel,
            },
            "and not the class itself",
        ),
        (lambda: {"0": ColwiseParallel(), "2": RowwiseParallel()}, "has no"),
        (lambda: [ColwiseParallel(), RowwiseParallel()], "Return a dictionary"),
    ],
)


# deeper, 2: whose images on a mesh of two dimensions


def _check_sampler_for(sampler_for):
    dataset = list(range(12))
    for shape in ((2, 2), (3, 2), (2, 3)):
        images, places = [], []
        for rank in range(math.prod(shape)):
            with _alone_as(rank, math.prod(shape)):
                mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
                sampler = sampler_for(dataset, mesh)
                places.append(mesh["dp"].get_local_rank())
            if not isinstance(sampler, DistributedSampler):
                raise Wrong(
                    "Return a DistributedSampler; found {}. Section 4.",
                    type(sampler).__name__,
                )
            images.append(list(sampler))
        for a, b in itertools.combinations(range(len(places)), 2):
            same_place, same_images = places[a] == places[b], images[a] == images[b]
            shown = (
                f"On a mesh of {shape}, rank {a} gets images {images[a]} and rank {b} "
                f"gets {images[b]}. "
            )
            if same_place and not same_images:
                raise Wrong(
                    "{}They are in one tp group: each has a part of the weights, so "
                    "both halves have to see the *same* images. Section 4.",
                    shown,
                )
            if not same_place and set(images[a]) & set(images[b]):
                raise Wrong(
                    "{}They are at different places in dp, so no image should come "
                    "twice. Section 4.",
                    shown,
                )
        if missing := set(dataset) - set().union(*images):
            raise Wrong(
                "On a mesh of {}, nobody gets the images {}. How many shares of the "
                "data set are needed? Section 4.",
                shape,
                sorted(missing),
            )


@contextlib.contextmanager
def _alone_as(rank, world_size):
    """This process as one of `world_size`, where nobody waits for anyone.

    PyTorch's "fake" backend: groups and meshes are real, and nothing is sent.
    """
    if dist.is_initialized():
        raise RuntimeError("Call dist.destroy_process_group() in this notebook first.")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _sampler_start(dataset, mesh):
    """This rank's sampler on a mesh with dimensions "dp" and "tp"."""
    return DistributedSampler(dataset, shuffle=False)


def _sampler_solution(dataset, mesh):
    dp = mesh["dp"]
    place = {"num_replicas": dp.size(), "rank": dp.get_local_rank()}
    return DistributedSampler(dataset, shuffle=False, **place)


def _sampler_tp(dataset, mesh):
    tp = mesh["tp"]
    return DistributedSampler(dataset, tp.size(), tp.get_local_rank(), shuffle=False)


def _sampler_modulo(dataset, mesh):
    n = mesh["dp"].size()
    return DistributedSampler(dataset, n, dist.get_rank() % n, shuffle=False)


def _sampler_halved(dataset, mesh):
    return DistributedSampler(
        dataset, dist.get_world_size(), mesh["dp"].get_local_rank(), shuffle=False
    )


def _sampler_one_for_all(dataset, mesh):
    return DistributedSampler(dataset, mesh["dp"].size(), 0, shuffle=False)


sampler_for = Exercise(
    _check_sampler_for,
    start=_sampler_start,
    hints=[
        "By default, DistributedSampler uses the rank among *all* ranks.",
        "The ranks of one tp group hold one model together. How many models are there, "
        "and which one is this?",
        'num_replicas=mesh["dp"].size(), and rank=mesh["dp"].get_local_rank().',
    ],
    solution=_sampler_solution,
    text="""
def sampler_for(dataset, mesh):
    dp = mesh["dp"]
    place = {"num_replicas": dp.size(), "rank": dp.get_local_rank()}
    return DistributedSampler(dataset, shuffle=False, **place)
""",
    wrong_answers=[
        (
            lambda dataset, mesh: DistributedSampler(dataset),
            "both halves have to see the *same* images",
        ),
        (_sampler_tp, "both halves have to see the *same* images"),
        (_sampler_modulo, "both halves have to see the *same* images"),
        (_sampler_halved, "nobody gets the images"),
        (_sampler_one_for_all, "no image should come twice"),
        (lambda dataset, mesh: list(dataset), "Return a DistributedSampler"),
    ],
)

quiz = define(globals())
