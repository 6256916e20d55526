"""A model's summary in milliseconds, with no memory and no change to the model."""

import copy
from typing import Any

import torch
import torchinfo
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode


def meta_clone(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device: shapes and dtypes, no values, no memory.

    Tied parameters stay tied, modes and `requires_grad` are kept; the model itself is
    not touched. Forward hooks are not copied: a summary of the copy must not call them.

    Raises:
        ValueError: the model has lazy parameters that have no shape yet.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(is_lazy(t) for t in tensors):
        raise ValueError("the model has lazy layers: run one batch through it first")
    # Tensors kept as plain attributes must move too, or they meet the meta ones.
    tensors += [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor)
    ]
    # deepcopy looks in `memo` first: every tensor found there is not copied.
    memo = {id(t): _to_meta(t) for t in tensors}
    clone = copy.deepcopy(model, memo)
    for module in clone.modules():
        module._forward_hooks.clear()
    return clone


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    meta = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(meta, requires_grad=tensor.requires_grad)
    return meta


def summarize(
    model: nn.Module,
    input_size: tuple[int, ...] | list[tuple[int, ...]],
    **torchinfo_options: Any,
) -> torchinfo.ModelStatistics:
    """torchinfo's summary, run on a meta clone of the model, with its totals put right.

    The model's weights, buffers, mode and hooks stay as they are, and so does the state
    of the random numbers.

    Args:
        input_size: one sample's shape without the batch, as torchsummary takes it:
            (3, 224, 224). A list of shapes for a model with several inputs.
        torchinfo_options: `depth`, `col_names`, `row_settings`, `dtypes`, `mode` and so
            on, as in `torchinfo.summary`. `dtypes` defaults to the model's own dtype.

    Returns:
        The statistics; displayed or printed they are the table. `total_params`,
        `trainable_params` and `total_param_bytes` count each parameter once, as
        `model.parameters()` does (torchinfo counts tied ones twice); `total_mult_adds`
        is half of what torch.utils.flop_counter counts (torchinfo misses attention).

    Raises:
        ValueError: `input_size` is not made of positive ints, or an option is given
            that summarize sets itself.
        RuntimeError: the model does not run on such an input; torchinfo's message says
            up to which layer it went.
    """
    taken = {"input_data", "device", "batch_dim", "cache_forward_pass"}
    if taken := taken & torchinfo_options.keys():
        raise ValueError(f"summarize sets {', '.join(sorted(taken))} itself")
    sizes = [input_size] if isinstance(input_size, tuple) else list(input_size)
    if not sizes or not all(
        isinstance(size, tuple) and all(isinstance(n, int) and n > 0 for n in size)
        for size in sizes
    ):
        raise ValueError(
            "input_size is one sample's shape without the batch, such as "
            f"(3, 224, 224), or a list of such shapes; not {input_size!r}"
        )
    own_dtype = next(
        (p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32
    )
    dtypes = torchinfo_options.pop("dtypes", None) or [own_dtype] * len(sizes)
    torchinfo_options.setdefault("verbose", 0)

    clone = meta_clone(model)
    # Handed over ready-made: with input_size= torchinfo would draw random numbers.
    inputs = [
        torch.empty(1, *size, dtype=dtype, device="meta")
        for size, dtype in zip(sizes, dtypes, strict=True)
    ]
    with FlopCounterMode(display=False) as flops:
        statistics = torchinfo.summary(
            clone, input_data=inputs, device="meta", **torchinfo_options
        )
    parameters = list(clone.parameters())
    statistics.total_params = sum(p.numel() for p in parameters)
    statistics.trainable_params = sum(p.numel() for p in parameters if p.requires_grad)
    statistics.total_param_bytes = sum(p.nbytes for p in parameters)
    statistics.total_mult_adds = flops.get_total_flops() // 2
    return statistics
