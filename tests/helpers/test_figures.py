"""helpers.figures: a row of pictures."""

import matplotlib.pyplot as plt
import pytest
import torch

from helpers.figures import show_pictures


def test_a_row_of_pictures_shows_each_under_its_title(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    pictures = torch.stack([torch.full((3, 4, 6), value) for value in (-1.0, 1.0)])
    try:
        show_pictures(pictures, ["black", "white"], "finding")
        axes = plt.gcf().axes
        assert [axis.get_title() for axis in axes] == ["black", "white"]
        shown = [axis.images[0].get_array() for axis in axes]
        assert [image.shape for image in shown] == [(4, 6, 3)] * 2
        assert [float(image.mean()) for image in shown] == [0.0, 1.0]
        show_pictures(pictures[:1], ["black"], "one alone")
        with pytest.raises(ValueError, match="zip"):
            show_pictures(pictures, ["black"], "a title is missing")
    finally:
        plt.close("all")
