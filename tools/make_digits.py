"""Write data/digits.npz from the copy of the UCI digits that scikit-learn carries.

    .venv/bin/python -m tools.make_digits [FILE]

The file holds `images` uint8 (1797, 8, 8) with values 0..16, `labels` uint8 (1797,) and
`split` uint8 (1797,): 0 train, 1 val, 2 test. The split is drawn once, with seed 0 and
equal shares of the ten classes. The same bytes come out each time; a new file's SHA-256
goes into helpers/data.py.
"""

import hashlib
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from helpers.data import DIGITS


def write(file: Path) -> None:
    digits = load_digits()
    numbers = np.arange(len(digits.target))
    rest, test = train_test_split(
        numbers, test_size=400, stratify=digits.target, random_state=0
    )
    _, val = train_test_split(
        rest, test_size=397, stratify=digits.target[rest], random_state=0
    )
    split = np.zeros(len(numbers), np.uint8)
    split[val], split[test] = 1, 2
    arrays = {
        "images": digits.images.astype(np.uint8),
        "labels": digits.target.astype(np.uint8),
        "split": split,
    }
    # Fixed dates (np.savez stores the time of day) and no compression (what deflate
    # writes depends on the machine's zlib): the same bytes each time and everywhere.
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            buffer = BytesIO()
            np.save(buffer, array)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DIGITS
    write(target)
    print(target, hashlib.sha256(target.read_bytes()).hexdigest())
