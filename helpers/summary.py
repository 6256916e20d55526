"""A model's summary with no forward pass, no memory and no change to the model."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torchinfo
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers.training import keep_random_state


def meta_clone(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device: shapes and dtypes, no values, no memory.

    Tied parameters stay tied, modes and `requires_grad` are kept, forward hooks are not
    copied; the model itself is not touched.

    Raises:
        ValueError: the model has lazy layers; run one batch through it first.
    """
    # deepcopy looks in `memo` first, by id: what it finds there it does not copy.
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in _tensors_in(vars(module)):
            meta = torch.empty_like(tensor, device="meta")
            if isinstance(tensor, nn.Parameter):
                meta = nn.Parameter(meta, tensor.requires_grad)
            memo[id(tensor)] = meta  # a tied tensor has one id
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            memo[id(hooks)] = type(hooks)()
        if isinstance(module, nn.DataParallel):  # the copy is on no GPU
            memo[id(module.device_ids)] = []
    return copy.deepcopy(model, memo)


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors among a module's attributes: parameters, buffers, and plain ones."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item)


def summarize(
    model: nn.Module,
    input_size: tuple[int, ...] | list[tuple[int, ...]],
    *,
    dtypes: Sequence[torch.dtype] = (),
    **torchinfo_options: Any,
) -> torchinfo.ModelStatistics:
    """torchinfo's table of a meta clone of the model, with its totals put right.

    Args:
        input_size: one sample's shape without the batch, as torchsummary takes it:
            (3, 224, 224). A list of shapes for a model with several inputs.
        dtypes: one for each input, by default the model's own floating-point dtype.
        torchinfo_options: `depth`, `col_names`, `mode` and so on; not `verbose`.

    Returns:
        What `torchinfo.summary` returns. `total_params`, `trainable_params` and
        `total_param_bytes` count a tied parameter once (torchinfo: twice).
        `total_mult_adds` is half of what torch.utils.flop_counter counts (torchinfo
        leaves out attention, and the number of tokens that a Linear works on).

    Raises:
        ValueError: `input_size` is not made of positive ints, there are not as many
            `dtypes` as inputs, or the model has lazy layers.
        RuntimeError: the model does not run on such an input, or only where tensors
            have values; the message says up to which layer it went.
    """
    sizes = input_size if isinstance(input_size, list) else [input_size]
    for size in sizes:
        if not isinstance(size, tuple) or not all(
            isinstance(n, int) and n > 0 for n in size
        ):
            raise ValueError(
                "input_size is one sample's shape without the batch, a tuple such as "
                f"(3, 224, 224), or a list of such tuples; not {input_size!r}"
            )
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    dtypes = dtypes or [next(floating, torch.float32)] * len(sizes)
    if len(dtypes) != len(sizes):
        raise ValueError(f"give one dtype for each of the {len(sizes)} inputs")
    clone = meta_clone(model)
    # Tensors that the model makes in its forward must be on the meta device as well.
    with keep_random_state(), torch.device("meta"):
        # Handed over ready-made: with input_size= torchinfo would draw random numbers.
        inputs = [
            torch.empty(1, *size, dtype=dtype)
            for size, dtype in zip(sizes, dtypes, strict=True)
        ]
        with FlopCounterMode(display=False) as flops:
            statistics = torchinfo.summary(
                clone, input_data=inputs, device="meta", verbose=0, **torchinfo_options
            )
    parameters = list(clone.parameters())
    statistics.total_params = sum(p.numel() for p in parameters)
    statistics.trainable_params = sum(p.numel() for p in parameters if p.requires_grad)
    statistics.total_param_bytes = sum(p.nbytes for p in parameters)
    statistics.total_mult_adds = flops.get_total_flops() // 2
    return statistics
