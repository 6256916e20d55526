"""What fits is loaded, on any device and wrapping; what doesn't changes nothing."""

import gc
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.nn  # before there is a group: DDP imports it
from checkpoint_support import Run, everything, fingerprint, small_model
from torch import nn, optim
from torch.optim import lr_scheduler

from helpers.checkpoint import (
    CheckpointError,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    run = Run().train(2)
    folder = tmp_path_factory.mktemp("saved")
    return run, save_checkpoint(folder, epoch=2, **run.parts(), loss=0.5)


def refused(file: Path, match: str, run: Run | None = None, **other: Any) -> None:
    """The load raises, and nothing whatever has changed."""
    run = run or Run(seed=9)
    given = {**run.parts(), **other}
    parts = {key: part for key, part in given.items() if key != "generator"}
    before = run.state(), everything(**parts)
    with pytest.raises(CheckpointError, match=match) as error:
        load_checkpoint(file, **given)
    assert "nothing was changed" in str(error.value)
    assert error.value.__cause__ is not None
    assert (run.state(), everything(**parts)) == before


def test_a_load_returns_what_was_given_and_restores_all(
    saved: tuple[Run, Path],
) -> None:
    run, file = saved
    other, content = Run(seed=9), read_checkpoint(file)
    found = load_checkpoint(str(file.parent), **other.parts())
    assert found == {"epoch": 2, "loss": 0.5, "acc": None, "extra": {}}
    parts, generator = other.state()
    assert generator == fingerprint(run.generator.get_state())
    assert torch.equal(torch.get_rng_state(), content["torch_random_state"])
    load_checkpoint(file, **run.parts())
    assert run.state() == (parts, generator)


def test_a_model_alone_is_loaded_alone(saved: tuple[Run, Path]) -> None:
    run, file = saved
    other = Run(seed=9)
    before = everything(optimizer=other.optimizer, scheduler=other.scheduler)
    assert load_checkpoint(file, model=other.model)["epoch"] == 2
    assert everything(optimizer=other.optimizer, scheduler=other.scheduler) == before
    expected = fingerprint(run.model.state_dict())
    assert fingerprint(other.model.state_dict()) == expected


def test_what_was_loaded_does_not_depend_on_the_file(
    saved: tuple[Run, Path], tmp_path: Path
) -> None:
    """Nothing is mapped: the file may be overwritten in place afterwards."""
    copy = tmp_path / "copy.pt"
    copy.write_bytes(saved[1].read_bytes())
    other = Run(seed=9)
    load_checkpoint(copy, **other.parts())
    before = other.state(), fingerprint(content := read_checkpoint(copy))
    copy.write_bytes(bytes(copy.stat().st_size))
    assert (other.state(), fingerprint(content)) == before


# --- devices and wrappings


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: no wrong device")
def test_saved_on_cuda_loaded_on_cpu(saved: tuple[Run, Path], tmp_path: Path) -> None:
    """The location tags in the file are those of cuda:0, made without a GPU."""
    registry = torch.serialization._package_registry
    before, file = list(registry), tmp_path / "cuda.pt"
    torch.serialization.register_package(-1, lambda storage: "cuda:0", lambda *_: None)
    try:
        torch.save(read_checkpoint(saved[1]), file)
    finally:
        registry[:] = before
    with pytest.raises(RuntimeError, match=r"CUDA|cuda"):
        torch.load(file, weights_only=True)
    other = Run(seed=9)
    load_checkpoint(file, **other.parts())
    expected = fingerprint(saved[0].model.state_dict())
    assert fingerprint(other.model.state_dict()) == expected


def test_cuda_random_states_are_put_back_on_as_many_devices_as_there_are(
    saved: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved with two GPUs, loaded where there is one, or none."""
    states = [torch.arange(16, dtype=torch.uint8) + i for i in range(2)]
    content = {**read_checkpoint(saved[1]), "cuda_random_states": states}
    torch.save(content, tmp_path / "cuda.pt")
    for devices in (2, 1, 0):
        put_back: dict[int, torch.Tensor] = {}
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=devices: n)
        monkeypatch.setattr(
            torch.cuda.random,
            "set_rng_state",
            lambda state, device, there=put_back: there.update({device: state}),
        )
        load_checkpoint(tmp_path / "cuda.pt", **Run().parts())
        assert fingerprint(put_back) == fingerprint(dict(enumerate(states[:devices])))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    gc.collect()
    torch.distributed.destroy_process_group()


WRAPS: dict[str, Callable[[nn.Module], Any]] = {
    "plain": lambda model: model,
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "DDP": nn.parallel.DistributedDataParallel,
    "compiled DDP": lambda m: torch.compile(nn.parallel.DistributedDataParallel(m)),
}


@pytest.mark.parametrize("source", WRAPS)
def test_every_wrapping_loads_into_every_other(
    tmp_path: Path, source: str, process_group: None
) -> None:
    torch.manual_seed(0)
    model = small_model()
    wrapped = WRAPS[source](model)
    optimizer = optim.Adam(wrapped.parameters())
    file = save_checkpoint(tmp_path, epoch=1, model=wrapped, optimizer=optimizer)
    assert [*read_checkpoint(file)["model_state_dict"]] == [*model.state_dict()]
    for target in WRAPS.values():
        torch.manual_seed(1)
        other = small_model()
        wrapped_other = target(other)
        other_optimizer = optim.Adam(wrapped_other.parameters())
        load_checkpoint(file, model=wrapped_other, optimizer=other_optimizer)
        assert fingerprint(other.state_dict()) == fingerprint(model.state_dict())


# --- models that do not fit


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "other head": (lambda: small_model(classes=5), r"size mismatch for 3\.weight"),
    "fewer layers": (lambda: small_model()[:3], r"Unexpected key.*3\.weight"),
    "more layers": (
        lambda: small_model().append(nn.Linear(3, 3)),
        r"Missing key.*4\.weight",
    ),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("alone", [False, True], ids=["", "alone"])
def test_a_model_that_does_not_fit(
    saved: tuple[Run, Path], kind: str, alone: bool
) -> None:
    """PyTorch's own load_state_dict raises after it has loaded the layers that fit."""
    build, match = MODELS[kind]
    run, run.model = Run(seed=9), build()
    if alone:
        run.optimizer = run.scheduler = run.generator = None
        refused(saved[1], match, run)
    else:
        run.optimizer = optim.SGD(run.model.parameters(), lr=0.1, momentum=0.9)
        refused(saved[1], f"{match}|parameters: .* in the file", run)


# --- parts that are missing, and parts that fail halfway


@pytest.mark.parametrize("part", ["optimizer", "scheduler", "generator"])
def test_a_part_saved_but_not_passed_or_passed_but_not_saved(
    saved: tuple[Run, Path], tmp_path: Path, part: str
) -> None:
    refused(saved[1], "kinds: .*NoneType.* here", **{part: None})
    run = Run()
    file = save_checkpoint(tmp_path, epoch=1, **{**run.parts(), part: None})
    refused(file, "kinds: .*NoneType.* in the file")


def test_an_optimizer_of_another_model(saved: tuple[Run, Path]) -> None:
    other = optim.SGD(small_model().parameters(), lr=0.1, momentum=0.9)
    refused(saved[1], "parameters: ", optimizer=other)


class Failing:
    """Loads as it should, and then raises: what PyTorch's own classes do at times."""

    error: type[BaseException] = IndexError

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        raise self.error("halfway")


class FailingSGD(Failing, optim.SGD): ...


class FailingStepLR(Failing, lr_scheduler.StepLR): ...


class FailingLayer(nn.Linear):
    def get_extra_state(self) -> dict:
        return {"version": 1}

    def set_extra_state(self, state: dict) -> None:
        raise IndexError("halfway")


FAILING: dict[str, Callable[[int], Run]] = {
    "optimizer": lambda seed: Run(seed, lambda p: FailingSGD(p, lr=0.1, momentum=0.9)),
    "scheduler": lambda seed: Run(seed, scheduler=lambda o: FailingStepLR(o, 1)),
}


@pytest.mark.parametrize("part", FAILING)
def test_a_part_that_fails_halfway(tmp_path: Path, part: str) -> None:
    file = save_checkpoint(tmp_path, epoch=1, **FAILING[part](0).train(2).parts())
    refused(file, "halfway", FAILING[part](9))
    refused(file, "halfway", FAILING[part](9).train(1))


def test_a_layer_that_fails_after_others_were_loaded(tmp_path: Path) -> None:
    models = [nn.Sequential(nn.Linear(4, 4), FailingLayer(4, 4)) for _ in range(2)]
    file = save_checkpoint(tmp_path, epoch=1, model=models[0])
    before = everything(model=models[1])
    with pytest.raises(CheckpointError, match="halfway"):
        load_checkpoint(file, model=models[1])
    assert everything(model=models[1]) == before


def test_ctrl_c_in_the_middle_of_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "error", KeyboardInterrupt)
    file = save_checkpoint(tmp_path, epoch=1, **FAILING["scheduler"](0).parts())
    run = FAILING["scheduler"](9)
    before = run.state()
    with pytest.raises(KeyboardInterrupt):
        load_checkpoint(file, **run.parts())
    assert run.state() == before


@pytest.mark.parametrize(
    "part", ["python", "numpy", "torch", "generator"], ids=lambda part: f"{part} state"
)
def test_a_random_state_that_can_not_be_restored(
    saved: tuple[Run, Path], tmp_path: Path, part: str
) -> None:
    """The last thing that is loaded fails, and all before it is taken back."""
    content = read_checkpoint(saved[1])
    key = "generator_state" if part == "generator" else f"{part}_random_state"
    torch.save({**content, key: torch.zeros(7)}, tmp_path / "broken.pt")
    refused(tmp_path / "broken.pt", "broken.pt does not fit")


# --- every optimizer and every scheduler of torch.optim


def classes(module: Any, base: type) -> list[type]:
    found = [c for c in vars(module).values() if inspect.isclass(c)]
    found = [c for c in found if issubclass(c, base) and not c.__name__.startswith("_")]
    return [c for c in found if c is not base]


OPTIMIZERS = classes(optim, optim.Optimizer)


class Embeddings(nn.Module):
    """Two matrices, which all optimizers take, with gradients sparse or not."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.a, self.b = (nn.Embedding(5, 3, sparse=sparse) for _ in "ab")

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return (self.a(index) * self.b(index)).square().mean()


def build(kind: type, seed: int, change: Callable = list) -> tuple[nn.Module, Any]:
    torch.manual_seed(seed)
    model = Embeddings(sparse=kind is optim.SparseAdam)
    return model, kind(change(model.parameters()), lr=0.01)


def steps(model: nn.Module, optimizer: optim.Optimizer, count: int) -> list[float]:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(index)
        loss.backward()
        return loss

    losses = []
    for _ in range(count):
        index = torch.randint(5, (4,))
        losses.append(optimizer.step(closure).item())
    return losses


CHANGES: dict[str, Callable] = {
    "another order": lambda parameters: [*parameters][::-1],
    "one less": lambda parameters: [*parameters][:1],
    "two groups": lambda parameters: [{"params": [p]} for p in parameters],
}


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_every_optimizer_is_resumed_exactly_and_refused_into_any_other(
    tmp_path: Path, kind: type
) -> None:
    model, optimizer = build(kind, 0)
    steps(model, optimizer, 3)
    file = save_checkpoint(tmp_path, epoch=1, model=model, optimizer=optimizer)
    expected = steps(model, optimizer, 3), everything(model=model, optimizer=optimizer)
    other, other_optimizer = build(kind, 1)
    steps(other, other_optimizer, 1)
    load_checkpoint(file, model=other, optimizer=other_optimizer)
    found = steps(other, other_optimizer, 3)
    assert (found, everything(model=other, optimizer=other_optimizer)) == expected

    wrong = [build(another, 1) for another in OPTIMIZERS if another is not kind]
    changes = [*CHANGES.values()][: 2 if kind is optim.LBFGS else 3]  # has one group
    wrong += [build(kind, 1, change) for change in changes]
    for other, other_optimizer in wrong:
        steps(other, other_optimizer, 1)
        before = everything(model=other, optimizer=other_optimizer)
        with pytest.raises(CheckpointError, match="nothing was changed"):
            load_checkpoint(file, model=other, optimizer=other_optimizer)
        assert everything(model=other, optimizer=other_optimizer) == before


class Halving:
    """A function with a state, which LambdaLR saves."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, epoch: int) -> float:
        self.calls += 1
        return 0.5**self.calls


def sequential(optimizer: optim.Optimizer, count: int) -> Any:
    parts = [lr_scheduler.ExponentialLR(optimizer, 0.9) for _ in range(count)]
    milestones = [2, 4][: count - 1]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones)


def chained(optimizer: optim.Optimizer, count: int) -> Any:
    parts = [lr_scheduler.ExponentialLR(optimizer, 0.9) for _ in range(count)]
    return lr_scheduler.ChainedScheduler(parts, optimizer)


SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, Halving()),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4, 6]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=7),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: sequential(o, 3),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "ChainedScheduler": lambda o: chained(o, 3),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(
        o, 3
    ),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "SWALR": lambda o: optim.swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=5),
}
FEWER = {"SequentialLR": sequential, "ChainedScheduler": chained}


def test_no_scheduler_is_forgotten() -> None:
    found = classes(lr_scheduler, lr_scheduler.LRScheduler)
    assert {c.__name__ for c in found} | {"SWALR"} == {*SCHEDULERS}


def scheduled(build: Callable, groups: int = 1) -> dict[str, Any]:
    model = nn.Linear(3, 3)
    parameters = [*model.parameters()]
    if groups == 2:
        parameters = [{"params": [parameter]} for parameter in parameters]
    optimizer = optim.SGD(parameters, lr=0.1, momentum=0.9)
    return {"model": model, "optimizer": optimizer, "scheduler": build(optimizer)}


def walk(parts: dict[str, Any], epochs: int) -> list[float]:
    """The learning rates of so many epochs."""
    plateau = isinstance(parts["scheduler"], lr_scheduler.ReduceLROnPlateau)
    rates = []
    for _ in range(epochs):
        parts["optimizer"].step()
        parts["scheduler"].step(*[1.0] * plateau)
        rates.append(parts["optimizer"].param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:.*epoch parameter:UserWarning")
def test_every_scheduler_is_resumed_exactly_and_refused_into_any_other(
    tmp_path: Path, kind: str
) -> None:
    parts = scheduled(SCHEDULERS[kind])
    walk(parts, 3)
    file = save_checkpoint(tmp_path, epoch=1, **parts)
    expected = walk(parts, 6), everything(**parts)
    assert len(set(expected[0])) > 1, "the rate does not change: nothing is shown"
    other = scheduled(SCHEDULERS[kind])
    walk(other, 1)
    load_checkpoint(file, **other)
    assert (walk(other, 6), everything(**other)) == expected

    wrong = [
        scheduled(SCHEDULERS[another]) for another in SCHEDULERS if another != kind
    ]
    wrong.append(scheduled(SCHEDULERS[kind], groups=2))
    if fewer := FEWER.get(kind):
        wrong.append(scheduled(lambda optimizer: fewer(optimizer, 2)))
    for other in wrong:
        walk(other, 1)
        before = everything(**other)
        with pytest.raises(CheckpointError, match="nothing was changed"):
            load_checkpoint(file, **other)
        assert everything(**other) == before


def test_a_sequential_scheduler_of_three_into_one_of_two(tmp_path: Path) -> None:
    """PyTorch raises an IndexError, after it has loaded two of the three."""
    parts = scheduled(lambda optimizer: sequential(optimizer, 3))
    file = save_checkpoint(tmp_path, epoch=1, **parts)
    other = scheduled(lambda optimizer: sequential(optimizer, 2))
    before = everything(**other)
    with pytest.raises(CheckpointError, match=r"kinds: .*SequentialLR"):
        load_checkpoint(file, **other)
    assert everything(**other) == before
    with pytest.raises(IndexError):
        other["scheduler"].load_state_dict(parts["scheduler"].state_dict())


def test_a_scheduler_with_others_inside_it(tmp_path: Path) -> None:
    """As many, and of another kind: PyTorch loads them without a word."""

    def inside(kind: type) -> Callable:
        return lambda o: lr_scheduler.ChainedScheduler([kind(o, 0.5)], o)

    parts = scheduled(inside(lr_scheduler.ExponentialLR))
    file = save_checkpoint(tmp_path, epoch=1, **parts)
    other = scheduled(inside(lr_scheduler.ConstantLR))
    with pytest.raises(CheckpointError, match=r"kinds: .*ExponentialLR.*ConstantLR"):
        load_checkpoint(file, **other)
