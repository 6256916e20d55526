"""Lesson 06's figures: what is drawn is what was given."""

import matplotlib
import matplotlib.pyplot as plt
import pytest

from helpers import plotting


@pytest.fixture(autouse=True)
def figure(monkeypatch):
    """Nothing is shown; the test looks at the figure, which is closed afterwards."""
    matplotlib.use("Agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    yield
    plt.close("all")


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_environments_draws_each_node_and_each_device():
    plotting.environments({"one": (1, 1), "many": (2, 4)}, "Where")
    one, many = plt.gcf().axes
    assert texts(one) == ["node 0", "GPU 0"]
    assert sum(text.startswith("GPU") for text in texts(many)) == 8
    assert texts(many).count("network") == 1
    assert (one.get_title(), many.get_title()) == ("one", "many")


def test_environments_of_one_panel():
    plotting.environments({"alone": (1, 2)}, "Where")
    assert len(plt.gcf().axes) == 1


def test_stacked_bars_put_each_part_at_the_end_of_the_one_before():
    plotting.stacked_bars(["a", "b"], {"MiB": {"x": [1, 2], "y": [3, 4]}}, "Bars")
    (axis,) = plt.gcf().axes
    drawn = [(bar.get_x(), bar.get_width()) for bar in axis.patches]
    assert drawn == [(0, 1), (0, 2), (1, 3), (2, 4)]
    assert [label.get_text() for label in axis.get_legend().get_texts()] == ["x", "y"]
    assert len({bar.get_hatch() for bar in axis.patches}) == 2, "told apart in grey"


def test_stacked_bars_refuse_parts_of_another_length():
    with pytest.raises(ValueError, match=r"shape|argument"):
        plotting.stacked_bars(["a", "b"], {"MiB": {"x": [1, 2, 3]}}, "Bars")


def test_timeline_draws_each_piece_from_its_start_to_its_end():
    lanes = {"works": {"one": [(0, 2)], "two": [(3, 7)]}, "sends": {"two": [(5, 6)]}}
    plotting.timeline(lanes, "time, ms", "When")
    (axis,) = plt.gcf().axes
    boxes = [c.get_paths()[0].get_extents() for c in axis.collections]
    assert [(box.x0, box.x1) for box in boxes] == [(0, 2), (3, 7), (5, 6)]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["works", "sends"]
    one, two, again = (tuple(c.get_facecolor()[0]) for c in axis.collections)
    assert one != two == again, "one look for each kind, in all lanes"


def test_timeline_tells_four_kinds_apart_in_grey():
    kinds = {name: [(at, at + 1)] for at, name in enumerate(["a", "b", "c", "d"])}
    plotting.timeline({"lane": kinds}, "time, ms", "When")
    boxes = plt.gcf().axes[0].collections
    looks = {(box.get_hatch(), round(sum(box.get_facecolor()[0]), 2)) for box in boxes}
    assert len(looks) == 4
