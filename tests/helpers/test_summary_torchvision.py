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


@pytest.fixture(autouse=True)
def no_initial_values(monkeypatch):
    """Models in no time: what counts here is which tensors they have."""
    for name in dir(nn.init):
        if name.startswith("_no_grad_") or (name[0] != "_" and name.endswith("_")):
            monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


def everything(model: nn.Module) -> dict:
    """All that a summary must leave as it is."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    numpy = np.random.get_state()
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
        "random numbers": (
            *(random.getstate(), numpy[1].tolist(), numpy[2:]),
            torch.get_rng_state().tolist(),
        ),
    }


def test_all_of_them_are_tried():
    assert len(NAMES) >= 80


@pytest.mark.parametrize("name", NAMES)
def test_totals_and_nothing_changed(name):
    """In train mode, except one BatchNorm, and with all weights frozen but no bias."""
    model = models.get_model(name, weights=None).train()
    norms = (m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    next(norms, model).eval()
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not key.endswith("weight"))
    before = everything(model)

    found = summarize(model, (3, 224, 224))

    assert everything(model) == before
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.total_params == sum(p.numel() for p in model.parameters())
    assert 0 < found.trainable_params == trainable < found.total_params
    assert found.total_param_bytes == 4 * found.total_params
    for weights in models.get_model_weights(name):
        if weights.transforms.keywords["crop_size"] == 224:
            # published in 10^9 multiply-adds, with three decimals
            published = pytest.approx(weights.meta["_ops"], rel=0.01, abs=5e-4)
            assert found.total_mult_adds / 1e9 == published
