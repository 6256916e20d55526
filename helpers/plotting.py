"""Figures of the lessons: readable in grey, and by colour-blind readers."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

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
    if all(float(position).is_integer() for position in x):  # no epoch 3.5
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))


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


def confusion_matrix(
    counts: Sequence[Sequence[int]], classes: Sequence[str], title: str
) -> None:
    """A square of counts: a row is a true class, a column a predicted one.

    Args:
        counts: (C, C), whole numbers; each row has at least one.
        classes: C names.
    """
    numbers = range(len(classes))
    side = 1.8 + 0.75 * len(classes)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(side + 0.7, side))
        shares = [[count / sum(row) for count in row] for row in counts]
        axis.imshow(shares, cmap="Greys", vmin=0, vmax=1)
        for row in numbers:
            for column in numbers:
                share = shares[row][column]
                axis.text(
                    column,
                    row,
                    f"{counts[row][column]}\n{share:.0%}",
                    ha="center",
                    va="center",
                    color="white" if share > 0.5 else "black",
                )
        axis.set_xticks(numbers, classes, rotation=0 if len(classes) < 5 else 90)
        axis.set_yticks(numbers, classes)
        axis.set(xlabel="predicted", ylabel="true class", title=title)
        axis.grid(visible=False)
        figure.tight_layout()
        plt.show()


def predictions(
    images: Sequence[torch.Tensor],
    true: Sequence[str],
    predicted: Sequence[str],
    certainty: Sequence[float],
    title: str,
    columns: int = 6,
) -> None:
    """Pictures with what the model says and how certain it is; wrong ones are framed.

    Args:
        images: N tensors (3, H, W) in 0..1.
        true, predicted: N class names.
        certainty: N probabilities of the predicted class, 0..1.
    """
    rows = -(-len(images) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(9.5, 2.05 * rows + 0.5), squeeze=False
        )
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, image, name, guess, share in zip(
            axes.flat, images, true, predicted, certainty, strict=False
        ):
            axis.imshow(image.permute(1, 2, 0).cpu())
            axis.set_title(f"{guess} {share:.0%}", fontsize=10)
            if guess != name:
                axis.set_title(f"{guess} {share:.0%}\nWRONG: {name}", fontsize=10)
                axis.add_patch(
                    plt.Rectangle(
                        (0, 0),
                        1,
                        1,
                        transform=axis.transAxes,
                        fill=False,
                        edgecolor="black",
                        linewidth=4,
                        clip_on=False,
                    )
                )
        figure.suptitle(title)
        figure.tight_layout()
        plt.show()


def spread(
    x: Sequence[float],
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    title: str,
    level: tuple[float, str] | None = None,
) -> None:
    """Means with their spread over a logarithmic x axis.

    Args:
        x: N positions, each marked on the axis.
        series: legend text -> N means and N standard deviations; at most five.
        level: a height to draw a thin line at, such as chance, and its name.
    """
    # A little beside each other, so that the bars can be told apart.
    looks = [(BLUE, "-", "o"), (ORANGE, "--", "s"), ("#000000", ":", "^")]
    looks += [("#009E73", "-.", "D"), ("#CC79A7", (0, (5, 2, 1, 2)), "v")]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(9.5, 3.8))
        for number, (label, (mean, deviation)) in enumerate(series.items()):
            colour, dash, marker = looks[number]
            axis.errorbar(
                [value * (1 + 0.03 * (number - 2)) for value in x],
                mean,
                yerr=deviation,
                color=colour,
                ls=dash,
                marker=marker,
                capsize=3,
                label=label,
            )
        if level:
            axis.axhline(level[0], color="grey", lw=1)
            axis.annotate(level[1], (x[-1], level[0]), va="bottom", ha="right")
        axis.set_xscale("log")
        axis.set_xticks(x, [f"{value:g}" for value in x])
        axis.minorticks_off()
        axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        figure.tight_layout()
        plt.show()


# Lesson 06, data parallel


def environments(panels: Mapping[str, tuple[int, int]], title: str) -> None:
    """Machines drawn as frames, their devices as boxes, and what connects them.

    Args:
        panels: caption -> number of nodes and of devices in each; both at least 1.
    """
    height, gap = 1.0, 0.35
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(9.5, 3.2))
        for axis, (caption, (nodes, devices)) in zip(
            np.atleast_1d(axes), panels.items(), strict=True
        ):
            for node in range(nodes):
                low = -node * (height + gap)
                axis.add_patch(
                    plt.Rectangle((0, low), 4, height, fill=False, lw=1.5, zorder=2)
                )
                axis.text(0.1, low + 0.8, f"node {node}", va="center")
                places = [4 * (i + 0.5) / devices for i in range(devices)]
                axis.plot(places, [low + 0.35] * devices, color="black", lw=2, zorder=1)
                for device, x in enumerate(places):
                    axis.text(
                        x,
                        low + 0.35,
                        f"GPU {device}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        bbox={"boxstyle": "round", "fc": "#CFE4F2", "ec": BLUE},
                    )
                if node:
                    middle = [low + height, low + height + gap]
                    axis.plot([2, 2], middle, color=ORANGE, lw=3, ls="--")
                    axis.text(2.1, sum(middle) / 2, "network", va="center", fontsize=8)
            tall = nodes * (height + gap)
            axis.set(xlim=(-0.1, 4.1), ylim=(height - max(tall, 2.6) - 0.1, 1.1))
            axis.set_title(caption)
            axis.set_axis_off()
        figure.suptitle(title)
        figure.tight_layout()
        plt.show()


def stacked_bars(
    names: Sequence[str],
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    title: str,
) -> None:
    """Horizontal bars made of parts: one row a name, one panel a quantity.

    Args:
        names: N row labels, the first on top.
        panels: axis label with its unit -> legend text -> N values; at most five parts.
    """
    looks = [(BLUE, ""), (ORANGE, "///"), ("#999999", ""), ("#009E73", "xxx")]
    looks.append(("#FFFFFF", "..."))
    rows = range(len(names))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1,
            len(panels),
            figsize=(9.5, 0.45 * len(names) + 2.2),
            sharey=True,
            squeeze=False,
        )
        for axis, (label, parts) in zip(axes[0], panels.items(), strict=True):
            left = [0.0] * len(names)
            for (part, values), look in zip(parts.items(), looks, strict=False):
                colour, hatch = look
                axis.barh(
                    rows,
                    values,
                    left=left,
                    color=colour,
                    hatch=hatch,
                    edgecolor="black",
                    linewidth=0.5,
                    label=part,
                )
                left = [a + b for a, b in zip(left, values, strict=True)]
            axis.set_xlabel(label)
            axis.grid(axis="y", visible=False)
            axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.28))
        axes[0][0].set_yticks(rows, names)
        axes[0][0].invert_yaxis()
        figure.suptitle(title)
        figure.tight_layout()
        plt.show()


def timeline(
    lanes: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    xlabel: str,
    title: str,
) -> None:
    """What happened when: one lane a thread of work, one bar a piece of it.

    Args:
        lanes: lane's name -> kind of work -> (start, end) of each piece; at most four
            kinds in all, each with one look throughout.
    """
    looks = [("#999999", ""), (BLUE, ""), (ORANGE, "///"), ("#009E73", "xxx")]
    kinds = dict.fromkeys(kind for lane in lanes.values() for kind in lane)
    look_of = dict(zip(kinds, looks, strict=False))
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(9.5, 0.5 * len(lanes) + 1.6))
        for row, pieces_of in enumerate(lanes.values()):
            for kind, pieces in pieces_of.items():
                colour, hatch = look_of[kind]
                axis.broken_barh(
                    [(start, end - start) for start, end in pieces],
                    (row - 0.38, 0.76),
                    facecolor=colour,
                    hatch=hatch,
                    edgecolor="black",
                    linewidth=0.6,
                )
        axis.legend(
            handles=[
                Patch(facecolor=colour, hatch=hatch, edgecolor="black", label=kind)
                for kind, (colour, hatch) in look_of.items()
            ],
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(1, 1),
        )
        axis.set_yticks(range(len(lanes)), list(lanes))
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.set(xlabel=xlabel, title=title)
        figure.tight_layout()
        plt.show()


# Lesson 08: many nodes


def nodes(names: Sequence[str], per_node: int, title: str) -> None:
    """Machines as boxes, their processes inside, with rank and local rank.

    Args:
        names: one for each machine; the first holds the rendezvous.
        per_node: processes on each machine.
    """
    with plt.rc_context({**STYLE, "axes.grid": False}):
        _, ax = plt.subplots(figsize=(9, 2.6))
        width = per_node + 0.4
        for node, name in enumerate(names):
            left = node * (width + 0.8)
            frame = plt.Rectangle((left, 0), width, 1.7, fill=False, linewidth=1.5)
            ax.add_patch(frame)
            ax.text(left + 0.1, 1.45, f"{name}: one torchrun, its agent", va="center")
            for local_rank in range(per_node):
                x = left + 0.2 + local_rank
                box = plt.Rectangle(
                    (x + 0.05, 0.2), 0.9, 0.95, facecolor="0.9", edgecolor="0.3"
                )
                ax.add_patch(box)
                text = f"rank {node * per_node + local_rank}\nlocal rank {local_rank}"
                ax.text(x + 0.5, 0.68, text, ha="center", va="center", fontsize=9)
            if node:
                ax.annotate(
                    "",
                    (left - 0.8, 1.45),
                    (left, 1.45),
                    arrowprops={"arrowstyle": "<->", "linewidth": 1.5},
                )
        ax.text(0.2, -0.25, "the rendezvous listens on this machine", va="center")
        ax.plot([0.05], [-0.25], marker="s", color="black", markersize=6)
        ax.set(xlim=(-0.2, len(names) * (width + 0.8)), ylim=(-0.5, 1.9), title=title)
        ax.axis("off")
        plt.show()
