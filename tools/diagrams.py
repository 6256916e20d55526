"""Make a PNG of each SVG in docs/diagrams, by headless Chromium.

    python -m tools.diagrams [NAME ...]    # those that have changed, if left out

Each PNG holds the SHA-256 of its SVG, so that a test sees one that is out of date.
"""

import hashlib
import sys
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers.figures import DIAGRAMS

KEY, SCALE = "SVG-SHA-256", 2


def digest(svg: Path) -> str:
    return hashlib.sha256(svg.read_bytes()).hexdigest()


def is_current(svg: Path) -> bool:
    """Whether the PNG beside it was made from this SVG."""
    png = svg.with_suffix(".png")
    return png.exists() and Image.open(png).info.get(KEY) == digest(svg)


def draw(svgs: list[Path]) -> None:
    """Write the PNGs, twice the SVG's size. Needs Debian's chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = {"executable_path": "/usr/bin/chromium", "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**options)
        page = browser.new_page(device_scale_factor=SCALE)
        for svg in svgs:
            png = svg.with_suffix(".png")
            page.set_content(f"<body style='margin:0'>{svg.read_text('utf-8')}</body>")
            page.locator("svg").first.screenshot(path=png)
            note = PngInfo()
            note.add_text(KEY, digest(svg))
            small = Image.open(png).convert("RGB").quantize(128)
            small.save(png, pnginfo=note, optimize=True)
            print(f"{png.name}: {png.stat().st_size / 1024:.0f} KiB")
        browser.close()


if __name__ == "__main__":
    found = sorted(DIAGRAMS.glob("*.svg"))
    if named := sys.argv[1:]:
        draw([svg for svg in found if svg.stem in named])
    else:
        draw([svg for svg in found if not is_current(svg)])
