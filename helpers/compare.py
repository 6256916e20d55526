"""How far two state dicts are apart; `torch.testing.assert_close` says all the rest."""

from collections.abc import Mapping

import torch


def max_difference(
    a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]
) -> float:
    """The largest absolute difference between two state dicts' values, in float64.

    0.0 means equal values, whatever the dtypes and devices; only integers from 2**53 on
    are rounded. NaN equals NaN, and NaN against a number gives NaN. Raises ValueError
    where keys or shapes differ.
    """
    shapes = [{key: value.shape for key, value in state.items()} for state in (a, b)]
    if wrong := dict(shapes[0].items() ^ shapes[1].items()):
        raise ValueError(f"the state dicts differ in keys or shapes: {sorted(wrong)}")
    largest = torch.zeros(1, dtype=torch.float64)
    for key in a:
        x, y = (state[key].detach().cpu() for state in (a, b))
        x, y = (t.to(torch.promote_types(t.dtype, torch.float64)) for t in (x, y))
        equal = (x == y) | (x.isnan() & y.isnan())
        apart = (x - y).abs().masked_fill(equal, 0.0)
        largest = torch.cat([largest, apart.flatten()]).max(dim=0, keepdim=True).values
    return largest.item()
