"""What lesson 03 gets from its exercises beside them."""

import pytest
import torch

from exercises.lesson_03 import write_file_from_gpu


def test_a_file_from_a_gpu_that_is_not_here(tmp_path):
    state = {"weight": torch.arange(3.0), "epoch": 3}
    write_file_from_gpu(state, tmp_path / "gpu.pt")
    with pytest.raises(RuntimeError, match="map_location"):
        torch.load(tmp_path / "gpu.pt")
    loaded = torch.load(tmp_path / "gpu.pt", map_location="cpu")
    assert torch.equal(loaded["weight"], state["weight"])
    assert loaded["epoch"] == 3


def test_other_files_are_saved_as_ever(tmp_path):
    class Unpicklable:
        def __reduce__(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_file_from_gpu(Unpicklable(), tmp_path / "gpu.pt")
    torch.save(torch.ones(2), tmp_path / "cpu.pt")
    assert torch.load(tmp_path / "cpu.pt").device.type == "cpu"
