"""Summaries of torchvision's classifiers: right totals, crashes, side effects, time.

python -m benchmarks.summary MODEL TOOL    # one summary, in a process of its own
"""

import contextlib
import io
import json
import re
import statistics
import sys
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import pandas as pd
import torch
from torch import nn
from torchvision import models

from benchmarks.common import Outcome, fresh, in_turn, peak_mib, ratio, threads

NAME, TITLE = "summary", "Summaries of torchvision's 80 classifiers"
TIMED = ["alexnet", "vgg19", "resnet50", "mobilenet_v3_small", "googlenet", "swin_t"]
SHAPE = (3, 224, 224)
Tool = Callable[[nn.Module, tuple[int, ...]], tuple[int, int]]


def by_torchsummary(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    from torchsummary import summary

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        summary(model, shape, device="cpu")
    found = re.findall(r"(?:Total|Trainable) params: ([\d,]+)", printed.getvalue())
    total, trainable = (int(number.replace(",", "")) for number in found)
    return total, trainable


def by_torchinfo(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    import torchinfo

    found = torchinfo.summary(model, (1, *shape), device="cpu", verbose=0)
    return found.total_params, found.trainable_params


def by_ours(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    from helpers.summary import summarize

    found = summarize(model, shape)
    return found.total_params, found.trainable_params


TOOLS: dict[str, Tool] = {
    "torchsummary": by_torchsummary,
    "torchinfo": by_torchinfo,
    "helpers.summary": by_ours,
}


def build(name: str) -> nn.Module:
    """In train mode, zeros for weights: to draw random ones takes longer than all."""
    fills = [n for n in dir(nn.init) if n.endswith("_") and not n.startswith("__")]
    fills += [n for n in dir(nn.init) if n.startswith("_no_grad_")]
    left = dict.fromkeys(fills, lambda tensor, *args, **kwargs: tensor)
    with mock.patch.multiple(nn.init, **left), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = models.get_model(name, weights=None).train()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.numel() < 2**20:  # a larger one is zero as the system gives it
                tensor.zero_()
    if name == "inception_v3":  # its own code refuses 224 in train mode
        model.eval()
    return model


def state(model: nn.Module) -> dict[str, Any]:
    """What a summary should leave as it was."""
    modules = list(model.modules())
    return {
        "mode": [module.training for module in modules],
        "buffers": [buffer.clone() for buffer in model.buffers()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        "random state": torch.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def judge(name: str, tool: str) -> dict[str, bool]:
    """One summary of one model: right? crashed? what has changed?"""
    model = build(name)
    parameters = list(model.parameters())
    for parameter in parameters[: len(parameters) // 2]:
        parameter.requires_grad_(False)
    total = sum(p.numel() for p in parameters)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    before, verdict = state(model), {"crash": False}
    found: tuple[int, int] | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # What is right does not depend on the size; these two take 224 alone
            side = 224 if name.startswith(("vit", "maxvit")) else 96
            found = TOOLS[tool](model, (3, side, side))
    except Exception:  # of every kind: that is what is counted
        verdict["crash"] = True
    after = state(model)
    verdict["total right"] = found is not None and found[0] == total
    verdict["trainable right"] = found is not None and found[1] == trainable
    for what in before:
        verdict[f"{what} changed"] = not same(before[what], after[what])
    return verdict


def run(quick: bool = False) -> Outcome:
    """All models once for what is right; six of them in turn for time and memory."""
    threads()
    names = models.list_models(module=models)
    timed = TIMED
    if quick:
        names, timed = ["alexnet", "swin_t"], ["alexnet"]
    from tqdm import tqdm

    verdicts = {tool: [] for tool in TOOLS}
    for name in tqdm(names, desc="right?"):
        for tool in TOOLS:
            verdicts[tool].append(judge(name, tool))
    samples: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    for name in timed:
        model = build(name)
        ways = {}
        for tool, way in TOOLS.items():
            ways[tool] = lambda way=way, model=model: way(model, SHAPE)
        for tool, values in in_turn(ways, 1 if quick else 3, name).items():
            samples[tool] += values
    memory = {
        tool: [fresh("summary", name, tool)["extra_mib"] for name in timed]
        for tool in tqdm(TOOLS, desc="memory")
    }
    rows = []
    for tool in TOOLS:
        sums = pd.DataFrame(verdicts[tool]).sum()
        rows.append(
            {"tool": tool, "models": len(names)}
            | {column: int(count) for column, count in sums.items()}
            | {
                "median s": round(statistics.median(samples[tool]), 3),
                "extra peak MiB": round(statistics.median(memory[tool])),
            }
        )
    table = pd.DataFrame(rows)
    ratios = {
        "totals right, helpers.summary of all": rows[2]["total right"] / len(names),
        "totals right, torchsummary of all": rows[0]["total right"] / len(names),
        "time, torchsummary / helpers.summary": ratio(
            samples, "torchsummary", "helpers.summary"
        ),
        "time, torchinfo / helpers.summary": ratio(
            samples, "torchinfo", "helpers.summary"
        ),
    }
    return Outcome(table, ratios, {"seconds": samples, "extra_mib": memory})


def plot(table: pd.DataFrame, axis) -> str:
    columns = ["total right", "trainable right"]
    table.plot.barh(x="tool", y=columns, ax=axis, color=["#0072B2", "#E69F00"])
    for container, hatch in zip(axis.containers, ("", "///"), strict=True):
        axis.bar_label(container, padding=3)
        for bar in container:
            bar.set_hatch(hatch)
            bar.set_edgecolor("white")
    axis.invert_yaxis()
    axis.set(xlabel=f"models of {table['models'].iloc[0]}", ylabel="")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    always = table[table["trainable right"] == table["models"]]["tool"].tolist()
    return f"Right in every model, frozen in part: {', '.join(always) or 'none'}"


if __name__ == "__main__":
    threads()
    subject, tool_name = sys.argv[1:]
    made = build(subject)
    with contextlib.suppress(ImportError):
        __import__(tool_name if tool_name != "helpers.summary" else "torchinfo")
    start = peak_mib()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TOOLS[tool_name](made, SHAPE)
    print(json.dumps({"extra_mib": peak_mib() - start}))
