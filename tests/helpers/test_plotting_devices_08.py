"""The figure of lesson 08."""

import matplotlib.pyplot as plt

from helpers import plotting


def test_nodes_counts_ranks_through_and_local_ranks_anew(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    plotting.nodes(["node 0", "node 1"], 3, "title")
    ax = plt.gca()
    texts = [text.get_text() for text in ax.texts]
    plt.close("all")
    boxes = [text for text in texts if text.startswith("rank")]
    assert boxes == [f"rank {n}\nlocal rank {n % 3}" for n in range(6)]
    assert ax.get_title() == "title"
