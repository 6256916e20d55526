"""helpers.summary on hand-made models: shared, odd, and broken ones."""

import random

import numpy as np
import pytest
import torch
import torchinfo
from torch import nn
from torch.nn.utils import parametrizations

from helpers.models import SmallCNN
from helpers.summary import meta_clone, summarize

# ---- small models, each with what summaries get wrong


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 16, bias=False)
        self.b = nn.Linear(16, 16, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(11, 11)

    def forward(self, x):
        return self.layer(self.layer(x))


class TwoParents(nn.Module):
    def __init__(self):
        super().__init__()
        shared = nn.Linear(8, 8)
        self.a, self.b = nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared)

    def forward(self, x):
        return self.b(self.a(x))


class RootParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.layer = nn.Linear(8, 2)

    def forward(self, x):
        return self.layer(x * self.scale)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(100, 100)

    def forward(self, x):
        return self.used(x)


class Lstm(nn.Module):
    """Its first states are made in forward, without naming a device."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        start = torch.zeros(1, len(x), 16)
        return self.head(self.lstm(x, (start, start))[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0])


class TupleOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 5)

    def forward(self, x):
        return self.a(x), {"b": self.b(x)}


class PlainTensors(nn.Module):
    """Tensors that are neither parameters nor buffers, alone and in containers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.mean = torch.rand(4)
        self.scales = [torch.rand(4), torch.rand(4)]
        self.anchors = {"p3": (torch.rand(4), 1)}

    def forward(self, x):
        return self.layer(x - self.mean) * self.scales[1] + self.anchors["p3"][0]


def old_weight_norm():
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 1))


def new_spectral_norm():
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 6)))


CASES = {  # model, input size, parameters counted by hand
    Tied: ((16,), 256),
    Twice: ((11,), 132),
    TwoParents: ((8,), 72),
    RootParameter: ((8,), 26),
    Unused: ((4,), 10_120),
    Lstm: ((5, 8), 4 * 16 * (8 + 16 + 2) + 34),
    Attention: ((7, 32), 4 * 32 * 32 + 4 * 32 + 66),
    TupleOutput: ((4,), 40),
    PlainTensors: ((4,), 20),
    old_weight_norm: ((4,), 24 + 6 + 6 + 7),
    new_spectral_norm: ((4,), 30),
    SmallCNN: ((3, 32, 32), 34_058),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


def everything(model: nn.Module) -> list:
    """All that a summary must leave as it is."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        [(name, id(t), t._version, t.requires_grad, t.device) for name, t in tensors],
        [t.tolist() for _, t in tensors],
        [(m.training, sorted(vars(m))) for m in model.modules()],
        [
            {key: dict(value) for key, value in vars(m).items() if "hooks" in key}
            for m in model.modules()
        ],
    ]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_right_and_nothing_changed(case, mode):
    size, parameters = CASES[case]
    model = case()
    first = next(model.parameters()).requires_grad_(False)
    before = everything(model)
    found = summarize(model, size, mode=mode)
    assert found.total_params == parameters
    assert found.trainable_params == parameters - first.numel()
    assert found.total_param_bytes == 4 * parameters
    assert everything(model) == before
    text = str(found)
    assert f"Total params: {parameters:,}\n" in text
    assert f"Trainable params: {parameters - first.numel():,}\n" in text
    assert f"Non-trainable params: {first.numel():,}\n" in text


@pytest.mark.upstream
@pytest.mark.parametrize("case", [Tied, TwoParents])
def test_torchinfo_alone_counts_too_much(case):
    size, parameters = CASES[case]
    found = torchinfo.summary(case(), (1, *size), verbose=0)
    assert found.total_params > parameters, "mended: summarize can become simpler"


@pytest.mark.upstream
def test_torchinfo_alone_ignores_the_tokens():
    found = torchinfo.summary(nn.Linear(8, 8, bias=False), (1, 7, 8), verbose=0)
    assert found.total_mult_adds == 8 * 8, "mended: summarize can become simpler"


def test_mult_adds_by_hand():
    assert summarize(nn.Linear(10, 20), (10,)).total_mult_adds == 200
    assert summarize(nn.Linear(10, 20), (7, 10)).total_mult_adds == 7 * 200
    assert summarize(nn.Conv2d(3, 8, 3, padding=1), (3, 16, 16)).total_mult_adds == (
        8 * 16 * 16 * 3 * 9
    )
    assert summarize(Twice(), (11,)).total_mult_adds == 2 * 121
    tokens, width = 7, 32
    projections, products = 4 * tokens * width**2, 2 * tokens**2 * width
    assert summarize(Attention(), (7, 32)).total_mult_adds == (
        projections + products + tokens * width * 2
    )


def test_integers_two_inputs_and_arguments_of_the_model():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.image = nn.Embedding(10, 4), nn.Linear(6, 4)

        def forward(self, words, image, factor):
            return (self.words(words).mean(1) + self.image(image)) * factor

    dtypes = [torch.long, torch.float32]
    found = summarize(Both(), [(3,), (6,)], dtypes=dtypes, factor=torch.ones(4))
    assert found.total_params == 40 + 28
    assert found.input_size == [torch.Size([1, 3]), torch.Size([1, 6])]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    found = summarize(SmallCNN().to(dtype), (3, 32, 32))
    assert found.total_param_bytes == 34_058 * dtype.itemsize


def test_no_parameters_at_all():
    found = summarize(nn.Sequential(nn.ReLU(), nn.Flatten()), (3, 4))
    assert (found.total_params, found.trainable_params) == (0, 0)


@pytest.mark.parametrize("device_ids", [[], [0]])
def test_data_parallel(device_ids):
    model = nn.DataParallel(SmallCNN())
    model.device_ids = device_ids  # [0]: as on a machine with one GPU
    assert summarize(model, (3, 32, 32)).total_params == 34_058
    assert model.device_ids == device_ids


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu():
    for model in (SmallCNN().cuda(), nn.DataParallel(SmallCNN().cuda())):
        state = torch.cuda.get_rng_state()
        assert summarize(model, (3, 32, 32)).total_params == 34_058
        assert all(p.is_cuda for p in model.parameters())
        assert torch.equal(torch.cuda.get_rng_state(), state)


def test_torchinfos_options_pass_through():
    model = SmallCNN()
    assert "Conv2d" in str(summarize(model, (3, 32, 32)))
    assert "Conv2d" not in str(summarize(model, (3, 32, 32), depth=1))
    columns = ("input_size", "trainable")
    wide = summarize(model, (3, 32, 32), col_names=columns, row_settings=["var_names"])
    for wanted in ("Input Shape", "Trainable", "[1, 3, 32, 32]", "(layer1)"):
        assert wanted in str(wide)


def test_nothing_is_printed(capsys):
    summarize(Tied(), (16,))
    assert capsys.readouterr().out == ""


# ---- what must not happen


def test_your_hooks_are_neither_called_nor_copied():
    class Hook:
        calls = 0

        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        def __call__(self, *args):
            self.calls += 1

    model, hook = SmallCNN(), Hook()
    for module in (model, model.layer1, model.head):
        module.register_forward_hook(hook, always_call=True)
        module.register_forward_pre_hook(hook)
    before = everything(model)
    assert summarize(model, (3, 32, 32)).total_params == 34_058
    assert (hook.calls, everything(model)) == (0, before)
    model(torch.rand(2, 3, 32, 32))
    assert hook.calls == 6, "on the model itself they still work"


def test_random_numbers_drawn_in_forward_leave_no_trace():
    class Noisy(nn.Linear):
        def forward(self, x):
            random.random(), np.random.rand(), torch.rand(3, device="cpu")
            return super().forward(x + torch.rand(4)) + torch.rand_like(x)

    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    def seed():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    model = Noisy(4, 4)
    seed()
    expected = draw()
    seed()
    summarize(model, (4,))
    assert draw() == expected
    seed()
    with pytest.raises(RuntimeError):
        summarize(model, (5,))
    assert draw() == expected


def test_an_input_that_does_not_fit():
    model = SmallCNN().train()
    model.layer1[1].eval()
    before = everything(model)
    unfit = nn.Sequential(model, nn.Linear(3, 1))
    with pytest.raises(RuntimeError, match=r"Executed layers up to.*Conv2d") as caught:
        summarize(unfit, (3, 32, 32))
    assert caught.value.__cause__ is not None
    assert everything(model) == before
    assert torch.empty(1).device.type == "cpu"
    assert torch.is_grad_enabled()
    assert not torch.nn.modules.module._global_forward_hooks
    assert summarize(model, (3, 32, 32)).total_params == 34_058, "and again it works"


def test_lazy_layers():
    model = nn.Sequential(nn.LazyBatchNorm2d())
    for call in (meta_clone, lambda m: summarize(m, (3, 4, 4))):
        with pytest.raises(ValueError, match=r"uninitialized parameter.*LazyModule"):
            call(model)
    model(torch.rand(2, 3, 4, 4))
    assert summarize(model, (3, 4, 4)).total_params == 6


@pytest.mark.parametrize(
    "size",
    [3, None, "3, 224", [3, 224, 224], (3, -1), (3, 2.0), ((3, 4), (5,))],
    ids=str,
)
def test_a_bad_input_size(size):
    with pytest.raises(ValueError, match=r"a tuple such as \(3, 224, 224\).*not "):
        summarize(SmallCNN(), size)


def test_good_input_sizes():
    image = torch.rand(1, 3, 32, 32)
    for size in ((3, 32, 32), [(3, 32, 32)], image[0].shape):
        assert summarize(SmallCNN(), size).total_params == 34_058
    assert summarize(nn.Embedding(3, 2), (), dtypes=[torch.long]).total_params == 6


def test_other_bad_input():
    with pytest.raises(ValueError, match="one dtype for each of the 1 inputs"):
        summarize(nn.Embedding(3, 2), (4,), dtypes=[torch.long] * 2)
    with pytest.raises(ValueError, match="nonsense"):
        summarize(SmallCNN(), (3, 32, 32), col_names=["nonsense"])
    with pytest.raises(TypeError, match="device"):
        summarize(SmallCNN(), (3, 32, 32), device="cpu")


# ---- meta_clone


@pytest.mark.parametrize("case", CASES)
def test_a_clone_is_the_model_without_its_values(case):
    def seen(model):
        tensors = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        return [
            (name, type(t), t.shape, t.dtype, t.requires_grad, t.stride())
            for name, t in tensors
        ]

    model = case()
    next(model.parameters()).requires_grad_(False)
    next(model.children(), model).eval()
    before = everything(model)
    clone = meta_clone(model)
    assert everything(model) == before
    assert type(clone) is type(model)
    assert all(t.is_meta for t in [*clone.parameters(), *clone.buffers()])
    assert seen(clone) == seen(model)
    assert [m.training for m in clone.modules()] == [
        m.training for m in model.modules()
    ]
    assert list(clone.state_dict()) == list(model.state_dict())


def test_plain_tensors_move_too():
    clone = meta_clone(PlainTensors())
    assert all(t.is_meta for t in [clone.mean, *clone.scales, clone.anchors["p3"][0]])


def test_ties_are_kept():
    tied, parents = meta_clone(Tied()), meta_clone(TwoParents())
    assert tied.a.weight is tied.b.weight
    assert parents.a[0] is parents.b[0]


def test_a_clone_shares_nothing():
    model = SmallCNN()
    clone = meta_clone(model)
    assert clone(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    clone.head = nn.Linear(1, 1)
    del clone.layer1
    assert model.head.weight.shape == (10, 1024)
    assert hasattr(model, "layer1")


def test_a_clone_takes_no_memory():
    """The model has 400 MB; its clone and its summary allocate no such thing."""
    model = nn.Sequential(nn.Linear(10_000, 10_000, bias=False))
    model[0].weight.grad = torch.zeros(10_000, 10_000)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU],
        profile_memory=True,
        acc_events=True,
    ) as profile:
        meta_clone(model)
        summarize(model, (10_000,))
    taken = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert taken < 1_000_000
