"""How far two state dicts are apart."""

from collections.abc import Mapping

import torch


def max_difference(
    a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]
) -> float:
    """The largest absolute difference between two state dicts' values.

    0.0 means equal to the last bit, in values: a float32 and a float64 tensor of the
    same values are equal, and so are 0.0 and -0.0. Two integer tensors of one dtype
    are compared as they are, everything else in float64, on the CPU. NaN against NaN
    and infinity against the same infinity are equal; NaN against a number gives NaN.

    Raises:
        TypeError: a value is not a tensor, as in an optimizer's state_dict.
        ValueError: the keys, or the shapes under a key, are not the same, or a tensor
            is on the meta device and has no values. The message names them.
    """
    for key, value in [*a.items(), *b.items()]:
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{key!r} holds a {type(value).__name__}, not a tensor")
        if value.is_meta:
            raise ValueError(f"{key!r} is on the meta device: it has no values")
    problems = [f"{key} (only in the first)" for key in a if key not in b]
    problems += [f"{key} (only in the second)" for key in b if key not in a]
    problems += [
        f"{key} {tuple(a[key].shape)} against {tuple(b[key].shape)}"
        for key in a
        if key in b and a[key].shape != b[key].shape
    ]
    if problems:
        raise ValueError("the state dicts do not match: " + "; ".join(problems))
    largest = 0.0
    for key in a:
        difference = _difference(a[key], b[key])
        if not difference <= largest:  # also where the difference is NaN
            largest = difference
        if largest != largest:
            break
    return largest


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().cpu(), b.detach().cpu()
    if a.dtype == b.dtype and not (a.is_floating_point() or a.is_complex()):
        # float64 can't tell 2**53 from 2**53 + 1; integers that differ do so by 1.
        unequal = a != b
        apart = (a[unequal].double() - b[unequal].double()).abs().clamp(min=1)
    else:
        a, b = (
            t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b)
        )
        unequal = (a != b) & ~(a.isnan() & b.isnan())
        apart = (a - b)[unequal].abs()
    return apart.max().item() if len(apart) else 0.0
