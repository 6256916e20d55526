"""helpers.models: the one small network."""

import pytest
import torch
from torch import nn

from helpers.models import SmallCNN

# name, shape; the first four are as the course has always printed them
STATE = """
layer1.0.weight (16, 3, 3, 3)
layer1.0.bias (16,)
layer1.1.weight (16,)
layer1.1.bias (16,)
layer1.1.running_mean (16,)
layer1.1.running_var (16,)
layer1.1.num_batches_tracked ()
layer2.0.weight (32, 16, 3, 3)
layer2.0.bias (32,)
layer2.1.weight (32,)
layer2.1.bias (32,)
layer2.1.running_mean (32,)
layer2.1.running_var (32,)
layer2.1.num_batches_tracked ()
layer3.0.weight (64, 32, 3, 3)
layer3.0.bias (64,)
layer3.1.weight (64,)
layer3.1.bias (64,)
layer3.1.running_mean (64,)
layer3.1.running_var (64,)
layer3.1.num_batches_tracked ()
head.weight (10, 1024)
head.bias (10,)
""".strip()


def test_names_and_shapes_in_order():
    state = SmallCNN().state_dict()
    assert "\n".join(f"{k} {tuple(v.shape)}" for k, v in state.items()) == STATE


def test_parameters_by_the_formula():
    convolutions = sum(i * o * 9 + o for i, o in [(3, 16), (16, 32), (32, 64)])
    norms = 2 * (16 + 32 + 64)
    assert (
        sum(p.numel() for p in SmallCNN().parameters())
        == convolutions + norms + 1024 * 10 + 10
    )


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (224, 224), (33, 47)])
def test_shapes_at_any_size(size):
    model = SmallCNN().eval()
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        assert model.features(images).shape == (2, 1024)
        assert model(images).shape == (2, 10)


def test_other_numbers_of_classes():
    model = SmallCNN(num_classes=2).eval()
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 2)
    assert model.head.weight.shape == (2, 1024)


def test_the_head_sees_the_features():
    model, images = SmallCNN().eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            model(images), nn.functional.linear(model.features(images), *head(model))
        )


def head(model: SmallCNN) -> tuple[torch.Tensor, torch.Tensor]:
    return model.head.weight, model.head.bias


def test_dropout_in_training_only():
    torch.manual_seed(0)
    model, images = SmallCNN(), torch.rand(4, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_every_parameter_gets_a_gradient():
    model = SmallCNN()
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.layer1[0].weight.grad.abs().sum() > 0
