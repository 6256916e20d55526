"""Summaries of torchvision's classifiers: right totals, crashes, side effects, time.

python -m benchmarks.summary MODEL TOOL    # one summary, in a process of its own

The largest model has Llama 2 7B's sizes: by default it is made as people make one, with
weights, under a limit of LIMIT_GIB; helpers.summary needs none, and takes it from meta.
"""

import contextlib
import io
import json
import re
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from benchmarks.common import Outcome, fresh, in_turn, peak_mib, ratio, threads

NAME, TITLE = "summary", "Summaries of torchvision's 80 classifiers"
TIMED = ["alexnet", "vgg19", "resnet50", "mobilenet_v3_small", "googlenet", "swin_t"]
SIZES = ["mobilenet_v3_small", "resnet50", "vgg19", "vit_h_14", "llama_2_7b"]
SHAPE = (3, 224, 224)
LIMIT_GIB = 16  # what a common laptop has
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


@contextlib.contextmanager
def no_random_weights() -> Iterator[None]:
    """To draw them takes longer than all else."""
    fills = [n for n in dir(nn.init) if n.endswith("_") and not n.startswith("__")]
    fills += [n for n in dir(nn.init) if n.startswith("_no_grad_")]
    left = dict.fromkeys(fills, lambda tensor, *args, **kwargs: tensor)
    with mock.patch.multiple(nn.init, **left), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build(name: str) -> nn.Module:
    """In train mode, with zeros for weights."""
    with no_random_weights():
        model = models.get_model(name, weights=None).train()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.numel() < 2**20:  # a larger one is zero as the system gives it
                tensor.zero_()
    if name == "inception_v3":  # its own code refuses 224 in train mode
        model.eval()
    return model


class Llama2(nn.Module):
    """A decoder of Llama 2 7B's sizes (arxiv.org/abs/2307.09288), without its rotation.

    Tokens of shape (batch, length) give logits of shape (batch, length, 32000).
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32000, 4096)
        self.blocks = nn.Sequential(*(Block() for _ in range(32)))
        self.norm = nn.RMSNorm(4096)
        self.head = nn.Linear(4096, 32000, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        # torchsummary sends floats
        return self.head(self.norm(self.blocks(self.embed(tokens.long()))))


class Block(nn.Module):
    def __init__(self, width: int = 4096, inner: int = 11008) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        heads = (t.view(batch, length, 32, -1).transpose(1, 2) for t in (q, k, v))
        attended = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        gate, up = self.gate_up(self.norms[1](x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def one_summary(name: str, tool: str) -> dict[str, float | None]:
    """Seconds and extra peak memory of one summary, the model made before it.

    Both are None if the model or its summary takes more than LIMIT_GIB.
    """
    threads()
    with contextlib.suppress(ImportError):
        __import__(tool if tool != "helpers.summary" else "torchinfo")
    shape = SHAPE
    if name == "llama_2_7b":
        limit = LIMIT_GIB * 2**30
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        shape = (128,)
    try:
        if name != "llama_2_7b":
            model = build(name)
        else:
            device = "meta" if tool == "helpers.summary" else "cpu"
            with torch.device(device), no_random_weights():
                model = Llama2()
        start_mib, start_s = peak_mib(), time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TOOLS[tool](model, shape)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return {"s": None, "extra_mib": None}
    spent_s = time.perf_counter() - start_s
    return {"s": spent_s, "extra_mib": peak_mib() - start_mib}


def by_size(names: list[str]) -> pd.DataFrame:
    """A row a model, from the smallest: its parameters, and each tool's cost."""
    from tqdm import tqdm

    rows = []
    for name in tqdm(names, desc="sizes"):
        with torch.device("meta"):
            model = Llama2() if name == "llama_2_7b" else models.get_model(name)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        row: dict[str, Any] = {"model": name, "million parameters": round(millions, 1)}
        for tool in TOOLS:
            found = fresh("summary", name, tool)
            for key, unit in (("s", "s"), ("extra_mib", "extra peak MiB")):
                value = found[key]
                over = f"over {LIMIT_GIB} GiB"
                row[f"{tool}, {unit}"] = over if value is None else round(value, 2)
        rows.append(row)
    return pd.DataFrame(rows)


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
    sizes = by_size(SIZES[:1] + SIZES[-1:] if quick else SIZES)
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
    samples_found = {"seconds": samples, "extra_mib": memory}
    return Outcome(table, ratios, samples_found, sizes)


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
    print(json.dumps(one_summary(*sys.argv[1:])))
