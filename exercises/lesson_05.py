"""Lesson 05: transfer learning, and its deeper lesson: when does it pay?"""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from exercises import N_, Exercise, Wrong, define


def _choice(answer: str, correct: bool, feedback: str) -> dict:
    return {"answer": answer, "correct": correct, "feedback": feedback}


QUIZZES = {
    "unknown_thing": [
        {
            "question": "ImageNet's 1,000 classes include neither an astronaut nor the "
            "moon. What does the network predict for a photograph of one?",
            "type": "multiple_choice",
            "answers": [
                _choice(
                    "that it does not know what it is",
                    False,
                    "The network has no such output, only one score per class.",
                ),
                _choice(
                    "about 0.001 for each of the 1,000 classes",
                    False,
                    "It was never trained to do that: every training image belonged "
                    "to one of the classes.",
                ),
                _choice(
                    "one of its 1,000 classes",
                    True,
                    "Yes. The probabilities always add up to 1, so one class gets "
                    "the largest. Look at how large it is.",
                ),
            ],
        }
    ],
    "frozen_train": [
        {
            "question": "All parameters are frozen, and there is no optimizer and no "
            "backward pass. We run one batch in train mode through VGG19 with "
            "BatchNorm. Which of its tensors change?",
            "type": "multiple_choice",
            "answers": [
                _choice(
                    "none",
                    False,
                    "requires_grad = False stops gradients, but some tensors change "
                    "without a gradient.",
                ),
                _choice(
                    "the buffers of the BatchNorm layers",
                    True,
                    "Yes: forward() itself updates the running statistics.",
                ),
                _choice(
                    "all tensors of the BatchNorm layers",
                    False,
                    "Their weight and bias are parameters: only an optimizer changes "
                    "those. What else does a BatchNorm layer have?",
                ),
            ],
        }
    ],
}


# -- freeze_body: a frozen body that stays as it is ------------------------------------


class _Net(nn.Module):
    """A body with BatchNorm and Dropout, a head with Dropout; notes the modes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.1), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4 * 6 * 6, 3))
        self.modes: list[tuple[bool, bool]] = []  # of the two Dropouts, at each run
        self.head.register_forward_pre_hook(self._note)

    def _note(self, *_) -> None:
        self.modes.append((self.body[2].training, self.head[0].training))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def _check_freeze_body(freeze_body):
    torch.manual_seed(0)
    model = _Net()
    images, labels = torch.randn(3, 4, 3, 8, 8), torch.randint(3, (3, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # as in training: epoch after epoch
        before = copy.deepcopy(model.state_dict())
        model.modes.clear()
        model.eval()  # the last epoch ended with a validation
        freeze_body(model)
        if not all(p.requires_grad for p in model.head.parameters()):
            raise Wrong("The head is frozen too, but it must train. Section 2.")
        for x, y in zip(images, labels, strict=True):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after = model.state_dict()
        moved = {k for k in before if not torch.equal(before[k], after[k])}
        own = {f"body.{name}" for name, _ in model.body.named_parameters()}
        if found := sorted(moved & own):
            raise Wrong(
                "The body was trained: {} changed. Freeze its parameters, with "
                "requires_grad_(False). (`body.requires_grad = False`, without the "
                "underscore, only sets an attribute of the module.) Section 2.",
                found,
            )
        if found := sorted(k for k in moved if k.startswith("body.")):
            raise Wrong(
                "The body's running statistics changed: {}. It was in train mode "
                "during a forward pass: model.train() reaches all submodules, and "
                "undoes a body.eval() before it. Section 3.",
                found,
            )
        if any(body for body, _ in model.modes):
            raise Wrong(
                "BatchNorm is in eval mode, but the body's Dropout is still active. "
                "Put the whole body into eval mode. Section 3."
            )
        if not all(head for _, head in model.modes):
            raise Wrong(
                "The head's Dropout is off: the head is in eval mode while it trains. "
                "Only the body should be in eval mode. Section 3."
            )


def _freeze_body_start(model):
    """Called before each epoch: the head will train, the body will not change."""
    model.body.requires_grad_(False)
    model.body.eval()
    model.train()


def _freeze_body(model):
    model.body.requires_grad_(False)
    model.train()
    model.body.eval()


def _all_eval(model):
    model.body.requires_grad_(False)
    model.eval()


def _not_frozen(model):
    model.train()
    model.body.eval()


def _batch_norm_only(model):
    model.body.requires_grad_(False)
    model.train()
    for module in model.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _no_eval(model):
    model.body.requires_grad_(False)
    model.train()


def _attribute_only(model):
    model.body.requires_grad = False
    model.train()
    model.body.eval()


def _never_train(model):
    model.body.requires_grad_(False)
    model.body.eval()


def _freezes_all(model):
    model.requires_grad_(False)
    model.train()
    model.body.eval()


freeze_body = Exercise(
    _check_freeze_body,
    start=_freeze_body_start,
    hints=[
        "In which mode is model.body when the function returns?",
        "model.train() sets the mode of every submodule. What if you called it first?",
        "Swap two lines: model.train(), then model.body.eval().",
    ],
    solution=_freeze_body,
    text="""
def freeze_body(model):
    model.body.requires_grad_(False)
    model.train()
    model.body.eval()  # after train(), which reaches all submodules
""",
    wrong_answers=[
        (_all_eval, "head's Dropout is off"),
        (_not_frozen, "The body was trained"),
        (_batch_norm_only, "Dropout is still active"),
        (_no_eval, "running statistics changed"),
        (_freezes_all, "head is frozen too"),
        (_attribute_only, "only sets an attribute"),
        (_never_train, "head's Dropout is off"),
    ],
)


# -- two_datasets: augmentation that does not touch validation -------------------------


@contextmanager
def _pictures() -> Iterator[Path]:
    """A folder of two classes: black, white, and left half black."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("first", "second"):
            (folder / kind).mkdir()
            Image.new("RGB", (60, 40)).save(folder / kind / "a_black.png")
            Image.new("RGB", (60, 40), "white").save(folder / kind / "b_white.png")
            half = Image.new("RGB", (60, 40), "white")
            half.paste("black", (0, 0, 30, 40))
            half.save(folder / kind / "c_half.png")
        yield folder


def _check_two_datasets(two_datasets):
    with _pictures() as folder:
        for size in (32, 24):
            pair = two_datasets(folder, size)
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise Wrong("Return two datasets: train_images, plain_images.")
            _check_pair(*pair, size)


def _check_pair(train_images, plain_images, size):
    if train_images is plain_images:
        raise Wrong(
            "Both are the same ImageFolder, so they share one transform: if you set "
            "it for validation, training loses its augmentation. Create two. "
            "Section 4."
        )
    for name, images in (("train", train_images), ("plain", plain_images)):
        if len(images) != 6:
            raise Wrong(
                "{}_images has {} images, the folder has 6.",
                name,
                len(images),
            )
        for number, value in ((0, -1.0), (1, 1.0)):
            picture, _ = images[number]
            shape = getattr(picture, "shape", type(picture).__name__)
            if shape != (3, size, size):
                raise Wrong(
                    "An image from {}_images should have the shape {}; found {}. "
                    "Section 4.",
                    name,
                    (3, size, size),
                    shape,
                )
            if picture.dtype != torch.float32:
                raise Wrong(
                    "An image from {}_images should be torch.float32, as the "
                    "network's weights are; found {}. Section 4.",
                    name,
                    picture.dtype,
                )
            if not torch.allclose(picture, torch.tensor(value), atol=0.02):
                colour, mean = "black" if value < 0 else "white", picture.mean()
                raise Wrong(
                    "A {} image from {}_images should be {} everywhere; found "
                    "{:.2f} on average. Both transforms need the same "
                    "normalization, the one that the network was trained with. (And "
                    "crop and mirror only: rotations and colour changes are not "
                    "part of this exercise.) Section 4.",
                    colour,
                    name,
                    value,
                    mean,
                )
    reads = [plain_images[2][0] for _ in range(12)]
    if any(not torch.equal(reads[0], read) for read in reads):
        raise Wrong(
            "plain_images returns a different image each time. Validation must use "
            "the same images in every epoch, or you cannot compare epochs: use no "
            "random transform. Section 4."
        )
    reads = [train_images[2][0] for _ in range(40)]
    kinds = {read.numpy().tobytes() for read in reads}
    if len(kinds) == 1:
        raise Wrong(
            "train_images returns the same image each time: there is no "
            "augmentation. Section 4."
        )
    gaps = [r[..., : size // 2].mean() - r[..., size // 2 :].mean() for r in reads]
    mirrored = {bool(gap > 0) for gap in gaps if abs(gap) > 0.05}  # black was left
    if len(mirrored) == 1:
        often = "every" if mirrored == {True} else "no"
        raise Wrong(
            "train_images mirrors {} image: RandomHorizontalFlip does it with "
            "probability 0.5. Section 4.",
            often,
        )
    if len(kinds) == 2:
        raise Wrong("train_images only mirrors: crop at random too. Section 4.")


def _end() -> list:
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ]


def _augmented(size: int, end: list) -> v2.Compose:
    return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *end])


def _plain(size: int, end: list) -> v2.Compose:
    return v2.Compose([v2.Resize((size, size)), *end])


def _two_datasets_start(folder, size):
    """(train_images, plain_images) of one folder: augmented, and not."""


def _two_datasets(folder, size):
    return (
        ImageFolder(folder, _augmented(size, _end())),
        ImageFolder(folder, _plain(size, _end())),
    )


def _one_object(folder, size):
    train_images = plain_images = ImageFolder(folder, _augmented(size, _end()))
    plain_images.transform = _plain(size, _end())
    return train_images, plain_images


def _both_random(folder, size):
    transform = _augmented(size, _end())
    return ImageFolder(folder, transform), ImageFolder(folder, transform)


def _both_plain(folder, size):
    transform = _plain(size, _end())
    return ImageFolder(folder, transform), ImageFolder(folder, transform)


def _other_end(folder, size):
    return (
        ImageFolder(folder, _augmented(size, _end())),
        ImageFolder(folder, _plain(size, _end()[:2])),
    )


def _flips_only(folder, size):
    flip = v2.Compose([v2.RandomHorizontalFlip(), *_plain(size, _end()).transforms])
    return ImageFolder(folder, flip), ImageFolder(folder, _plain(size, _end()))


def _always_mirrored(folder, size):
    mirror = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(1), *_end()]
    plain = _plain(size, _end())
    return ImageFolder(folder, v2.Compose(mirror)), ImageFolder(folder, plain)


def _never_mirrored(folder, size):
    crop = v2.Compose([v2.RandomResizedCrop(size), *_end()])
    return ImageFolder(folder, crop), ImageFolder(folder, _plain(size, _end()))


def _float64(folder, size):
    end = [v2.ToImage(), v2.ToDtype(torch.float64, scale=True), *_end()[2:]]
    train_images = ImageFolder(folder, _augmented(size, _end()))
    return train_images, ImageFolder(folder, _plain(size, end))


def _short_side(folder, size):
    plain = v2.Compose([v2.Resize(size), *_end()])
    return ImageFolder(folder, _augmented(size, _end())), ImageFolder(folder, plain)


two_datasets = Exercise(
    _check_two_datasets,
    start=_two_datasets_start,
    hints=[
        "A transform belongs to its ImageFolder. How many ImageFolders do you need?",
        "Both transforms end with the same steps: ToImage, ToDtype(torch.float32, "
        "scale=True), Normalize. Only the steps before these differ.",
        "Training: v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(). "
        "Plain: v2.Resize((size, size)).",
    ],
    solution=_two_datasets,
    text="""
def two_datasets(folder, size):
    end = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ]
    augment = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    train_images = ImageFolder(folder, v2.Compose([*augment, *end]))
    plain_images = ImageFolder(folder, v2.Compose([v2.Resize((size, size)), *end]))
    return train_images, plain_images
""",
    wrong_answers=[
        (_one_object, "the same ImageFolder"),
        (_both_random, "a different image each time"),
        (_both_plain, "no augmentation"),
        (_other_end, "the same normalization"),
        (_flips_only, "only mirrors"),
        (_always_mirrored, "mirrors every image"),
        (_never_mirrored, "mirrors no image"),
        (_float64, "should be torch.float32"),
        (_short_side, "should have the shape"),
    ],
)


# -- five_classes: another head, and a rate for each part ------------------------------


def _check_five_classes(for_five_classes):
    torch.manual_seed(0)
    model = models.resnet18()
    before = copy.deepcopy(model.state_dict())
    optimizer = for_five_classes(model)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise Wrong(
            "Return the optimizer; found {}.",
            type(optimizer).__name__,
        )
    if not isinstance(optimizer, torch.optim.AdamW):
        raise Wrong(
            "Return an AdamW; found {}. Section 5.",
            type(optimizer).__name__,
        )
    with torch.no_grad():
        outputs = model.eval()(torch.zeros(1, 3, 32, 32)).shape[1]
    if outputs != 5:
        raise Wrong(
            "The model you were given has {} outputs, not 5. Replace its last "
            "layer, model.fc, in place. Section 2.",
            outputs,
        )
    if not isinstance(model.fc, nn.Linear) or model.fc.in_features != 512:
        raise Wrong(
            "model.fc should be one new Linear(512, 5); found {}. A layer behind "
            "the old one gets its 1,000 scores, not the features. Section 2.",
            model.fc,
        )
    after = model.state_dict()
    lost = [k for k in before if k[:2] != "fc" and not torch.equal(before[k], after[k])]
    if lost:
        raise Wrong(
            "You changed the body's weights: {}. Section 2.",
            lost[0],
        )
    parts = {name: name.split(".")[0] for name, _ in model.named_parameters()}
    open_parts = {parts[n] for n, p in model.named_parameters() if p.requires_grad}
    shut = {parts[n] for n, p in model.named_parameters() if not p.requires_grad}
    if "fc" in shut:
        raise Wrong(
            "The new head is frozen. A new layer is trainable, so freeze first and "
            "replace afterwards. Section 2."
        )
    if "layer4" in shut:
        raise Wrong("layer4 is frozen: it should train as well. Section 5.")
    if extra := sorted(open_parts - {"fc", "layer4"}):
        raise Wrong(
            "{} still train. Freeze the whole model first. Section 2.",
            extra,
        )
    rates = _rates(optimizer)
    named = dict(model.named_parameters())
    if any(id(p) not in rates for n, p in named.items() if parts[n] == "fc"):
        raise Wrong(
            "The optimizer does not contain the new head's parameters. If you built "
            "it with the old head, replace the layer first. Section 5."
        )
    if any(id(p) not in rates for n, p in named.items() if parts[n] == "layer4"):
        raise Wrong(
            "layer4 is trainable, but not in the optimizer: it gets gradients, but is "
            "never updated. Section 5."
        )
    if any(
        id(p) in rates for n, p in named.items() if parts[n] not in ("fc", "layer4")
    ):
        raise Wrong(
            "The optimizer contains frozen parameters. They never get a gradient: pass "
            "only those of layer4 and fc. Section 5."
        )
    head, last = (
        {rates[id(p)] for n, p in named.items() if parts[n] == part}
        for part in ("fc", "layer4")
    )
    if head == last:
        raise Wrong(
            "Head and layer4 have the same learning rate, {}. Give each its own "
            "parameter group: 1e-3 for the head, 1e-4 for layer4. Section 5.",
            head,
        )
    if (head, last) != ({1e-3}, {1e-4}):
        raise Wrong(
            "The head's learning rate should be 1e-3 and layer4's 1e-4; found {} "
            "and {}. The new head needs large steps; large steps destroy what "
            "layer4 has learned. Section 5.",
            head,
            last,
        )


def _rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """A parameter's id -> its learning rate."""
    groups = optimizer.param_groups
    return {id(p): group["lr"] for group in groups for p in group["params"]}


def _adamw(**rates) -> torch.optim.Optimizer:
    """AdamW with a group of parameters for each rate: a=(parameters, rate)."""
    return torch.optim.AdamW([{"params": p, "lr": lr} for p, lr in rates.values()])


def _five_classes_start(model):
    """Make a ResNet18 ready for fine-tuning on 5 classes; return the optimizer."""


def _five_classes(model):
    model.requires_grad_(False)
    model.fc = nn.Linear(model.fc.in_features, 5)
    model.layer4.requires_grad_(True)
    return _adamw(
        last=(model.layer4.parameters(), 1e-4), head=(model.fc.parameters(), 1e-3)
    )


def _frozen_too_late(model):
    model.fc = nn.Linear(512, 5)
    model.requires_grad_(False)
    model.layer4.requires_grad_(True)
    return _adamw(a=(model.layer4.parameters(), 1e-4), b=(model.fc.parameters(), 1e-3))


def _on_top(model):
    model.requires_grad_(False)
    model.fc = nn.Sequential(model.fc, nn.Linear(1000, 5))
    model.layer4.requires_grad_(True)
    return _adamw(a=(model.layer4.parameters(), 1e-4), b=(model.fc.parameters(), 1e-3))


def _another_model(model):
    model = models.resnet18(num_classes=5)
    return _five_classes(model)


def _one_rate(model):
    _five_classes(model)
    opened = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(opened, lr=1e-3)


def _frozen_given(model):
    _five_classes(model)
    body = [p for name, p in model.named_parameters() if not name.startswith("fc")]
    return _adamw(body=(body, 1e-4), head=(model.fc.parameters(), 1e-3))


def _old_head(model):
    model.requires_grad_(False)
    model.layer4.requires_grad_(True)
    optimizer = _adamw(
        a=(model.layer4.parameters(), 1e-4), b=(model.fc.parameters(), 1e-3)
    )
    model.fc = nn.Linear(512, 5)
    return optimizer


def _swapped(model):
    _five_classes(model)
    return _adamw(a=(model.layer4.parameters(), 1e-3), b=(model.fc.parameters(), 1e-4))


def _sgd(model):
    return torch.optim.SGD(_five_classes(model).param_groups)


def _opened_not_passed(model):
    _five_classes(model)
    return _adamw(head=(model.fc.parameters(), 1e-3))


def _nothing_frozen(model):
    model.fc = nn.Linear(512, 5)
    return _adamw(a=(model.layer4.parameters(), 1e-4), b=(model.fc.parameters(), 1e-3))


def _layer4_shut(model):
    model.requires_grad_(False)
    model.fc = nn.Linear(512, 5)
    return _adamw(a=(model.layer4.parameters(), 1e-4), b=(model.fc.parameters(), 1e-3))


five_classes = Exercise(
    _check_five_classes,
    start=_five_classes_start,
    hints=[
        "Four steps: freeze the model, replace model.fc, unfreeze model.layer4, build "
        "AdamW. The order matters.",
        "A new nn.Linear is trainable. It takes model.fc.in_features inputs.",
        'AdamW takes a list of parameter groups: {"params": part.parameters(), "lr": '
        "lr}. Pass one for layer4 and one for fc, and nothing that is frozen.",
    ],
    solution=_five_classes,
    text="""
def for_five_classes(model):
    model.requires_grad_(False)
    model.fc = nn.Linear(model.fc.in_features, 5)  # new, so trainable
    model.layer4.requires_grad_(True)
    return torch.optim.AdamW(
        [
            {"params": model.layer4.parameters(), "lr": 1e-4},
            {"params": model.fc.parameters(), "lr": 1e-3},
        ]
    )
""",
    wrong_answers=[
        (_frozen_too_late, "freeze first"),
        (_on_top, "1,000 scores"),
        (_another_model, "The model you were given"),
        (_one_rate, "same learning rate"),
        (_frozen_given, "contains frozen parameters"),
        (_old_head, "new head's parameters"),
        (_swapped, "should be 1e-3"),
        (_sgd, "Return an AdamW"),
        (_opened_not_passed, "never updated"),
        (_nothing_frozen, "still train"),
        (_layer4_shut, "layer4 is frozen"),
        (lambda model: _five_classes(model) and model, "Return the optimizer"),
    ],
)


# -- keep_best: by validation, and the test once ---------------------------------------

_VAL = [0.9, 0.5, 0.7, 0.8]  # the loss after each epoch: the second is the best
_TEST = [0.5, 0.7, 0.6, 0.9]  # the accuracy of the same weights: the last is the best


def _check_keep_best(keep_best):
    for shift in (0, 1, 2):  # the best epoch is the second, the first, the last
        val = _VAL[shift:] + _VAL[:shift]
        _check_one_run(keep_best, val, val.index(min(val)) + 1)


def _check_one_run(keep_best, val, best):
    model, trained, tested = nn.Linear(1, 1, bias=False), [], []
    with torch.no_grad():
        model.weight.zero_()

    def epoch() -> int:
        return round(model.weight.item())

    def train_epoch(model):
        trained.append(epoch())
        with torch.no_grad():
            model.weight.add_(1)

    def val_loss(model):
        return val[epoch() - 1] if epoch() else 1.0  # 1.0: not trained yet

    def test_acc(model):
        tested.append(epoch())
        return _TEST[epoch() - 1]

    found = keep_best(model, train_epoch, val_loss, test_acc, len(val))
    if len(trained) != len(val):
        raise Wrong(
            "Train for {} epochs; your loop ran {}.",
            len(val),
            len(trained),
        )
    if len(tested) > 1:
        raise Wrong(
            "The test data were used {} times. What is chosen by the test data "
            "looks better on them than it is: choose by the validation loss, and "
            "test once, at the end. Section 6.",
            len(tested),
        )
    if epoch() == len(val) != best:
        raise Wrong(
            "Epoch {} had the lowest validation loss, but the model ends with the "
            "weights of the last epoch. Either they were not loaded, or what was "
            "kept has changed with the model: state_dict() copies no tensor. "
            "Section 4.",
            best,
        )
    if best == len(val) and epoch() != best:
        raise Wrong(
            "Epoch {}, the last, had the lowest validation loss; the model ends "
            "with the weights of epoch {}. Measure the loss after each epoch's "
            "training, the last one's too. Section 4.",
            best,
            epoch(),
        )
    if epoch() != best:
        raise Wrong(
            "The validation losses are {}, so epoch {} is the best; the model ends "
            "with the weights of epoch {}. A loss is better when it is lower. "
            "Section 4.",
            val,
            best,
            epoch(),
        )
    if not tested or tested[0] != best:
        raise Wrong(
            "Test the weights that you kept, of epoch {}; tested were those of "
            "epoch {}. Load them first. Section 6.",
            best,
            tested[0] if tested else "none",
        )
    if found != _TEST[best - 1]:
        raise Wrong(
            "Return the test accuracy of the kept weights, {}; found {}. Section 6.",
            _TEST[best - 1],
            found,
        )


def _keep_best_start(model, train_epoch, val_loss, test_acc, num_epochs):
    """Train, leave the best weights in the model, return their test accuracy."""


def _keep_best(model, train_epoch, val_loss, test_acc, num_epochs):
    best, best_loss = None, float("inf")
    for _ in range(num_epochs):
        train_epoch(model)
        if (loss := val_loss(model)) < best_loss:
            best, best_loss = copy.deepcopy(model.state_dict()), loss
    model.load_state_dict(best)
    return test_acc(model)


def _no_copy(model, train_epoch, val_loss, test_acc, num_epochs):
    best, best_loss = None, float("inf")
    for _ in range(num_epochs):
        train_epoch(model)
        if (loss := val_loss(model)) < best_loss:
            best, best_loss = model.state_dict(), loss
    model.load_state_dict(best)
    return test_acc(model)


def _highest_loss(model, train_epoch, val_loss, test_acc, num_epochs):
    best, best_loss = None, 0.0
    for _ in range(num_epochs):
        train_epoch(model)
        if (loss := val_loss(model)) > best_loss:
            best, best_loss = copy.deepcopy(model.state_dict()), loss
    model.load_state_dict(best)
    return test_acc(model)


def _by_test(model, train_epoch, val_loss, test_acc, num_epochs):
    best, best_acc = None, 0.0
    for _ in range(num_epochs):
        train_epoch(model)
        if (acc := test_acc(model)) > best_acc:
            best, best_acc = copy.deepcopy(model.state_dict()), acc
    model.load_state_dict(best)
    return best_acc


def _tests_the_last(model, train_epoch, val_loss, test_acc, num_epochs):
    best, best_loss = None, float("inf")
    for _ in range(num_epochs):
        train_epoch(model)
        if (loss := val_loss(model)) < best_loss:
            best, best_loss = copy.deepcopy(model.state_dict()), loss
    acc = test_acc(model)
    model.load_state_dict(best)
    return acc


def _measures_before(model, train_epoch, val_loss, test_acc, num_epochs):
    best, best_loss = None, float("inf")
    for _ in range(num_epochs):
        if (loss := val_loss(model)) < best_loss:
            best, best_loss = copy.deepcopy(model.state_dict()), loss
        train_epoch(model)
    model.load_state_dict(best)
    return test_acc(model)


def _an_epoch_short(model, train_epoch, val_loss, test_acc, num_epochs):
    return _keep_best(model, train_epoch, val_loss, test_acc, num_epochs - 1)


def _returns_loss(model, train_epoch, val_loss, test_acc, num_epochs):
    _keep_best(model, train_epoch, val_loss, test_acc, num_epochs)
    return val_loss(model)


keep_best = Exercise(
    _check_keep_best,
    start=_keep_best_start,
    hints=[
        "Which of the two measures may decide, and which only reports? The loop is "
        "that of `fit` in section 4.",
        "Decide by val_loss(model), where lower is better. Call test_acc once, after "
        "the best weights are loaded.",
        "Keep copy.deepcopy(model.state_dict()): the tensors of model.state_dict() "
        "change with the model.",
    ],
    solution=_keep_best,
    text="""
def keep_best(model, train_epoch, val_loss, test_acc, num_epochs):
    best, best_loss = None, float("inf")
    for _ in range(num_epochs):
        train_epoch(model)
        loss = val_loss(model)
        if loss < best_loss:
            best, best_loss = copy.deepcopy(model.state_dict()), loss
    model.load_state_dict(best)
    return test_acc(model)
""",
    wrong_answers=[
        (_no_copy, "copies no tensor"),
        (_highest_loss, "lower"),
        (_by_test, "test once"),
        (_tests_the_last, "Load them first"),
        (_returns_loss, "Return the test accuracy"),
        (_measures_before, "after each epoch's training"),
        (_an_epoch_short, "your loop ran 3"),
    ],
)


# -- the deeper lesson: when does it pay? ----------------------------------------------

QUIZZES["six_labels"] = [
    {
        "question": "A linear head on frozen features learns from six labels. How does "
        "it compare with no label at all, on the same pictures?",
        "type": "multiple_choice",
        "answers": [
            _choice(
                "better: six labels are more than none",
                False,
                "The head begins with random numbers. The answer without a label uses "
                "the head that ImageNet's 1.28 million labels have trained.",
            ),
            _choice(
                "the same: the features decide",
                False,
                "The features are the same. But six pictures say little about which "
                "of 1,280 features tell an animal from food.",
            ),
            _choice(
                "worse",
                True,
                "Yes. A new head forgets what the old one knew, and six pictures are "
                "too few to learn it again.",
            ),
        ],
    }
]


# -- features_once: frozen features, computed once -------------------------------------


def _check_features_once(features_once):
    torch.manual_seed(0)
    for size in (4, 5, 32):  # 10 images: the last batch is short, or full, or the only
        body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten()
        )
        images = torch.randn(10, 3, 6, 6) * 2 + 1
        with torch.no_grad():
            right = copy.deepcopy(body).eval()(images)
        buffers = {name: b.clone() for name, b in body.named_buffers()}
        found = features_once(body, images, size)
        if not isinstance(found, torch.Tensor) or found.dim() != 2:
            raise Wrong(
                "Return one tensor (N, F); yours is {!r}.",
                getattr(found, "shape", found),
            )
        if len(found) != len(images):
            raise Wrong(
                "For {} images in batches of {} there are {} rows of features: the "
                "last batch may be shorter, and its images need features too. Try "
                "images.split(batch_size).",
                len(images),
                size,
                len(found),
            )
        moved = [n for n, b in body.named_buffers() if not torch.equal(b, buffers[n])]
        if moved:
            raise Wrong(
                "The body came in train mode and stayed in it: {} moved, and an "
                "image's features depend on its batch. Section 2.",
                moved,
            )
        if found.is_inference():
            raise Wrong(
                "These are inference tensors: a head can't train on them (\"Inference "
                'tensors cannot be saved for backward"). Use torch.no_grad().'
            )
        if found.requires_grad:
            raise Wrong(
                "The features require a gradient: each of them keeps the whole body's "
                "activations in memory. Compute them under torch.no_grad()."
            )
        if not torch.allclose(found, right, atol=1e-4):
            if torch.allclose(found.sort(0).values, right.sort(0).values, atol=1e-4):
                raise Wrong(
                    "The rows are in another order than the images: their labels would "
                    "belong to other images. Section 2."
                )
            raise Wrong(
                "The features are not the body's own in eval mode. Is all of it in "
                "eval mode, Dropout too, and every image as it came? Section 2."
            )


def _features_once_start(body, images, batch_size):
    """Features (N, F) of images (N, 3, H, W), in batches, for a head to train on."""
    features = []
    for number in range(len(images) // batch_size):
        batch = images[number * batch_size : (number + 1) * batch_size]
        features.append(body(batch))
    return torch.cat(features)


def _features_once(body, images, batch_size):
    body.eval()
    with torch.no_grad():
        return torch.cat([body(batch) for batch in images.split(batch_size)])


def _short_of_some(body, images, batch_size):
    body.eval()
    whole = len(images) // batch_size * batch_size
    with torch.no_grad():
        batches = images[:whole].split(batch_size)
        return torch.cat([body(batch) for batch in batches])


def _still_in_train_mode(body, images, batch_size):
    body.requires_grad_(False)
    with torch.no_grad():
        return torch.cat([body(batch) for batch in images.split(batch_size)])


def _with_gradients(body, images, batch_size):
    body.eval()
    return torch.cat([body(batch) for batch in images.split(batch_size)])


@torch.inference_mode()
def _inference_tensors(body, images, batch_size):
    body.eval()
    return torch.cat([body(batch) for batch in images.split(batch_size)])


@torch.no_grad()
def _shuffled(body, images, batch_size):
    body.eval()
    order = torch.arange(len(images)).flip(0)
    return torch.cat([body(batch) for batch in images[order].split(batch_size)])


@torch.no_grad()
def _dropout_on(body, images, batch_size):
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return torch.cat([body(batch) for batch in images.split(batch_size)])


@torch.no_grad()
def _a_list(body, images, batch_size):
    body.eval()
    return [body(batch) for batch in images.split(batch_size)]


features_once = Exercise(
    _check_features_once,
    start=_features_once_start,
    hints=[
        "One fault is about images that are left out, one about the body's mode, one "
        "about memory.",
        "images.split(batch_size) yields a shorter last batch as well.",
        "body.eval() first, and the loop under `with torch.no_grad():`.",
    ],
    solution=_features_once,
    text="""
def features_once(body, images, batch_size):
    body.eval()
    with torch.no_grad():
        return torch.cat([body(batch) for batch in images.split(batch_size)])
""",
    wrong_answers=[
        (_short_of_some, "the last batch"),
        (_still_in_train_mode, "train mode"),
        (_with_gradients, "require a gradient"),
        (_inference_tensors, "inference tensors"),
        (_shuffled, "another order"),
        (_dropout_on, "Dropout too"),
        (_a_list, "one tensor"),
    ],
)


# -- margin: ahead of the strongest control, seed by seed ------------------------------


def _check_margin(margin):
    for ours, controls in (
        (
            [0.75, 1.0, 0.75, 0.625],
            {"a": [0.5, 0.5, 1.0, 0.75], "b": [0.75, 0.5, 0.5, 0.25]},
        ),
        ([0.5, 0.75], {"a": [0.5, 0.25], "b": [0.125, 0.125], "c": [0.0, 0.5]}),
        ([0.25, 0.5, 0.25], {"only": [0.5, 0.25, 0.75]}),
    ):
        found = margin(list(ours), {name: list(c) for name, c in controls.items()})
        if not isinstance(found, tuple) or len(found) != 2:
            raise Wrong(
                "Return (mean difference, seeds ahead); yours is {!r}.",
                found,
            )
        strongest = max(controls.values(), key=sum)
        pairs = list(zip(ours, strongest, strict=True))
        mean = sum(a - b for a, b in pairs) / len(pairs)
        ahead = sum(a > b for a, b in pairs)
        if abs(found[0] - mean) < 1e-6 and found[1] == ahead:
            continue
        by_seed = [max(column) for column in zip(*controls.values(), strict=True)]
        all_controls = [sum(c) / len(c) for c in controls.values()]
        our_mean = sum(ours) / len(ours)
        reasons = {
            "That compares the luckiest seed of each. The best of five is not what you "
            "get next time: compare means.": max(ours)
            - max(map(max, controls.values())),
            "That is the distance to the average control. A weak control pulls it "
            "down, and you look good: take the strongest.": our_mean
            - sum(all_controls) / len(all_controls),
            "That is the distance to the weakest control: take the strongest.": our_mean
            - min(all_controls),
            "That takes another control for each seed, the winner of that seed. Nobody "
            "can choose a method so: choose one control, by its mean.": our_mean
            - sum(by_seed) / len(by_seed),
        }
        close = (
            text for text, value in reasons.items() if abs(found[0] - value) < 1e-6
        )
        reason = next(
            close, N_("That is not the mean difference to the strongest control.")
        )
        if abs(found[0] - mean) < 1e-6:
            reason = N_(
                "The mean is right. For the count compare seed with seed: ours "
                "against the strongest control's, and equal is not ahead."
            )
        raise Wrong(
            "{} For ours {} and controls {} expected ({:.4f}, {}), found {}. "
            "Section 6.",
            reason,
            ours,
            controls,
            mean,
            ahead,
            found,
        )


def _margin_start(ours, controls):
    """(Mean of ours minus the strongest control, seeds in which ours is ahead)."""
    strongest = max(max(accuracies) for accuracies in controls.values())
    ahead = sum(accuracy > strongest for accuracy in ours)
    return max(ours) - strongest, ahead


def _margin(ours, controls):
    strongest = max(controls.values(), key=sum)
    differences = [a - b for a, b in zip(ours, strongest, strict=True)]
    return sum(differences) / len(differences), sum(d > 0 for d in differences)


def _mean(values):
    return sum(values) / len(values)


def _luckiest(ours, controls):
    best = max(max(accuracies) for accuracies in controls.values())
    return max(ours) - best, sum(a >= best for a in ours)


def _against_average(ours, controls):
    average = _mean([_mean(accuracies) for accuracies in controls.values()])
    return _mean(ours) - average, sum(a > average for a in ours)


def _against_weakest(ours, controls):
    return _margin(ours, {"weakest": min(controls.values(), key=sum)})


def _against_each_winner(ours, controls):
    by_seed = zip(*controls.values(), strict=True)
    return _margin(ours, {"any": [max(column) for column in by_seed]})


def _ties_count(ours, controls):
    strongest = max(controls.values(), key=sum)
    pairs = zip(ours, strongest, strict=True)
    return _margin(ours, controls)[0], sum(a >= b for a, b in pairs)


margin = Exercise(
    _check_margin,
    start=_margin_start,
    hints=[
        "Which control is the strongest: the one with the best single run, or with the "
        "best mean?",
        "All lists have one accuracy for each seed, so max(controls.values(), key=sum) "
        "is the control with the best mean.",
        "zip(ours, strongest) gives pairs of one seed. Return the mean of their "
        "differences, and how many are above 0.",
    ],
    solution=_margin,
    text="""
def margin(ours, controls):
    strongest = max(controls.values(), key=sum)  # one accuracy a seed in each
    differences = [a - b for a, b in zip(ours, strongest)]
    return sum(differences) / len(differences), sum(d > 0 for d in differences)
""",
    wrong_answers=[
        (_luckiest, "luckiest seed"),
        (_against_average, "average control"),
        (_against_weakest, "weakest control"),
        (_against_each_winner, "another control for each seed"),
        (_ties_count, "equal is not ahead"),
        (lambda ours, controls: _margin(ours, controls)[0], "Return (mean"),
    ],
)

quiz = define(globals())
