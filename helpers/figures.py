"""Pictures in lessons: the diagrams of docs/diagrams, and one look for all plots."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import Image

COURSE = Path(__file__).resolve().parent.parent
DIAGRAMS = COURSE / "docs" / "diagrams"

# One colour, one meaning, told apart in grey too (Okabe and Ito's palette)
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7A7A7A"


def use_style() -> None:
    """Give all plots of this notebook the course's look."""
    plt.style.use(Path(__file__).with_name("course.mplstyle"))


def diagram(name: str, width: int = 760) -> Image:
    """The picture docs/diagrams/NAME.png, to end a cell with; `width` in pixels.

    Raises:
        FileNotFoundError: there is none of that name; the message lists them.
    """
    file = DIAGRAMS / f"{name}.png"
    if not file.exists():
        names = ", ".join(sorted(f.stem for f in DIAGRAMS.glob("*.png")))
        raise FileNotFoundError(f"no diagram {name!r}; there are: {names}")
    return Image(filename=str(file), width=width)


def show_pictures(
    pictures: Sequence[torch.Tensor], titles: Sequence[str], finding: str
) -> None:
    """A row of a network's inputs, (3, H, W) with values -1..1, each under its title.

    Raises:
        ValueError: there are not as many titles as pictures.
    """
    figure, axes = plt.subplots(1, len(pictures), figsize=(11, 2.3), squeeze=False)
    for axis, picture, title in zip(axes[0], pictures, titles, strict=True):
        axis.imshow((picture.permute(1, 2, 0) * 0.5 + 0.5).numpy())  # (H, W, 3), 0..1
        axis.set_title(title, loc="center", fontsize=10)
        axis.axis("off")
    figure.suptitle(finding)
    plt.show()
