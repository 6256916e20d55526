"""Pretrained weights by torchvision's own loading, and what happens without them."""

import contextlib
import hashlib
import io
import os
import re
import socket
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import nn
from torchvision.models import WeightsEnum


class PretrainedError(RuntimeError):
    """A file of pretrained weights can't be used; the message says what to do."""


def cached_file(weights: WeightsEnum) -> Path:
    """Where torchvision looks before it downloads, whether the file is there or not."""
    name = Path(urlparse(weights.url).path).name
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def pretrained_or_random(
    builder: Callable[..., nn.Module], weights: WeightsEnum, timeout_s: float = 10.0
) -> tuple[nn.Module, bool]:
    """`builder(weights=weights)` if the weights can be had, else `builder()`.

    The weights come from torchvision's cache, or are downloaded into it. Where neither
    works, one line says what was tried and what to do, and the weights are random:
    enough to see how things work, useless for predictions. With the variable
    COURSE_OFFLINE set, as in the course's own tests, nothing is downloaded.

    Args:
        builder: a function of torchvision.models, such as `vgg19`.
        weights: of that builder, such as `VGG19_Weights.IMAGENET1K_V1`.
        timeout_s: how long one step of the network may take, not the whole download.

    Returns the model, in train mode as torchvision gives it, and whether it is
    pretrained.

    Raises:
        PretrainedError: the file in the cache is damaged. torchvision checks the hash
            of a download, and never again.
    """
    if (file := cached_file(weights)).exists():
        _check(file)
        return builder(weights=weights), True
    if os.environ.get("COURSE_OFFLINE"):
        return _random(builder, weights, "not tried, as COURSE_OFFLINE is set")
    earlier = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_s)  # torch.hub sets none: it could wait for ever
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return builder(weights=weights), True
    except (OSError, HTTPException, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "invalid hash" not in str(error):
            raise
        return _random(builder, weights, f"failed: {error or type(error).__name__}")
    finally:
        socket.setdefaulttimeout(earlier)


def _random(
    builder: Callable[..., nn.Module], weights: WeightsEnum, download: str
) -> tuple[nn.Module, bool]:
    """The model with random weights, and one line that says what that means."""
    file = str(cached_file(weights)).replace(str(Path.home()), "~", 1)
    print(
        f"{weights}: {file} is not there (download {download}). So the weights are "
        "RANDOM: all steps work, the predictions mean nothing. For the real ones, put "
        f"{weights.url} there by hand, and run this again."
    )
    return builder(weights=None), False


def _check(file: Path) -> None:
    """Compare the file's SHA-256 with the beginning of it in the file's name."""
    expected = re.search(r"-([0-9a-f]{8,})\.", file.name)
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if expected and not found.startswith(expected[1]):
        raise PretrainedError(
            f"{file} is damaged: its SHA-256 begins with {found[: len(expected[1])]}, "
            f"not {expected[1]}. Delete it, and run this again to download it."
        )
