"""helpers.plotting: the figures of lessons 01 and 02 show what they were given."""

import matplotlib.pyplot as plt
import pytest

from helpers import plotting


@pytest.fixture
def shown(monkeypatch):
    """The figures that a call showed."""
    figures = []
    monkeypatch.setattr(plt, "show", lambda: figures.append(plt.gcf()))
    yield figures
    plt.close("all")


def test_layer_bars(shown):
    panels = {"parameters (millions)": [1, 3, 12], "work (GFLOP)": [5, 4, 1]}
    names = ["first", "second", "head"]
    plotting.layer_bars(names, panels, [False, False, True], "The finding")
    (figure,) = shown
    assert figure.get_suptitle() == "The finding"
    assert [axis.get_xlabel() for axis in figure.axes] == list(panels)
    shares = []
    for axis, values in zip(figure.axes, panels.values(), strict=True):
        drawn = {round(bar.get_y() + 0.4): bar.get_width() for bar in axis.patches}
        assert [drawn[row] for row in range(3)] == values
        assert [bool(bar.get_hatch()) for bar in axis.patches] == [False, False, True]
        shares.append([text.get_text() for text in axis.get_legend().get_texts()])
    assert shares[0] == ["body: 25.0%", "head: 75.0%"]
    assert shares[1] == ["body: 90.0%", "head: 10.0%"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
    low, high = figure.axes[0].get_ylim()
    assert low > high, "the first layer is on top"


def test_curves_that_lie_on_each_other_can_be_told_apart(shown):
    series = {"kept": [0.5, 0.9], "now": [0.5, 0.1], "reference": [0.5, 0.1]}
    plotting.curves([1, 2], series, "epoch", "accuracy (share)", "The finding")
    (figure,) = shown
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", "accuracy (share)")
    assert axis.get_title() == "The finding"
    assert {line.get_label(): list(line.get_ydata()) for line in axis.lines} == series
    for look in ("color", "linestyle", "marker", "markersize"):
        assert len({str(plt.getp(line, look)) for line in axis.lines}) == 3
