"""Wheels of a line each, and the build backend of test_setup.py's small course."""

import zipfile
from pathlib import Path


def write_wheel(folder, name, text="", version="1", more=""):
    """Write a wheel of one module; returns its file name."""
    files = {
        f"{name}.py": text,
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    file = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(Path(folder) / file, "w") as wheel:
        for place, content in files.items():
            about = "" if "." in place else f"{name}-{version}.dist-info/"
            wheel.writestr(about + place, content)
    return file


def build_editable(folder, *_):
    """What pip asks for, for `pip install -e .[test]`."""
    names = Path("requirements.txt").read_text().split()
    needs = [f"Requires-Dist: {name}\n" for name in names]
    more = "Provides-Extra: test\n" + "".join(needs)
    return write_wheel(folder, "course", more=more)
