"""helpers.compare: one number for how far two state dicts are apart."""

import math
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.compare import max_difference
from helpers.models import SmallCNN

INF, NAN = math.inf, math.nan
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def apart(a, b) -> float:
    return max_difference({"x": torch.as_tensor(a)}, {"x": torch.as_tensor(b)})


def test_a_model_against_itself_and_a_copy():
    model, other = SmallCNN(), SmallCNN()
    assert max_difference(model.state_dict(), model.state_dict()) == 0.0
    assert max_difference(model.state_dict(), other.state_dict()) > 0.0
    other.load_state_dict(model.state_dict())
    assert max_difference(model.state_dict(), other.state_dict()) == 0.0


def test_one_number_among_all():
    model = SmallCNN()
    changed = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        changed["layer2.1.running_var"][7] += 0.25
    assert max_difference(model.state_dict(), changed) == 0.25
    changed["layer3.1.num_batches_tracked"] += 3
    assert max_difference(model.state_dict(), changed) == 3.0


def test_the_largest_of_several_keys_wherever_it_stands():
    base = {"a": torch.zeros(3), "b": torch.zeros(2, 2), "c": torch.zeros(())}
    for key in base:
        other = {k: v + 0.5 for k, v in base.items()} | {key: base[key] - 2}
        assert max_difference(base, other) == 2.0


def test_the_order_of_keys_does_not_count():
    a = OrderedDict(x=torch.ones(2), y=torch.zeros(3))
    assert max_difference(a, OrderedDict(reversed(a.items()))) == 0.0


def test_equal_to_the_last_bit():
    one = torch.ones(4)
    next_up = torch.nextafter(one, torch.tensor(2.0))
    assert apart(one, next_up) == 2.0**-23
    tiny = torch.tensor(5e-324, dtype=torch.float64)  # the least above 0
    assert apart(tiny, torch.zeros((), dtype=torch.float64)) == 5e-324


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_dtypes(dtype):
    a = torch.tensor([0.5, -2.0, 3.0], dtype=dtype)
    assert apart(a, a.clone()) == 0.0
    assert apart(a, a + torch.tensor([0, 0, 1], dtype=dtype)) == 1.0
    assert apart(a, a.double()) == 0.0, "values count, not dtypes"


def test_half_precision_does_not_overflow():
    a = torch.tensor([60000.0], dtype=torch.float16)
    assert apart(a, -a) == 120000.0


@pytest.mark.parametrize("dtype", INTS)
def test_integer_dtypes(dtype):
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    a = torch.tensor([low, 1], dtype=dtype)
    assert apart(a, a.clone()) == 0.0
    b = torch.tensor([high, 1], dtype=dtype)
    assert apart(a, b) == apart(b, a) == float(high - low), "no wrap-around"


def test_integers_that_float64_does_not_hold():
    a = torch.tensor([2**53, 7])
    assert apart(a, torch.tensor([2**53 + 1, 7])) == 1.0
    assert apart(torch.tensor(2**63 - 1), torch.tensor(2**63 - 2)) == 1.0


def test_bools():
    assert apart([True, False], [True, False]) == 0.0
    assert apart([True, False], [True, True]) == 1.0


def test_complex():
    a = torch.tensor([1 + 1j, 2 - 1j])
    assert apart(a, a.clone()) == 0.0
    assert apart(a, a + torch.tensor([0, 3 + 4j])) == 5.0
    assert apart(a.real + 0j, a.real) == 0.0


def test_nan_and_infinity():
    assert apart([NAN, 1.0], [NAN, 1.0]) == 0.0
    assert apart([INF, -INF], [INF, -INF]) == 0.0
    assert apart([INF], [-INF]) == INF
    assert apart([INF], [1.0]) == INF
    assert math.isnan(apart([NAN, 1.0], [2.0, 1.0]))
    assert math.isnan(apart([1.0, 5.0], [NAN, 1.0]))
    assert apart([NAN, 1.0], [NAN, 1.5]) == 0.5


@pytest.mark.parametrize("nan_first", [True, False])
def test_nan_in_one_key_is_not_hidden_by_another(nan_first):
    a = {"x": torch.zeros(1), "y": torch.zeros(1)}
    b = {"x": torch.tensor([NAN]), "y": torch.tensor([INF])}
    if not nan_first:
        b = {"x": b["y"], "y": b["x"]}
    assert math.isnan(max_difference(a, b))


def test_nothing_to_compare():
    assert max_difference({}, {}) == 0.0
    assert apart(torch.empty(0, 3), torch.empty(0, 3)) == 0.0


def test_tied_parameters():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    state = model.state_dict()
    assert max_difference(state, {k: v.clone() for k, v in state.items()}) == 0.0
    untied = {k: v.clone() for k, v in state.items()}
    untied["1.weight"] += 1  # in the copy the two are apart
    assert max_difference(state, untied) == pytest.approx(1.0)


def test_views_and_gradients():
    a = torch.arange(12.0, requires_grad=True).reshape(3, 4)
    assert apart(a.T, a.T.contiguous().detach()) == 0.0
    assert apart(torch.zeros(1).expand(4), torch.zeros(4)) == 0.0


def test_the_message_names_all_that_does_not_match():
    a = {"same": torch.ones(1), "head.weight": torch.ones(10, 4), "old": torch.ones(1)}
    b = {"same": torch.ones(1), "head.weight": torch.ones(2, 4), "new": torch.ones(1)}
    with pytest.raises(ValueError, match="do not match") as caught:
        max_difference(a, b)
    message = str(caught.value)
    assert "old (only in the first)" in message
    assert "new (only in the second)" in message
    assert "head.weight (10, 4) against (2, 4)" in message
    assert "same" not in message


def test_shapes_are_never_broadcast():
    with pytest.raises(ValueError, match=r"x \(1,\) against \(\)"):
        apart([1.0], 1.0)


def test_an_optimizer_state_is_refused():
    state = torch.optim.Adam(SmallCNN().parameters()).state_dict()
    with pytest.raises(TypeError, match="'state' holds a dict, not a tensor"):
        max_difference(state, state)


def test_tensors_without_values_are_refused():
    with torch.device("meta"):
        empty = SmallCNN()
    for pair in ((SmallCNN(), empty), (empty, SmallCNN()), (empty, empty)):
        with pytest.raises(ValueError, match="weight' is on the meta device"):
            max_difference(*(model.state_dict() for model in pair))


values = st.floats(width=32) | st.integers(-100, 100).map(float)
lists = st.lists(values, min_size=1, max_size=6)


@given(lists.flatmap(lambda a: st.tuples(st.just(a), st.permutations(a))))
def test_symmetric_and_exact(pair):
    a, b = (torch.tensor(values, dtype=torch.float64) for values in pair)
    forth, back = apart(a, b), apart(b, a)
    assert forth == back or (math.isnan(forth) and math.isnan(back))
    same = all(x == y or (x != x and y != y) for x, y in zip(*pair, strict=True))
    assert (forth == 0.0) == same
    differences = [
        abs(x - y) for x, y in zip(*pair, strict=True) if x != y and (x == x or y == y)
    ]
    if not any(map(math.isnan, differences)):
        assert forth == max(differences, default=0.0)


whole = st.integers(-(2**63), 2**63 - 1)


@given(whole, whole | st.just(None), st.integers(-3, 3))
def test_integers_are_told_apart(a, b, step):
    b = max(-(2**63), min(a + step, 2**63 - 1)) if b is None else b
    found = apart(torch.tensor(a), torch.tensor(b))
    assert (found == 0.0) == (a == b)
    # a, b, and their difference are each rounded to float64
    rounding = 2 * (abs(a) + abs(b)) * 2.0**-53
    assert abs(found - abs(a - b)) <= max(1.0, rounding)
