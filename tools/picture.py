"""Write the README's picture: a figure as lesson 01 has it stored.

python -m tools.picture
"""

import base64

from tools import NOTEBOOKS, ROOT, read_notebook

PICTURE = ROOT / "docs" / "vgg19.png"
LESSON, CELL = "01_summary", "where-plot"


def stored_figure() -> bytes:
    """The PNG that the lesson's cell has as its output."""
    cells = read_notebook(NOTEBOOKS / f"{LESSON}.ipynb").cells
    outputs = next(cell.outputs for cell in cells if cell.id == CELL)
    images = (o.data["image/png"] for o in outputs if "image/png" in o.get("data", {}))
    return base64.b64decode(next(images))


if __name__ == "__main__":
    PICTURE.write_bytes(stored_figure())
    print(PICTURE)
