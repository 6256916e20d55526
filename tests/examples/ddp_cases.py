"""Run by test_train_ddp.py, alone or by torchrun: many cases in one group of processes.

    ddp_cases.py SCRIPT FOLDER CASES...

Rank 0 writes FOLDER/WORLD_SIZE.json: {case: what each rank met}.
"""

import atexit
import contextlib
import importlib.util
import io
import json
import os
import sys
from pathlib import Path
from unittest import mock

SCRIPT, FOLDER, *NAMES = sys.argv[1:]
FOLDER = Path(FOLDER)
RANK, WORLD_SIZE = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))


def look_at_threads() -> None:
    """A process that ends while Gloo's threads run may abort: one in five or so."""
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    found = json.dumps([name for name in names if "gloo" in name])
    (FOLDER / f"threads_{RANK}_of_{WORLD_SIZE}.json").write_text(found)


# What is registered first is called last when Python ends
if Path("/proc/self/task").exists():
    atexit.register(look_at_threads)

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, Subset  # noqa: E402

spec = importlib.util.spec_from_file_location("train_ddp", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
train = script.train


class Plain(nn.Sequential):
    """The same in any shares: float64, and neither BatchNorm nor Dropout."""

    def __init__(self, num_classes):
        hidden = nn.Linear(3 * 32 * 32, 32), nn.Tanh()
        super().__init__(nn.Flatten(), *hidden, nn.Linear(32, num_classes))
        self.double()

    def forward(self, images):
        return super().forward(images.double())


def attempt(name, *argv):
    """What this rank prints and how it leaves, as [stdout, stderr, exit code]."""
    out, err, code = io.StringIO(), io.StringIO(), None
    folder = [] if any("--folder" in arg for arg in argv) else [f"{FOLDER / name}"]
    sys.argv = ["train_ddp.py", *argv, *(f"--folder={path}" for path in folder)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            train()
        except SystemExit as end:
            code = end.code
    dist.barrier()  # the next attempt may look for what rank 0 is saving now
    return out.getvalue(), err.getvalue(), code


def plain():
    """A batch in one part, and in two; the same images in any shares."""
    with mock.patch.object(script, "build_model", lambda name, n: Plain(n)):
        for parts in (1, 2):
            name = f"plain_{script.WORLD_SIZE}_{parts}"
            yield name, attempt(name, "--epochs=2", f"--accumulate={parts}")


def undisturbed():
    yield "undisturbed", attempt("undisturbed", "--batch-size=20", "--epochs=5")


def errors():
    used = f"--folder={FOLDER / 'used'}"
    yield "trains", attempt("used", "--epochs=1", "--batch-size=500")
    yield "in use", attempt("", "--epochs=2", used)
    yield "done", attempt("", "--epochs=1", used, "--resume")
    yield "help", attempt("", "--help")
    for name, *argv in (
        ("no number", "--epochs=many"),
        ("unknown", "--nodes=2"),
        ("no model", "--model=resnet"),
        ("no data", f"--data={FOLDER / 'missing'}"),
        ("no class", f"--data={FOLDER}/used"),
        ("zero", "--batch-size=0"),
        ("indivisible", "--batch-size=9"),
        ("indivisible parts", "--batch-size=10", "--accumulate=3"),
        ("too large", "--batch-size=2000"),
        ("not a folder", f"--folder={__file__}"),
    ):
        yield name, attempt(name, *argv)
    for rank in (0, 1):
        here, data = rank == script.RANK, {"side_effect": OSError("no such photo")}
        for name, patch in (
            (f"no photo on {rank}", mock.patch.object(script, "load_data", **data)),
            (f"GPU on {rank}", mock.patch.object(script, "DEVICE", "cuda")),
            (f"SIGTERM on {rank}", mock.patch.object(script, "sigterms", [True])),
        ):
            with patch if here else contextlib.nullcontext():
                yield name, attempt(name)


def options():
    yield "bf16", attempt("bf16", "--bf16", "--epochs=1", "--accumulate=2")
    for number, name in enumerate(["cat", "dog"] * 30):
        photo = FOLDER / "photos" / name / f"{number}.png"
        if script.RANK == 0:
            photo.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 16), (4 * number, 100, 100)).save(photo)
    dist.barrier()
    argv = f"--data={FOLDER / 'photos'}", "--batch-size=24", "--epochs=1"
    with mock.patch("PIL.Image.open", wraps=Image.open) as opened:
        yield "resnet", attempt("resnet", *argv, "--model=resnet18")
        yield "opened", opened.call_count
    yield "photos", attempt("photos_run", *argv, "--workers=1", "--image-size=16")


def dropout():
    """For each rank its Dropout's masks, in the first step of two epochs."""
    masks = []

    class Probe(nn.Dropout):
        def forward(self, x):
            y = super().forward(x)
            if self.training:
                masks.append((y[0, :32] == 0).int().tolist())
            return y

    def probed(name, num_classes):
        return nn.Sequential(nn.Flatten(), Probe(), nn.Linear(3 * 32 * 32, num_classes))

    ones = torch.utils.data.TensorDataset(
        torch.ones(8, 3, 32, 32), torch.zeros(8).long()
    )
    with (
        mock.patch.object(script, "build_model", probed),
        mock.patch.object(script, "load_data", return_value=(ones, ones, 10)),
    ):
        attempt("dropout", "--epochs=2", "--batch-size=8")
    yield "masks", masks


def evaluations():
    """Shares of a set evaluated together, against all of it by this process alone."""
    torch.manual_seed(0)
    _, val_set, num_classes = script.load_data(None, 32)
    model = script.build_model("small", num_classes).eval()
    model[1].running_mean += script.RANK  # rank 0's must count
    results = []
    for size in (1, 2, 397):
        part = Subset(val_set, range(size))
        mine = range(script.RANK, size, script.WORLD_SIZE)
        together = script.evaluate(model, DataLoader(part, 50, sampler=mine))
        images, labels = next(iter(DataLoader(part, size)))
        with torch.no_grad():
            logits = model(images)
        alone = nn.functional.cross_entropy(logits, labels).item()
        acc = (logits.argmax(1) == labels).float().mean().item()
        results.append((together, (alone, acc)))
    yield "evaluations", results


def resumed():
    """Two epochs in one run and in two."""
    argv = "--batch-size=60", "--lr=0.05"
    yield "once", attempt("once", "--epochs=2", *argv)
    yield "first", attempt("twice", "--epochs=1", *argv)
    yield "second", attempt("twice", "--epochs=2", "--resume", *argv)


def bug():
    """An error of the programmer's, deep inside on rank 1."""
    if script.RANK == 1:
        {}["deep inside"]
    dist.barrier()
    yield


def cases():
    for name in NAMES:
        results = dict(globals()[name]())
        gathered = [None] * script.WORLD_SIZE
        dist.all_gather_object(gathered, results)
        met = {case: [one[case] for one in gathered] for case in results}
        if script.RANK == 0:
            (FOLDER / f"{script.WORLD_SIZE}_{name}.json").write_text(json.dumps(met))


meet = dist.init_process_group


def meet_as_if_on_a_gpu(backend, **options):
    """Rank 1 makes its group as a machine with GPUs does, except for NCCL."""
    meet("cpu:gloo", **options)


if script.RANK == 1:
    dist.init_process_group = meet_as_if_on_a_gpu
script.train = cases
script.main()
