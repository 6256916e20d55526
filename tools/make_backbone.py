"""Write data/digits_backbone.pt: SmallCNN trained on the ten digits in random colours.

    .venv/bin/python -m tools.make_backbone [FILE]

Lesson 05 takes this file as its pretrained network. The recipe, all from one seed: the
split "train" of the digits (1,000 images), painted anew at every step by
`helpers.data.coloured`; 40 epochs of AdamW with OneCycleLR, batches of 50; about 20 s
on two cores. The splits "val" and "test" are not used, so that the lesson may use them.
The file is a plain state_dict. Another CPU or PyTorch rounds differently and gives
other weights of the same quality: tests/test_backbone.py checks that of the file.
"""

import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import trange

from helpers.data import BACKBONE, coloured, load_digits
from helpers.models import SmallCNN
from helpers.training import seed_everything

BATCH_SIZE, LEARNING_RATE = 50, 1e-2


def train(num_epochs: int = 40, seed: int = 0) -> SmallCNN:
    """SmallCNN for the ten digits in any colours, in eval mode."""
    seed_everything(seed)
    digits = load_digits("train")
    model = SmallCNN()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.05
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=LEARNING_RATE,
        total_steps=num_epochs * (len(digits) // BATCH_SIZE),
    )
    for _ in trange(num_epochs, desc="epochs"):
        for batch in torch.randperm(len(digits)).split(BATCH_SIZE):
            logits = model(coloured(digits.images[batch]))  # (50, 10)
            loss = cross_entropy(logits, digits.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model: torch.nn.Module, split: str, seed: int = 0) -> float:
    """Share of a split's digits, each painted once, that the model reads rightly."""
    digits = load_digits(split)
    images = coloured(digits.images, torch.Generator().manual_seed(seed))
    return (model(images).argmax(1) == digits.labels).float().mean().item()


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else BACKBONE
    model = train()
    torch.save(model.state_dict(), target)
    shares = ", ".join(
        f"{accuracy(model, split):.3f} on {split}" for split in ("val", "test")
    )
    print(f"{target}: {target.stat().st_size:,} bytes, accuracy {shares}")
