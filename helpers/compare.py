"""How far two state dicts are apart."""

from collections.abc import Mapping

import torch


def max_difference(
    a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]
) -> float:
    """The largest absolute difference between two state dicts' values.

    0.0 means equal to the last bit, in values: a float32 and a float64 tensor of the
    same values are equal. Tensors are compared in float64 on the CPU. NaN against NaN
    and infinity against the same infinity are equal; NaN against a number gives NaN.

    Raises:
        ValueError: the keys, or the shapes under a key, are not the same. The message
            names them.
    """
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
    a, b = (
        t.detach().cpu().to(torch.complex128 if t.is_complex() else torch.float64)
        for t in (a, b)
    )
    unequal = (a != b) & ~(a.isnan() & b.isnan())
    return (a - b).abs()[unequal].max().item() if unequal.any() else 0.0
