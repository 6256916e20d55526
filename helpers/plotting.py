"""Figures of the lessons: readable in grey, and by colour-blind readers."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from IPython.display import display

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
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 3.6))
        _draw(axis, x, series)
        axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
        figure.tight_layout()
        plt.show()


def _draw(
    axis: plt.Axes, x: Sequence[float], series: Mapping[str, Sequence[float]]
) -> None:
    # Markers of different sizes stay visible where lines lie on each other.
    looks = [(BLUE, "-", "o", 6), (ORANGE, "--", "s", 8), ("#000000", ":", "^", 4)]
    looks.append(("#009E73", "-.", "D", 4))
    for (label, y), look in zip(series.items(), looks, strict=False):
        colour, dash, marker, size = look
        axis.plot(
            x, y, color=colour, ls=dash, marker=marker, markersize=size, label=label
        )
    axis.legend(frameon=False)


def bars(
    names: Sequence[str],
    panels: Mapping[str, Sequence[float]],
    title: str,
    log: bool = False,
) -> None:
    """Horizontal bars: one row a name, one panel a quantity, each bar with its value.

    Args:
        names: N row labels, the first on top.
        panels: axis label with its unit -> N values.
        log: logarithmic axes; a value of 0 then has no bar.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1,
            len(panels),
            figsize=(9.5, 0.45 * len(names) + 1.3),
            sharey=True,
            squeeze=False,
        )
        for axis, (label, values) in zip(axes[0], panels.items(), strict=True):
            drawn = axis.barh(range(len(names)), values, color=BLUE)
            texts = [f"{v:,.0f}" if v >= 100 else f"{v:.2g}" for v in values]
            axis.bar_label(drawn, texts, padding=3)
            axis.set_xlabel(label)
            axis.margins(x=0.15)
            if log:
                axis.set_xscale("log")
            axis.grid(axis="y", visible=False)
        axes[0][0].set_yticks(range(len(names)), names)
        axes[0][0].invert_yaxis()
        figure.suptitle(title)
        figure.tight_layout()
        plt.show()


class LiveCurves:
    """Curves that grow in place while a cell trains: one figure, updated each epoch.

    curves = LiveCurves("epoch", "loss", "Training on the digits")
    curves.add(epoch, train=0.31, val=0.35)
    """

    def __init__(self, xlabel: str, ylabel: str, title: str) -> None:
        self.labels = {"xlabel": xlabel, "ylabel": ylabel, "title": title}
        self.x: list[float] = []
        self.series: dict[str, list[float]] = {}
        self.display = display(display_id=True)

    def add(self, x: float, **values: float) -> None:
        """Add one point to each curve, and draw again. All names from the start on."""
        self.x.append(x)
        for name, value in values.items():
            self.series.setdefault(name, []).append(value)
        with plt.rc_context(STYLE):
            figure, axis = plt.subplots(figsize=(7, 3.2))
            _draw(axis, self.x, self.series)
            axis.set(**self.labels)
            figure.tight_layout()
            plt.close(figure)  # only the display below shows it
        self.display.update(figure)
