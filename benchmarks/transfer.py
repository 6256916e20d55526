"""A head on a frozen body: forward every epoch, or features computed once."""

import time

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from torchvision import models
from tqdm import tqdm

from benchmarks.common import Outcome, ratio, threads
from helpers.data import BACKBONE, coloured, load_digits
from helpers.models import SmallCNN
from helpers.training import seed_everything

NAME, TITLE = "transfer", "Training a head on a frozen body"
EVERY, ONCE = "forward every epoch", "features once"
GOAL, MOST_EPOCHS = 0.85, 200  # accuracy on the test digits


class Features(nn.Module):
    """SmallCNN without its head: (B, 3, H, W) -> (B, 1024)."""

    def __init__(self, model: SmallCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.features(x)


class Head:
    """A head that is trained on what `body` makes of the pictures."""

    def __init__(self, body: nn.Module, num_features: int) -> None:
        seed_everything(0)
        self.body, self.head = body, nn.Linear(num_features, 1)
        self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=1e-3)

    def epoch(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Train once over (N, ...); the seconds it took."""
        start = time.perf_counter()
        for batch in torch.randperm(len(targets)).split(16):
            with torch.no_grad():
                features = self.body(inputs[batch])
            logits = self.head(features).squeeze(1)
            loss = binary_cross_entropy_with_logits(logits, targets[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - start

    @torch.no_grad()
    def accuracy(self, features: torch.Tensor, targets: torch.Tensor) -> float:
        right = (self.head(features).squeeze(1) > 0) == (targets > 0.5)
        return right.float().mean().item()


@torch.inference_mode()
def extract(body: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, float]:
    start = time.perf_counter()
    features = torch.cat([body(batch) for batch in inputs.split(16)])
    return features, time.perf_counter() - start


def epochs(body, num_features, images, targets, rounds, what) -> dict[str, list[float]]:
    """Seconds of an epoch in both ways, and of the extraction, by rounds in turn."""
    samples: dict[str, list[float]] = {EVERY: [], ONCE: [], "extraction": []}
    body.eval().requires_grad_(False)
    for _ in tqdm(range(rounds + 1), desc=what):
        features, extract_s = extract(body, images)
        every, once = Head(body, num_features), Head(nn.Identity(), num_features)
        samples[EVERY].append(every.epoch(images, targets))
        once_s = [once.epoch(features.clone(), targets) for _ in range(50)]
        samples[ONCE].append(float(pd.Series(once_s).median()))
        samples["extraction"].append(extract_s)
    return {way: values[1:] for way, values in samples.items()}  # the first is slower


def to_goal(rounds: int) -> dict[str, list[float]]:
    """Seconds until GOAL is reached on the test digits, and how many epochs."""
    backbone = SmallCNN()
    backbone.load_state_dict(torch.load(BACKBONE, weights_only=True))
    body = Features(backbone).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    images, targets, test_features = {}, {}, None
    for split in ("val", "test"):
        digits = load_digits(split)
        images[split] = coloured(digits.images, generator)
        targets[split] = (digits.labels % 2).float()
    test_features, _ = extract(body, images["test"])
    samples: dict[str, list[float]] = {EVERY: [], ONCE: [], "epochs": []}
    for _ in tqdm(range(rounds), desc=f"to accuracy {GOAL}"):
        for way in (EVERY, ONCE):
            inputs, spent_s = images["val"], 0.0
            head = Head(body if way == EVERY else nn.Identity(), 1024)
            if way == ONCE:
                features, spent_s = extract(body, inputs)
                inputs = features.clone()
            number = 0
            while head.accuracy(test_features, targets["test"]) < GOAL:
                spent_s += head.epoch(inputs, targets["val"])
                number += 1
                if number == MOST_EPOCHS:
                    raise RuntimeError(f"{GOAL} was not reached in {number} epochs")
            samples[way].append(spent_s)
            samples["epochs"].append(number)
    return samples


def run(quick: bool = False) -> Outcome:
    threads()
    rounds, size, count = (1, 32, 16) if quick else (5, 64, 64)
    digits = load_digits("val")
    images = coloured(digits.images[:count], torch.Generator().manual_seed(0))
    images = interpolate(images, size=size, mode="bilinear")
    targets = (digits.labels[:count] % 2).float()
    vgg = models.vgg19(weights=None) if not quick else SmallCNN(1000)
    by_epoch = epochs(vgg, 1000, images, targets, rounds, f"VGG19 at {size}x{size}")
    ten = [
        10 * every / (extraction + 10 * once)
        for every, once, extraction in zip(*by_epoch.values(), strict=True)
    ]
    goal = to_goal(1 if quick else 15)
    name = "VGG19, 64 pictures of 64x64, an epoch"
    median = {way: pd.Series(values).median() for way, values in by_epoch.items()}
    rows = [
        {
            "task": name,
            f"{EVERY}, s": round(median[EVERY], 3),
            f"{ONCE}, s": round(median[ONCE], 4),
            "times faster": round(ratio(by_epoch, EVERY, ONCE)),
        },
        {
            "task": "the same, ten epochs, with the extraction",
            f"{EVERY}, s": round(10 * median[EVERY], 2),
            f"{ONCE}, s": round(median["extraction"] + 10 * median[ONCE], 3),
            "times faster": round(float(pd.Series(ten).median()), 1),
        },
        {
            "task": f"SmallCNN, 397 digits, to accuracy {GOAL} "
            f"({goal['epochs'][0]} epochs)",
            f"{EVERY}, s": round(pd.Series(goal[EVERY]).median(), 3),
            f"{ONCE}, s": round(pd.Series(goal[ONCE]).median(), 3),
            "times faster": round(ratio(goal, EVERY, ONCE), 1),
        },
    ]
    ratios = {
        "VGG19, an epoch, every / once": ratio(by_epoch, EVERY, ONCE),
        "VGG19, ten epochs with extraction, every / once": float(
            pd.Series(ten).median()
        ),
        f"SmallCNN to accuracy {GOAL}, every / once": ratio(goal, EVERY, ONCE),
    }
    return Outcome(pd.DataFrame(rows), ratios, {"epoch": by_epoch, "goal": goal})


def plot(table: pd.DataFrame, axis) -> str:
    bars = axis.barh(table["task"], table["times faster"], color="#0072B2")
    axis.bar_label(bars, padding=3)
    axis.set_xscale("log")
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set(xlabel=f"times faster than {EVERY} (log scale)")
    return "Features computed once: how many times faster the head is trained"
