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


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.image = nn.Embedding(10, 4), nn.Linear(6, 4)

    def forward(self, words, image):
        return self.words(words).mean(1) + self.image(image)


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


def old_spectral_norm():
    return nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())


def new_weight_norm():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)))


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
    old_spectral_norm: ((3, 8, 8), 4 * 27 + 4),
    new_weight_norm: ((4,), 24 + 6 + 6),
    new_spectral_norm: ((4,), 30),
    SmallCNN: ((3, 32, 32), 34_058),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


def everything(model: nn.Module) -> list:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        [
            (name, id(t), t._version, t.requires_grad, str(t.device))
            for name, t in tensors
        ],
        [(value.clone(), value) for value in model.state_dict().values()],
        [(m.training, sorted(vars(m))) for m in model.modules()],
        [
            {key: dict(value) for key, value in vars(m).items() if "hooks" in key}
            for m in model.modules()
        ],
    ]


def assert_unchanged(model: nn.Module, before: list) -> None:
    after = everything(model)
    assert [after[i] for i in (0, 2, 3)] == [before[i] for i in (0, 2, 3)]
    assert all(torch.equal(copy, live) for copy, live in before[1])


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
    assert_unchanged(model, before)
    text = str(found)
    assert f"Total params: {parameters:,}\n" in text
    assert f"Trainable params: {parameters - first.numel():,}\n" in text
    assert f"Non-trainable params: {first.numel():,}\n" in text


def test_the_model_runs_as_before():
    for case, (size, _) in CASES.items():
        model, x = case().eval(), torch.rand(2, *size)
        before = model(x)
        summarize(model, size)
        after = model(x)
        if case is TupleOutput:
            before, after = before[1]["b"], after[1]["b"]
        assert torch.equal(before, after), case


@pytest.mark.upstream
def test_torchinfo_alone_errs_where_summarize_does_not():
    """Were torchinfo mended one day, this says that summarize may become simpler."""
    totals = [
        torchinfo.summary(case(), (1, *CASES[case][0]), verbose=0).total_params
        for case in (Tied, TwoParents)
    ]
    assert totals != [CASES[Tied][1], CASES[TwoParents][1]]


def test_mult_adds_by_hand():
    assert summarize(nn.Linear(10, 20), (10,)).total_mult_adds == 200
    assert summarize(nn.Conv2d(3, 8, 3, padding=1), (3, 16, 16)).total_mult_adds == (
        8 * 16 * 16 * 3 * 9
    )
    assert summarize(Twice(), (11,)).total_mult_adds == 2 * 121
    tokens, width = 7, 32
    projections, products = 4 * tokens * width**2, 2 * tokens**2 * width
    assert summarize(Attention(), (7, 32)).total_mult_adds == (
        projections + products + tokens * width * 2
    )


def test_vgg19_size_and_rows():
    from torchvision.models import vgg19

    with torch.device("meta"):
        model = vgg19(weights=None)
    found = summarize(model, (3, 224, 224))
    assert found.total_params == 143_667_240
    assert found.summary_list[-1].output_size == [1, 1000]


def test_embeddings_need_integers():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(20, 2))
    found = summarize(model, (5,), dtypes=[torch.long])
    assert found.total_params == 40 + 42


def test_two_inputs():
    found = summarize(TwoInputs(), [(3,), (6,)], dtypes=[torch.long, torch.float32])
    assert found.total_params == 40 + 28
    assert found.input_size == [torch.Size([1, 3]), torch.Size([1, 6])]


def test_arguments_of_the_model_itself():
    class Scaled(nn.Linear):
        def forward(self, x, factor, bias_too=False):
            return super().forward(x) * factor + bias_too

    found = summarize(Scaled(4, 2), (4,), factor=torch.ones(2), bias_too=True)
    assert found.total_params == 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    found = summarize(SmallCNN().to(dtype), (3, 32, 32))
    assert found.total_params == 34_058
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


# ---- what must not happen


def test_your_hooks_are_not_called():
    model, calls = SmallCNN(), []

    def note(*args):
        calls.append(len(args))

    def note_with_kwargs(*args, **kwargs):
        calls.append(len(args))

    for module in (model, model.layer1, model.head):
        module.register_forward_hook(note)
        module.register_forward_hook(note_with_kwargs, with_kwargs=True)
        module.register_forward_hook(note, always_call=True)
        module.register_forward_pre_hook(note)
        module.register_full_backward_hook(note)
    before = everything(model)
    assert summarize(model, (3, 32, 32)).total_params == 34_058
    assert calls == []
    assert_unchanged(model, before)
    model(torch.rand(2, 3, 32, 32))
    assert calls, "on the model itself they still work"


def test_what_a_hook_belongs_to_is_not_copied():
    class Recorder:
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        def __call__(self, *args):
            pass

    model = SmallCNN()
    model.head.register_forward_hook(Recorder())
    model.head.register_forward_pre_hook(Recorder())
    assert summarize(model, (3, 32, 32)).total_params == 34_058


def test_random_numbers_drawn_in_forward_leave_no_trace():
    class Noisy(nn.Linear):
        def forward(self, x):
            random.random(), np.random.rand(), torch.rand(3, device="cpu")
            return super().forward(x + torch.rand(4)) + torch.rand_like(x)

    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    model = Noisy(4, 4)
    for size in ((4,), (5,)):  # one that runs, and one that fails
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        expected = draw()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        if size == (4,):
            summarize(model, size)
        else:
            with pytest.raises(RuntimeError):
                summarize(model, size)
        assert draw() == expected


def test_an_input_that_does_not_fit():
    model = SmallCNN().train()
    model.layer1[1].eval()
    before = everything(model)
    with pytest.raises(RuntimeError, match="Conv2d") as caught:
        summarize(Unfit(model), (3, 32, 32))
    assert "Executed layers up to" in str(caught.value)
    assert caught.value.__cause__ is not None
    assert_unchanged(model, before)
    assert summarize(model, (3, 32, 32)).total_params == 34_058, "and again it works"


class Unfit(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.head = model, nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.model(x))


def test_global_state_after_an_error():
    with pytest.raises(RuntimeError):
        summarize(nn.Linear(3, 1), (4,))
    assert torch.empty(1).device.type == "cpu"
    assert torch.is_grad_enabled()
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize(
    "lazy", [lambda: nn.LazyLinear(3), lambda: nn.Sequential(nn.LazyBatchNorm2d())]
)
def test_lazy_layers(lazy):
    model = lazy()
    for call in (meta_clone, lambda m: summarize(m, (3, 4, 4))):
        with pytest.raises(ValueError, match="run one batch through it first"):
            call(model)
    model(torch.rand(2, 3, 4, 4))
    assert summarize(model, (3, 4, 4)).total_params > 0


@pytest.mark.parametrize(
    "size",
    [
        *(3, -1, None, "3, 224, 224", 3.5, [], [3, 224, 224], [[3, 224, 224]]),
        *((3, -1), (3, 0), (3, 2.0), ("3",), ((3, 4), (5,)), [(3, 4), 5], {}, {(3,)}),
        torch.rand(3),
    ],
)
def test_a_bad_input_size(size):
    model = SmallCNN()
    before = everything(model)
    with pytest.raises(ValueError, match=r"a tuple such as \(3, 224, 224\).*not "):
        summarize(model, size)
    assert_unchanged(model, before)


def test_good_input_sizes():
    image = torch.rand(1, 3, 32, 32)
    for size in ((3, 32, 32), [(3, 32, 32)], image[0].shape, image.shape[1:]):
        assert summarize(SmallCNN(), size).total_params == 34_058
    assert summarize(nn.Embedding(3, 2), (), dtypes=[torch.long]).total_params == 6


@pytest.mark.parametrize(
    "dtypes", [[torch.long, torch.long], torch.long, (torch.long,) * 3, "long"]
)
def test_dtypes_that_are_not_one_for_each_input(dtypes):
    with pytest.raises(ValueError, match="one for each input"):
        summarize(nn.Embedding(3, 2), (4,), dtypes=dtypes)


@pytest.mark.parametrize(
    "option",
    [
        {"input_data": torch.rand(1, 3, 32, 32)},
        {"device": "cpu"},
        {"batch_dim": 0},
        {"cache_forward_pass": True},
    ],
)
def test_options_that_summarize_sets_itself(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"summarize sets {name} itself"):
        summarize(SmallCNN(), (3, 32, 32), **option)


# ---- torchinfo's own options


def test_torchinfo_options_pass_through():
    model = SmallCNN()
    shallow = str(summarize(model, (3, 32, 32), depth=1))
    assert "Conv2d" in str(summarize(model, (3, 32, 32)))
    assert "Conv2d" not in shallow
    names = ("input_size", "kernel_size", "mult_adds", "trainable", "params_percent")
    wide = str(
        summarize(
            model,
            (3, 32, 32),
            col_names=names,
            row_settings=["var_names"],
            col_width=20,
        )
    )
    for wanted in ("Input Shape", "Kernel Shape", "[1, 3, 32, 32]", "(layer1)"):
        assert wanted in wide
    with pytest.raises(ValueError, match="nonsense"):
        summarize(model, (3, 32, 32), col_names=["nonsense"])


def test_mode_passes_through():
    seen = []

    class Probe(nn.Linear):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)

    model = Probe(2, 2).eval()
    summarize(model, (2,), mode="train")
    summarize(model, (2,), mode="eval")
    summarize(model, (2,))
    assert seen == [True, False, False]
    assert not model.training


def test_nothing_is_printed_unless_asked(capsys):
    summarize(Tied(), (16,))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("verbose", [1, 2])
def test_what_is_printed_has_the_right_totals(capsys, verbose):
    found = summarize(Tied(), (16,), verbose=verbose)
    printed = capsys.readouterr().out
    assert printed == f"{found}\n"
    assert "Total params: 256\n" in printed
    assert ("weight" in printed) == (verbose == 2), "2 lists the tensors of each layer"


def test_a_bad_verbose():
    with pytest.raises(ValueError, match="verbose is 0, 1 or 2"):
        summarize(SmallCNN(), (3, 32, 32), verbose=3)


# ---- meta_clone


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    plain = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor)
    ]
    return [*model.parameters(), *model.buffers(), *plain]


@pytest.mark.parametrize("case", CASES)
def test_a_clone_is_the_model_without_its_values(case):
    model = case()
    next(model.parameters()).requires_grad_(False)
    before = everything(model)
    clone = meta_clone(model)
    assert type(clone) is type(model)
    assert all(t.device.type == "meta" for t in tensors_of(clone))
    assert_unchanged(model, before)

    def seen(model):
        return [
            (name, type(t), t.shape, t.dtype, t.requires_grad, t.stride())
            for name, t in [
                *model.named_parameters(remove_duplicate=False),
                *model.named_buffers(remove_duplicate=False),
            ]
        ]

    assert seen(clone) == seen(model)
    assert [m.training for m in clone.modules()] == [
        m.training for m in model.modules()
    ]
    assert list(clone.state_dict()) == list(model.state_dict())


def test_plain_tensors_move_too():
    clone = meta_clone(PlainTensors())
    found = [clone.mean, *clone.scales, clone.anchors["p3"][0]]
    assert {t.device.type for t in found} == {"meta"}


def test_ties_and_modes_are_kept():
    tied, parents = meta_clone(Tied()), meta_clone(TwoParents())
    assert tied.a.weight is tied.b.weight
    assert parents.a[0] is parents.b[0]
    model = SmallCNN()
    model.layer1[1].eval()
    clone = meta_clone(model)
    assert (clone.training, clone.layer1[1].training) == (True, False)
    clone.eval()
    assert model.training


def test_a_clone_runs_and_shares_nothing():
    model = SmallCNN()
    clone = meta_clone(model)
    out = clone(torch.empty(2, 3, 32, 32, device="meta"))
    assert out.shape == (2, 10)
    assert out.device.type == "meta"
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
