"""helpers.compare: one number for how far two state dicts are apart."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.compare import max_difference
from helpers.models import SmallCNN

INF, NAN = math.inf, math.nan


def apart(a: object, b: object) -> float:
    return max_difference({"x": torch.as_tensor(a)}, {"x": torch.as_tensor(b)})


def test_one_number_among_all_of_a_model():
    model, other = SmallCNN(), SmallCNN()
    assert max_difference(model.state_dict(), other.state_dict()) > 0.0
    other.load_state_dict(model.state_dict())
    assert max_difference(model.state_dict(), other.state_dict()) == 0.0
    changed = {key: value.clone() for key, value in model.state_dict().items()}
    changed["layer2.1.running_var"][7] += 0.25
    assert max_difference(model.state_dict(), changed) == 0.25
    changed["layer3.1.num_batches_tracked"] += 3
    reordered = dict(reversed(changed.items()))
    assert max_difference(reordered, model.state_dict()) == 3.0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (torch.ones(4), torch.nextafter(torch.ones(4), torch.tensor(2.0)), 2.0**-23),
        (torch.tensor(5e-324, dtype=torch.float64), 0.0, 5e-324),  # the least above 0
        (torch.tensor([6e4], dtype=torch.float16), torch.tensor([-6e4]), 120000.0),
        (torch.tensor([0.5], dtype=torch.bfloat16), torch.tensor([0.5]), 0.0),
        (torch.tensor([0], dtype=torch.uint8), torch.tensor([255]), 255.0),
        (torch.tensor([-128], dtype=torch.int8), torch.tensor([127]), 255.0),
        ([True, False], [True, True], 1.0),
        ([1 + 1j], [4 + 5j], 5.0),
        ([1 + 1j], [1.0], 1.0),
        ([NAN, INF, -INF], [NAN, INF, -INF], 0.0),
        ([INF], [-INF], INF),
        ([INF], [1.0], INF),
        ([NAN, 1.0], [NAN, 1.5], 0.5),
        ([NAN, 1.0], [2.0, 5.0], NAN),
        (torch.empty(0, 3), torch.empty(0, 3), 0.0),
    ],
)
def test_values_of_any_dtype(a, b, expected):
    for found in (apart(a, b), apart(b, a)):
        assert found == expected or (math.isnan(found) and math.isnan(expected))


@pytest.mark.parametrize("order", ["xy", "yx"])
def test_nan_in_one_key_is_not_hidden_by_another(order):
    b = {"x": torch.tensor([NAN]), "y": torch.tensor([INF])}
    b = {key: b[key] for key in order}
    assert math.isnan(max_difference({key: torch.zeros(1) for key in b}, b))


def test_keys_and_shapes_that_differ_are_named():
    a = {"same": torch.ones(1), "head": torch.ones(10, 4), "old": torch.ones(1)}
    b = {"same": torch.ones(1), "head": torch.ones(2, 4), "new": torch.ones(1)}
    with pytest.raises(ValueError, match=r"\['head', 'new', 'old'\]"):
        max_difference(a, b)
    with pytest.raises(ValueError, match="x"):  # shapes are never broadcast
        apart([1.0], 1.0)
    assert max_difference({}, {}) == 0.0


def test_what_has_no_values_is_refused():
    state = torch.optim.Adam(SmallCNN().parameters()).state_dict()
    with pytest.raises(AttributeError, match="shape"):
        max_difference(state, state)
    with torch.device("meta"):
        empty = SmallCNN().state_dict()
    with pytest.raises(NotImplementedError, match="meta"):
        max_difference(SmallCNN().state_dict(), empty)


values = st.floats(width=32) | st.integers(-100, 100).map(float)
lists = st.lists(values, min_size=1, max_size=6)


@given(lists.flatmap(lambda a: st.tuples(st.just(a), st.permutations(a))))
def test_symmetric_and_exact(pair):
    a, b = (torch.tensor(values, dtype=torch.float64) for values in pair)
    forth, back = apart(a, b), apart(b, a)
    assert forth == back or (math.isnan(forth) and math.isnan(back))
    different = [(x, y) for x, y in zip(*pair, strict=True) if x != y]
    different = [abs(x - y) for x, y in different if x == x or y == y]
    assert (forth == 0.0) == (not different)
    if not any(map(math.isnan, different)):
        assert forth == max(different, default=0.0)
