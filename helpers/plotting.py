"""Figures of the lessons: readable in grey, and by colour-blind readers."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt

# Okabe and Ito's colours, which differ in lightness too: jfly.uni-koeln.de/color
BLUE, ORANGE = "#0072B2", "#E69F00"
STYLE = {
    "figure.dpi": 100,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "font.size": 10,
    "axes.titlesize": 11,
}


def layer_bars(
    layers: Sequence[str],
    panels: Mapping[str, Sequence[float]],
    in_head: Sequence[bool],
    title: str,
) -> None:
    """One row a layer, one panel a quantity; the head's bars stand out by hatching.

    Args:
        layers: L names, the first on top.
        panels: axis label with its unit -> L values.
        in_head: L flags.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(9.5, 0.26 * len(layers) + 1.2), sharey=True
        )
        rows = range(len(layers))
        for axis, (label, values) in zip(axes, panels.items(), strict=True):
            for head, name, colour, hatch in (
                (False, "body", BLUE, ""),
                (True, "head", ORANGE, "///"),
            ):
                chosen = [row for row in rows if bool(in_head[row]) is head]
                share = sum(values[row] for row in chosen) / sum(values)
                axis.barh(
                    chosen,
                    [values[row] for row in chosen],
                    color=colour,
                    hatch=hatch,
                    edgecolor="white",
                    label=f"{name}: {share:.1%}",
                )
            axis.set_xlabel(label)
            axis.legend(loc="best", frameon=False)
            axis.grid(axis="y", visible=False)
        axes[0].set_yticks(rows, layers)
        axes[0].invert_yaxis()
        figure.suptitle(title)
        figure.tight_layout()
        plt.show()


def curves(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    title: str,
) -> None:
    """Lines over one x axis, told apart by colour, dash and marker.

    Args:
        x: N positions.
        series: legend text -> N values; at most four.
    """
    # Markers of different sizes stay visible where lines lie on each other.
    looks = [(BLUE, "-", "o", 6), (ORANGE, "--", "s", 10), ("#000000", ":", "^", 5)]
    looks.append(("#009E73", "-.", "D", 4))
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 3.6))
        for (label, y), (colour, dash, marker, size) in zip(
            series.items(), looks, strict=False
        ):
            axis.plot(
                x,
                y,
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=size,
                label=label,
            )
        axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axis.legend(frameon=False)
        figure.tight_layout()
        plt.show()
