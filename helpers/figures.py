"""Pictures in lessons: the diagrams of docs/diagrams, and one look for all plots."""

from pathlib import Path

import matplotlib.pyplot as plt
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
