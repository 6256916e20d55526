"""data/digits_backbone.pt: the network that lesson 05 takes over."""

import pytest
import torch

from helpers.data import BACKBONE, coloured, load_digits
from helpers.models import SmallCNN
from tools.make_backbone import accuracy, train


@pytest.fixture(scope="module")
def backbone():
    model = SmallCNN()
    model.load_state_dict(torch.load(BACKBONE, weights_only=True))
    return model.eval()


def test_it_reads_digits_in_colours_that_it_has_not_seen(backbone):
    for seed in range(3):
        assert accuracy(backbone, "val", seed) >= 0.95
        assert accuracy(backbone, "test", seed) >= 0.95


def test_the_file_is_small_and_plain(backbone):
    assert BACKBONE.stat().st_size < 160_000
    state = torch.load(BACKBONE, weights_only=True)
    assert {type(value) for value in state.values()} == {torch.Tensor}
    assert {value.device.type for value in state.values()} == {"cpu"}
    assert all(value.isfinite().all() for value in state.values())


def test_the_recipe_learns():
    """Six epochs of it instead of forty; chance is 0.10."""
    assert accuracy(train(num_epochs=6), "val") > 0.4


def test_colours():
    images = load_digits("val").images[:50]
    painted = coloured(images, torch.Generator().manual_seed(0))
    assert painted.shape == (50, 3, 32, 32)
    assert painted.dtype == torch.float32
    assert painted.min() >= 0
    assert painted.max() <= 1
    assert torch.equal(painted, coloured(images, torch.Generator().manual_seed(0)))
    assert not torch.equal(painted, coloured(images, torch.Generator().manual_seed(1)))


def test_ink_and_paper_differ_either_way():
    paper_and_ink = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(200, 1, 64, 2)
    painted = coloured(paper_and_ink).mean(2)  # (200, 3, 2), the noise averaged out
    difference = painted[..., 1] - painted[..., 0]
    assert difference.abs().min() > 0.15
    assert 0.4 < (difference > 0).float().mean() < 0.6
