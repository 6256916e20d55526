"""helpers.training: one epoch, evaluation, seeding."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from helpers.compare import max_difference
from helpers.data import load_digits
from helpers.models import SmallCNN
from helpers.training import evaluate, pick_device, seed_everything, train_one_epoch

LOSS = nn.CrossEntropyLoss()


def digits(split: str, count: int) -> DataLoader:
    data = load_digits(split)
    images = data.images[:count].expand(-1, 3, -1, -1)
    labels = data.labels[:count]
    return DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_the_loss_falls_and_the_digits_are_learned():
    seed_everything(0)
    model = SmallCNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train, val = digits("train", 1000), digits("val", 397)
    first, _ = evaluate(model, val, LOSS)
    losses = [train_one_epoch(model, train, LOSS, optimizer)[0] for _ in range(5)]
    last, accuracy = evaluate(model, val, LOSS)
    assert losses[-1] < losses[0] / 4
    assert last < first / 4
    assert accuracy >= 0.9


def test_two_seeded_runs_are_equal_to_the_last_bit():
    def run(seed: int) -> tuple[list, dict]:
        seed_everything(seed)
        model = SmallCNN()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        loader = digits("train", 256)
        history = [train_one_epoch(model, loader, LOSS, optimizer) for _ in range(2)]
        draws = [random.random(), np.random.rand(), torch.rand(()).item()]
        return [history, draws], model.state_dict()

    (history, state), (again, state_again) = run(3), run(3)
    assert history == again
    assert max_difference(state, state_again) == 0.0
    other, other_state = run(4)
    assert other[1] != history[1]
    assert max_difference(state, other_state) > 0.0


def test_seeding_reaches_all_three_generators():
    def draw(seed: int) -> tuple[float, ...]:
        seed_everything(seed)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert draw(5) == draw(5)
    assert all(a != b for a, b in zip(draw(5), draw(6), strict=True))


class Fixed(nn.Module):
    """Logits that are the inputs, plus one parameter for an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.shift


def test_batches_of_unequal_size_weigh_by_their_samples():
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 4), torch.randint(4, (7,))
    loss = LOSS(logits, labels).item()
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    whole = [(logits, labels)]
    parts = list(zip(logits.split([4, 2, 1]), labels.split([4, 2, 1]), strict=True))
    model = Fixed()
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    for loader in (whole, parts):
        assert evaluate(model, loader, LOSS) == pytest.approx((loss, accuracy))
        found = train_one_epoch(model, loader, LOSS, frozen)
        assert found == pytest.approx((loss, accuracy))
    uneven = sum(LOSS(x, y).item() for x, y in parts) / len(parts)
    assert uneven != pytest.approx(loss), "the mean of means would be another number"


def test_one_step_a_batch_on_fresh_gradients():
    """Two batches are two plain SGD steps; a gradient left over would add up."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    by_hand = nn.Linear(3, 2)
    by_hand.load_state_dict(model.state_dict())
    batches = [(torch.randn(4, 3), torch.randint(2, (4,))) for _ in range(2)]
    LOSS(model(batches[0][0]), batches[0][1]).backward()  # a gradient from before
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    train_one_epoch(model, batches, LOSS, optimizer)
    for x, y in batches:
        gradients = torch.autograd.grad(LOSS(by_hand(x), y), list(by_hand.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(
                by_hand.parameters(), gradients, strict=True
            ):
                parameter -= 0.5 * gradient
    assert max_difference(model.state_dict(), by_hand.state_dict()) < 1e-6


def mixed_modes() -> nn.Module:
    """In train mode, but for a frozen BatchNorm and a whole frozen block."""
    model = SmallCNN().train()
    model.layer2[1].eval()
    model.layer1.eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("make", [mixed_modes, SmallCNN, lambda: SmallCNN().eval()])
def test_evaluate_leaves_the_model_as_it_was(make):
    model = make()
    before, state = modes(model), snapshot(model)
    evaluate(model, digits("val", 100), LOSS)
    assert modes(model) == before
    assert max_difference(model.state_dict(), state) == 0.0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()


def test_evaluate_runs_in_eval_mode_without_gradients():
    seen = []

    class Probe(Fixed):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(x)

    evaluate(Probe(), [(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))], LOSS)
    assert seen == [(False, False)]


def test_evaluate_restores_the_modes_after_an_error():
    model = mixed_modes()
    before = modes(model)
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.zeros(1, 5, 32, 32), torch.zeros(1).long())], LOSS)
    assert modes(model) == before


def test_training_is_in_train_mode():
    model = SmallCNN().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train_one_epoch(model, digits("train", 64), LOSS, optimizer)
    assert all(modes(model))
    assert model.layer1[1].num_batches_tracked == 1


def test_the_sums_are_those_of_python_floats_to_the_last_bit():
    model = SmallCNN().eval()
    loader = list(digits("val", 300))
    with torch.no_grad():
        losses = [LOSS(model(x), y).item() * len(y) for x, y in loader]
        hits = [int((model(x).argmax(1) == y).sum()) for x, y in loader]
    assert evaluate(model, loader, LOSS) == (sum(losses) / 300, sum(hits) / 300)


class Reads(TorchDispatchMode):
    """Counts the values read from tensors: each makes the CPU wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation is torch.ops.aten._local_scalar_dense.default
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("batches", [1, 10])
def test_two_values_are_read_in_an_epoch_and_none_in_a_batch(batches):
    model = SmallCNN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])
    with Reads() as reads:
        train_one_epoch(model, [batch] * batches, LOSS, optimizer)
        assert reads.count == 2
        evaluate(model, [batch] * batches, LOSS)
        assert reads.count == 4


def test_an_empty_loader():
    model = SmallCNN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    dropped = DataLoader(load_digits("val"), batch_size=1000, drop_last=True)
    for loader in ([], dropped):
        with pytest.raises(ValueError, match="no batch"):
            evaluate(model, loader, LOSS)
        with pytest.raises(ValueError, match="no batch"):
            train_one_epoch(model, loader, LOSS, optimizer)
    assert all(modes(model))


def test_a_model_without_parameters_can_be_evaluated():
    loss, accuracy = evaluate(
        nn.Flatten(), [(torch.eye(4), torch.tensor([0, 1, 2, 0]))], LOSS
    )
    assert accuracy == 0.75
    assert loss > 0


def test_pick_device():
    device = pick_device()
    assert isinstance(device, torch.device)
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert (torch.ones(1, device=device) + 1).item() == 2
