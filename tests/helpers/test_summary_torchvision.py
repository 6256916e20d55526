"""helpers.summary on every classifier of torchvision: right, and nothing changed."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from helpers.summary import summarize

pytestmark = pytest.mark.filterwarnings("ignore:The default weight initialization")

NAMES = models.list_models(module=models)
SMALLEST = [  # of each family, for what need not be tried on all
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet"),
    *("inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t"),
    *("vgg11_bn", "vit_b_32", "wide_resnet50_2"),
]


@pytest.fixture(autouse=True)
def no_initial_values(monkeypatch):
    """Models in no time: what counts here is which tensors they have."""
    for name in dir(nn.init):
        if name.startswith("_no_grad_") or (name[0] != "_" and name.endswith("_")):
            monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


def build(name: str) -> nn.Module:
    """The model in train mode, but for its first BatchNorm, as in fine-tuning."""
    model = models.get_model(name, weights=None).train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            break
    return model


def everything(model: nn.Module) -> dict:
    """All that a summary must leave as it is."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "tensors": [(n, id(t), t._version, t.device, t.data_ptr()) for n, t in tensors],
        "frozen": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad for p in model.parameters()],
        "modes": [(name, m.training) for name, m in model.named_modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "hooks": [
            [len(value) for key, value in vars(m).items() if "hooks" in key]
            for m in model.modules()
        ],
    }


def random_states() -> tuple:
    numpy = np.random.get_state()
    return (
        random.getstate(),
        numpy[1].tolist(),
        numpy[2:],
        torch.get_rng_state().tolist(),
    )


def test_all_of_them_are_tried():
    assert len(NAMES) >= 80
    assert set(SMALLEST) < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_totals_and_nothing_changed(name):
    model = build(name)
    parameters = list(model.parameters())
    for parameter in parameters[: len(parameters) // 2]:
        parameter.requires_grad_(False)
    before, drawn = everything(model), random_states()

    found = summarize(model, (3, 224, 224))

    assert found.total_params == sum(p.numel() for p in parameters)
    assert found.trainable_params == sum(
        p.numel() for p in parameters if p.requires_grad
    )
    assert 0 < found.trainable_params < found.total_params
    assert found.total_param_bytes == 4 * found.total_params
    assert everything(model) == before
    assert random_states() == drawn
    for giga in published_at_224(name):
        # published with three decimals
        assert found.total_mult_adds / 1e9 == pytest.approx(giga, rel=0.01, abs=5e-4)


def published_at_224(name: str) -> list[float]:
    """The 10^9 multiply-adds that torchvision publishes for crops of 224x224."""
    return [
        weights.meta["_ops"]
        for weights in models.get_model_weights(name)
        if weights.transforms.keywords["crop_size"] == 224
    ]


def test_most_models_have_a_published_figure():
    assert sum(bool(published_at_224(name)) for name in NAMES) >= 60


@pytest.mark.parametrize("name", SMALLEST)
def test_weights_frozen_and_biases_not(name):
    """In train mode too, where some models run more heads or drop whole layers."""
    model = build(name)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not key.endswith("weight"))
    before, drawn = everything(model), random_states()

    # In train mode its second head's BatchNorm refuses a batch of one.
    mode = "eval" if name == "inception_v3" else "train"
    found = summarize(model, (3, 224, 224), mode=mode)

    trainable = [p.numel() for p in model.parameters() if p.requires_grad]
    assert found.trainable_params == sum(trainable) < found.total_params
    assert found.total_params == sum(p.numel() for p in model.parameters())
    assert everything(model) == before
    assert random_states() == drawn
