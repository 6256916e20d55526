"""What fits is loaded, on any device and wrapping; what doesn't changes nothing."""

import contextlib
import gc
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.nn  # before there is a group, as in helpers.processes
from checkpoint_support import Training, adam, fingerprint, sgd, small_model
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, StepLR

from helpers.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, Path]:
    training = Training().train(1, 2)
    folder = tmp_path_factory.mktemp("saved")
    return training, save_checkpoint(folder, epoch=2, **training.parts(), loss=0.5)


def refused(file: Path, training: Training, match: str, **parts: Any) -> None:
    """The load raises, and nothing whatever has changed."""
    given = {**training.parts(), **parts}
    before = training.state(), fingerprint(given["model"].state_dict())
    options = [p and fingerprint(p.state_dict()) for p in (given["optimizer"],)]
    with pytest.raises(CheckpointError, match=match) as error:
        load_checkpoint(file, **given)
    assert "nothing was changed" in str(error.value)
    assert (training.state(), fingerprint(given["model"].state_dict())) == before
    assert options == [p and fingerprint(p.state_dict()) for p in (given["optimizer"],)]


def test_load_returns_what_was_given_and_restores_all(
    saved: tuple[Training, Path],
) -> None:
    training, file = saved
    other = Training(seed=9)
    content = read_checkpoint(file)
    assert load_checkpoint(file.parent, **other.parts()) == {
        "epoch": 2,
        "loss": 0.5,
        "acc": None,
        "extra": {},
    }
    assert random.getstate() == content["python_random_state"]
    assert torch.equal(torch.get_rng_state(), content["torch_random_state"])
    for part in ("model", "optimizer", "scheduler"):
        a, b = (getattr(t, part).state_dict() for t in (training, other))
        assert fingerprint(a) == fingerprint(b)
    assert torch.equal(other.generator.get_state(), content["generator_state"])


def test_model_alone_loads_the_model_and_leaves_random_states(
    saved: tuple[Training, Path],
) -> None:
    other = Training(seed=9)
    before = other.state()
    load_checkpoint(saved[1], model=other.model)
    after = other.state()
    assert after.pop("model") == fingerprint(saved[0].model.state_dict())
    before.pop("model")
    assert after == before


def test_what_was_loaded_does_not_depend_on_the_file(
    saved: tuple[Training, Path], tmp_path: Path
) -> None:
    """Nothing is mapped: the file may be overwritten in place afterwards."""
    copy = tmp_path / "copy.pt"
    copy.write_bytes(saved[1].read_bytes())
    other = Training(seed=9)
    load_checkpoint(copy, **other.parts())
    content = read_checkpoint(copy)
    before = other.state(), fingerprint(content)
    copy.write_bytes(bytes(copy.stat().st_size))
    assert (other.state(), fingerprint(content)) == before


@contextlib.contextmanager
def tagged_cuda() -> Iterator[None]:
    """What torch.save writes in here says of each CPU storage that it was on cuda:0."""
    registry = torch.serialization._package_registry
    before = list(registry)
    torch.serialization.register_package(0, lambda storage: "cuda:0", lambda *_: None)
    try:
        yield
    finally:
        registry[:] = before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: no wrong device")
def test_case_33_saved_on_cuda_loaded_on_cpu(tmp_path: Path) -> None:
    """The location tags in the file are those of cuda:0, made without a GPU."""
    training = Training().train(1, 2)
    with tagged_cuda():
        file = save_checkpoint(tmp_path, epoch=2, **training.parts())
    with pytest.raises(RuntimeError, match=r"CUDA|cuda"):
        torch.load(file, weights_only=True)
    other = Training(seed=9)
    load_checkpoint(file, **other.parts())
    for part in ("model", "optimizer", "scheduler"):
        a, b = (getattr(t, part).state_dict() for t in (training, other))
        assert fingerprint(a) == fingerprint(b)
    parameters = other.model.parameters()
    assert {p.device.type for p in parameters} == {"cpu"}


def test_cuda_random_states_are_kept_and_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two devices at the save, one or none at the load, all played by stand-ins."""
    states = [torch.arange(16, dtype=torch.uint8) + i for i in range(2)]
    training = Training()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    file = save_checkpoint(tmp_path, epoch=1, **training.parts())
    for devices in (2, 1, 0):
        put_back: dict[int, torch.Tensor] = {}
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=devices: n)
        monkeypatch.setattr(
            torch.cuda,
            "set_rng_state",
            lambda state, device, there=put_back: there.update({device: state}),
        )
        load_checkpoint(file, **training.parts())
        assert fingerprint(put_back) == fingerprint(dict(enumerate(states[:devices])))


def test_cuda_is_not_started_by_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started() -> None:
        raise AssertionError("a save on the CPU has started CUDA")

    monkeypatch.setattr(torch.cuda, "get_rng_state_all", started)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    file = save_checkpoint(tmp_path, epoch=1, model=nn.Linear(2, 2))
    assert read_checkpoint(file)["cuda_random_states"] == []


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    gc.collect()  # as helpers.processes.run_group does
    torch.distributed.destroy_process_group()


WRAPS = {
    "plain": lambda model: model,
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "DDP": nn.parallel.DistributedDataParallel,
    "compiled DDP": lambda m: torch.compile(nn.parallel.DistributedDataParallel(m)),
}


@pytest.mark.parametrize("source", WRAPS)
def test_case_34_every_wrapping_loads_into_every_other(
    tmp_path: Path, source: str, process_group: None
) -> None:
    torch.manual_seed(0)
    model = small_model()
    wrapped = WRAPS[source](model)
    optimizer = adam(wrapped)
    file = save_checkpoint(tmp_path, epoch=1, model=wrapped, optimizer=optimizer)
    assert [*read_checkpoint(file)["model_state_dict"]] == [*model.state_dict()]
    for target in WRAPS.values():
        torch.manual_seed(1)
        other = small_model()
        wrapped_other = target(other)
        load_checkpoint(file, model=wrapped_other, optimizer=adam(wrapped_other))
        assert fingerprint(other.state_dict()) == fingerprint(model.state_dict())


def test_case_35_wrong_head_size(saved: tuple[Training, Path]) -> None:
    training = Training(seed=9)
    other = small_model(classes=5)
    match = r"4\.weight.*\(3, 8\) in the file.*\(5, 8\) here"
    refused(saved[1], training, match, model=other, optimizer=sgd(other))
    refused(
        saved[1], training, match, model=other, optimizer=None, scheduler=None,
        generator=None,
    )  # fmt: skip


@pytest.mark.parametrize("change", ["missing", "extra", "dtype"])
def test_case_36_missing_or_extra_key(
    saved: tuple[Training, Path], change: str
) -> None:
    training = Training(seed=9)
    other = small_model()
    if change == "missing":
        other.pop(4)
        match = r"4\.weight: .* in the file, nothing here"
    elif change == "extra":
        other.append(nn.Linear(3, 3))
        match = r"5\.weight: nothing in the file"
    else:
        other.double()  # the first layers would be loaded, and rounded
        match = r"0\.weight: torch.float32 .* torch.float64"
    refused(saved[1], training, match, model=other)
    refused(
        saved[1], training, match, model=other, optimizer=None, scheduler=None,
        generator=None,
    )  # fmt: skip


def test_a_model_on_meta_is_refused(saved: tuple[Training, Path]) -> None:
    """PyTorch's own load_state_dict does nothing there, and succeeds."""
    with torch.device("meta"):
        model = small_model()
    with pytest.raises(CheckpointError, match="on meta here"):
        load_checkpoint(saved[1], model=model)


def reordered(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([*model.parameters()][::-1], lr=0.1, momentum=0.9)


def same_shapes_reordered(model: nn.Module) -> torch.optim.Optimizer:
    parameters = [*model.parameters()]
    assert parameters[1].shape == parameters[2].shape
    parameters[1], parameters[2] = parameters[2], parameters[1]
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def fewer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([*model.parameters()][:-1], lr=0.1, momentum=0.9)


def grouped(model: nn.Module) -> torch.optim.Optimizer:
    groups = [
        {"params": layer.parameters()} for layer in model if [*layer.parameters()]
    ]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def of_another_model(model: nn.Module) -> torch.optim.Optimizer:
    return sgd(small_model())


@pytest.mark.parametrize(
    "build", [adam, reordered, same_shapes_reordered, fewer, grouped, of_another_model]
)
def test_case_37_another_optimizer(saved: tuple[Training, Path], build: Any) -> None:
    training = Training(seed=9)
    match = "optimizer kind" if build is adam else "optimizer group"
    refused(saved[1], training, match, optimizer=build(training.model))


def test_case_37_adamw_is_not_adam(tmp_path: Path) -> None:
    """Their states look the same."""
    model = small_model()
    adamw = torch.optim.AdamW(model.parameters())
    file = save_checkpoint(tmp_path, epoch=1, model=model, optimizer=adamw)
    with pytest.raises(
        CheckpointError, match="optimizer kind: AdamW in the file, Adam"
    ):
        load_checkpoint(file, model=model, optimizer=adam(model))


@pytest.mark.parametrize("part", ["optimizer", "scheduler", "generator"])
def test_case_38_saved_but_not_passed_when_resuming(
    saved: tuple[Training, Path], part: str
) -> None:
    training = Training(seed=9)
    refused(saved[1], training, f"{part} .* in the file, nothing here", **{part: None})


@pytest.mark.parametrize("part", ["optimizer", "scheduler", "generator"])
def test_passed_but_not_saved(tmp_path: Path, part: str) -> None:
    training = Training()
    parts = {**training.parts(), part: None}
    file = save_checkpoint(tmp_path, epoch=1, **parts)
    refused(file, training, f"{part} .*: nothing in the file")


def test_another_scheduler(saved: tuple[Training, Path]) -> None:
    training = Training(seed=9)
    other = ConstantLR(training.optimizer)
    match = "scheduler kind: StepLR in the file, ConstantLR here"
    refused(saved[1], training, match, scheduler=other)
    assert isinstance(training.scheduler, StepLR)


def test_case_44_missing_file_empty_folder(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.pt"):
        with pytest.raises(FileNotFoundError, match=path.name):
            load_checkpoint(path, model=model)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.pt")
    assert list_checkpoints(tmp_path / "none") == []
    assert list_checkpoints(tmp_path) == []
    assert [*tmp_path.iterdir()] == []


def test_paths_may_be_strings(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    file = save_checkpoint(str(tmp_path), epoch=1, model=model)
    assert list_checkpoints(str(tmp_path)) == [file]
    assert read_checkpoint(str(file))["epoch"] == 1
    assert load_checkpoint(str(file), model=model)["epoch"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_checkpoint(str(tmp_path), model=model)["epoch"] == 1
