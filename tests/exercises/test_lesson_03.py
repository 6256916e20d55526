"""What lesson 03 gets from its exercises beside them."""

import pickle

import pytest
import torch
from torch import nn

from exercises import lesson_03 as ex
from exercises.lesson_03 import write_file_from_gpu


def _one_by_one(path, images):
    names = [ex.predict.solution.value(path, image[None]) for image in images]
    return [name for (name,) in names]


def _in_batches_with_another_class(path, images):
    class DigitsNet(nn.Module):  # as the notebook has a class of its own
        def __init__(self, num_classes):
            super().__init__()
            self.hidden, self.norm = nn.Linear(3072, 128), nn.BatchNorm1d(128)
            self.head = nn.Linear(128, num_classes)

        def forward(self, x):
            return self.head(self.norm(self.hidden(x.flatten(1))).relu())

    saved = torch.load(path, map_location="cpu")
    model = DigitsNet(saved["num_classes"]).eval()
    model.load_state_dict(saved["model_state_dict"])
    batches = ((images - saved["mean"]) / saved["std"]).split(4)
    best = torch.cat([model(batch) for batch in batches]).argmax(1)
    return [saved["class_names"][number] for number in best]


def _refuse_in_other_words(path):
    try:
        return torch.load(path, map_location="cpu")
    except pickle.UnpicklingError:
        raise ValueError("please send the state dict, not the model") from None


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [
        (ex.predict, _one_by_one),
        (ex.predict, _in_batches_with_another_class),
        (ex.read_weights, _refuse_in_other_words),
    ],
)
def test_right_in_another_way(exercise, answer, capsys):
    exercise.check(answer)
    assert "Correct!" in capsys.readouterr().out


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
