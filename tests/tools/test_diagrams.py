"""Each SVG in docs/diagrams has a PNG made from it, and each PNG an SVG."""

from helpers.figures import DIAGRAMS
from tools.diagrams import is_current


def test_diagrams_are_current():
    svgs, pngs = sorted(DIAGRAMS.glob("*.svg")), sorted(DIAGRAMS.glob("*.png"))
    assert svgs
    assert [svg.stem for svg in svgs] == [png.stem for png in pngs]
    old = [svg.stem for svg in svgs if not is_current(svg)]
    assert not old, f"run: python -m tools.diagrams {' '.join(old)}"


def test_a_changed_svg_is_seen(tmp_path):
    for file in DIAGRAMS.glob("two_names_one_storage.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    svg = tmp_path / "two_names_one_storage.svg"
    assert is_current(svg)
    svg.write_text(svg.read_text("utf-8").replace("</svg>", "<g/></svg>"), "utf-8")
    assert not is_current(svg)
    svg.with_suffix(".png").unlink()
    assert not is_current(svg)
