"""A model's summary in milliseconds, with no memory and no change to the model."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torchinfo
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from helpers.training import keep_random_state


def meta_clone(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device: shapes and dtypes, no values, no memory.

    Tied parameters stay tied, modes and `requires_grad` are kept; the model itself is
    not touched. Your forward hooks and pre-hooks are not copied: a summary of the copy
    must not call them.

    Raises:
        ValueError: the model has lazy parameters that have no shape yet.
    """
    # deepcopy looks in `memo` first, by id: what it finds there it does not copy.
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in _tensors_in(vars(module)):
            if is_lazy(tensor):
                raise ValueError(
                    "the model has lazy layers: run one batch through it first"
                )
            memo[id(tensor)] = _to_meta(tensor)  # a tied tensor has one id
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            memo[id(hooks)] = type(hooks)()
        if isinstance(module, nn.DataParallel):  # the copy is on no GPU
            memo[id(module.device_ids)] = []
    return copy.deepcopy(model, memo)


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors among a module's attributes: parameters, buffers, and plain ones."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)


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
            on, as in `torchinfo.summary`. `dtypes`, one for each input, defaults to the
            model's own dtype; `verbose` to 0, which prints nothing.

    Returns:
        The statistics; displayed or printed they are the table. `total_params`,
        `trainable_params` and `total_param_bytes` count each parameter once, as
        `model.parameters()` does (torchinfo counts tied ones twice); `total_mult_adds`
        is half of what torch.utils.flop_counter counts (torchinfo misses attention).

    Raises:
        ValueError: `input_size` is not made of positive ints, `dtypes` are not as many,
            the model has lazy layers, or an option is given that summarize sets itself.
        RuntimeError: the model does not run on such an input, or only where tensors
            have values; torchinfo's message says up to which layer it went.
    """
    taken = {"input_data", "device", "batch_dim", "cache_forward_pass"}
    if taken := taken & torchinfo_options.keys():
        raise ValueError(f"summarize sets {', '.join(sorted(taken))} itself")
    sizes = input_size if isinstance(input_size, list) else [input_size]
    if not sizes or not all(map(_is_shape, sizes)):
        raise ValueError(
            "input_size is one sample's shape without the batch, a tuple such as "
            f"(3, 224, 224), or a list of such tuples; not {input_size!r}"
        )
    own_dtype = next(
        (p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32
    )
    dtypes = torchinfo_options.pop("dtypes", None) or [own_dtype] * len(sizes)
    if not isinstance(dtypes, list | tuple) or len(dtypes) != len(sizes):
        raise ValueError(
            f"dtypes is a list of {len(sizes)}, one for each input; not {dtypes!r}"
        )
    verbose = torchinfo_options.pop("verbose", 0)
    if verbose not in (0, 1, 2):
        raise ValueError(f"verbose is 0, 1 or 2, not {verbose!r}")

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
    statistics.formatting.verbose = verbose
    if verbose:  # only now: torchinfo would have printed its own totals
        print(statistics)
    return statistics


def _is_shape(size: Any) -> bool:
    return isinstance(size, tuple) and all(isinstance(n, int) and n > 0 for n in size)
