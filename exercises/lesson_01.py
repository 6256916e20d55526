"""Lesson 01: model summary."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from exercises import N_, Exercise, Wrong, choice, define

QUIZZES = {
    "survey": [
        choice(
            "For which model does torchsummary print the right total?",
            (
                "ResNet-18, which adds a block's input to its output",
                True,
                "Yes. Each layer is called once, returns one tensor, and names its "
                "parameters weight and bias. The addition is not a layer.",
            ),
            (
                "DenseNet, whose layers pass on a list of tensors",
                False,
                "The hook asks each output for its size(), and a list has none.",
            ),
            (
                "the vision transformer, whose attention returns (output, None)",
                False,
                "The hook asks each item for its size(), and None has none.",
            ),
            (
                "ConvNeXt, whose blocks have a parameter named layer_scale",
                False,
                "It counts only attributes named weight and bias (lesson 01, "
                "section 4), so it misses these.",
            ),
        )
    ],
    "vgg19": [
        choice(
            "Where are most of VGG19's parameters?",
            (
                "in the 16 convolutions",
                False,
                "There are 16 of them, but each is small: at most "
                "512 * 512 * 3 * 3, or 2.4 million weights.",
            ),
            (
                "in the first Linear layer",
                True,
                "Yes: it connects each of 512 * 7 * 7 inputs to each of 4096 outputs.",
            ),
            (
                "in the last Linear layer, with its 1000 outputs",
                False,
                "It has 4096 * 1000 weights, 4.1 million. The first Linear layer "
                "has 25,088 inputs and 4096 outputs.",
            ),
            (
                "evenly in all layers",
                False,
                "See section 2: the number grows with inputs times outputs, and "
                "the layers differ in both.",
            ),
        ),
        choice(
            "VGG19's first convolution has 3 input channels, 64 output channels and a "
            "3 x 3 kernel. How many FLOPs does one of its output values cost?",
            (
                "9",
                False,
                "The kernel covers 3 x 3 pixels, but in each of the 3 input channels.",
            ),
            (
                "27",
                False,
                "There are 3 * 3 * 3 = 27 products. Each is also added to the sum, so "
                "these are 27 mult-adds.",
            ),
            (
                "54",
                True,
                "Yes: 3 * 3 * 3 = 27 mult-adds, and two FLOPs for each.",
            ),
            (
                "54 * 64",
                False,
                "That is the cost of 64 output values, one in each output channel.",
            ),
        ),
        choice(
            "We double the side of the image, from 224 to 448. What grows?",
            (
                "parameters and compute, both about four times",
                False,
                "A kernel does not grow with the image. It only has more positions.",
            ),
            (
                "the compute about four times, the parameters not at all",
                True,
                "Yes: four times as many positions, and the same kernels.",
            ),
            (
                "the compute twice, the parameters not at all",
                False,
                "Twice as wide and twice as high: four times as many positions.",
            ),
            (
                "neither: the model is the same",
                False,
                "The model is the same, but each of its kernels has more positions.",
            ),
        ),
    ],
    "llama": [
        choice(
            "We build the model on the meta device. It has 6.7 billion float32 "
            "parameters. How much memory do they take?",
            (
                "27 GB: 4 bytes each",
                False,
                "They would take that much with data. On meta, a tensor has none.",
            ),
            (
                "27 GB, and as much again for the forward pass",
                False,
                "On meta, neither the parameters nor the outputs have data.",
            ),
            (
                "next to none",
                True,
                "Yes: each parameter is a shape and a dtype, without data.",
            ),
        ),
        choice(
            "A forward pass on meta computes no values. How many FLOPs does "
            "FlopCounterMode count?",
            (
                "none",
                False,
                "It does not measure work. It works out from the shapes how many "
                "operations each call would need.",
            ),
            (
                "as many as the same pass would need with data",
                True,
                "Yes: the number follows from the shapes, and meta has the shapes.",
            ),
            (
                "some: those of the linear layers only",
                False,
                "It counts matrix products wherever they are, in attention as well.",
            ),
        ),
        choice(
            "The model's matrices hold 6.6 billion weights, and the text has 2048 "
            "tokens. About how many FLOPs does one forward pass cost?",
            (
                "6.6 billion",
                False,
                "That is one operation for each weight. Each product costs two, and "
                "each token needs its own.",
            ),
            (
                "13 billion",
                False,
                "That is the cost of one token: two FLOPs for each weight. There are "
                "2048.",
            ),
            (
                "27 trillion",
                True,
                "Yes: 2 * 6.6 billion * 2048. Attention adds some more.",
            ),
            (
                "27 trillion * 2048",
                False,
                "Each token goes through each matrix once. Only in attention does "
                "each meet all others, and that is a small part here.",
            ),
        ),
    ],
}


def _source(function: Callable) -> str:
    """The code of `_name`, under the name that the learner's function has."""
    return inspect.getsource(function).replace("def _", "def ", 1)


# ---- output_size

SIZES = [  # size, kernel, stride, padding
    *((32, 3, 1, 1), (28, 5, 1, 0), (112, 2, 2, 0), (5, 3, 2, 1), (224, 7, 2, 3)),
    *((7, 2, 2, 0), (14, 3, 3, 1), (227, 11, 4, 2)),
]
SIZE_MISTAKES: list[tuple[Callable, str]] = [
    (
        lambda n, k, s, p: (n + 2 * p - k) / s + 1,
        "A side is a whole number. A last step that does not fit is left out: divide "
        "with //, not with /.",
    ),
    (
        lambda n, k, s, p: -(-(n + 2 * p - k) // s) + 1,
        "You round up. A step that does not fit is left out, so round down.",
    ),
    (
        lambda n, k, s, p: round((n + 2 * p - k) / s) + 1,
        "You round to the nearest. A step that does not fit is left out: use //.",
    ),
    (
        lambda n, k, s, p: n + 2 * p - k // s + 1,
        "// comes before + and -: put size + 2 * padding - kernel in parentheses.",
    ),
    (
        lambda n, k, s, p: (n + p - k) // s + 1,
        "You add the padding once. It is added on both sides.",
    ),
    (
        lambda n, k, s, p: (n + 2 * p - k) // s,
        "You count the steps, but not the position where the kernel begins. Add 1.",
    ),
    (
        lambda n, k, s, p: (n + 2 * p - k + 1) // s,
        "You add 1 before the division. The first position is one more output, not "
        "one more pixel: add 1 after it.",
    ),
    (
        lambda n, k, s, p: (n - k) // s + 1,
        "You leave out the padding, which makes the input larger on both sides.",
    ),
    (
        lambda n, k, s, p: n + 2 * p - k + 1,
        "You leave out the stride: with stride 2 the kernel makes half as many steps.",
    ),
]


def _check_output_size(output_size):
    if not callable(output_size):
        raise Wrong("Check the function itself: ex.output_size.check(output_size).")
    names = list(inspect.signature(output_size).parameters)
    wanted = ["size", "kernel", "stride", "padding"]
    if sorted(names) == sorted(wanted) and names != wanted:
        raise Wrong(
            "output_size takes ({}), in this order; yours takes ({}).",
            ", ".join(wanted),
            ", ".join(names),
        )
    found = [output_size(*case) for case in SIZES]
    expected = []
    for size, kernel, stride, padding in SIZES:
        conv = nn.Conv2d(1, 1, kernel, stride, padding, device="meta")
        expected.append(conv(torch.empty(1, 1, size, size, device="meta")).shape[-1])
    if found == expected and all(isinstance(side, int) for side in found):
        return
    known = [text for rule, text in SIZE_MISTAKES if found == [rule(*c) for c in SIZES]]
    message = known[0] if known else "Count the kernel's positions along one side."
    if None in found:
        message = "Return the side; print() only shows it."
    elif isinstance(found[0], tuple | list | torch.Size):
        message = f"Return one number, not a {type(found[0]).__name__}."
    elif not known and [str(n) for n in expected] == [_plain(n) for n in found]:
        message = (
            f"The number is right, but return an int, not {type(found[0]).__name__}."
        )
    pairs = zip(SIZES, expected, found, strict=True)
    case, side, answer = next(p for p in pairs if p[1] != p[2] or type(p[2]) is not int)
    raise Wrong(
        "output_size{} should be {}, as in nn.Conv2d; yours returns {}. {} Section 2.",
        case,
        side,
        answer,
        message,
    )


def _plain(number: Any) -> str:
    """A number as text, without what its type adds; a tensor's value."""
    number = number.item() if isinstance(number, torch.Tensor) else number
    return str(number).removesuffix(".0")


def _start_output_size(size, kernel, stride, padding):
    """How many positions of the kernel fit along one side."""


def _output_size(size, kernel, stride, padding):
    """How many positions of the kernel fit along one side."""
    return (size + 2 * padding - kernel) // stride + 1


output_size = Exercise(
    _check_output_size,
    start=_start_output_size,
    hints=[
        "Look at the picture. How wide is the input with its border of zeros?",
        "The kernel begins at the left edge. How far can it still go, and how many "
        "steps of `stride` is that? // rounds down.",
        "One more than the number of steps: return (... - kernel) // stride + 1",
    ],
    solution=_output_size,
    text=_source(_output_size),
    wrong_answers=[
        (SIZE_MISTAKES[0][0], "with //"),
        (SIZE_MISTAKES[1][0], "round down"),
        (SIZE_MISTAKES[2][0], "to the nearest"),
        (SIZE_MISTAKES[3][0], "in parentheses"),
        (SIZE_MISTAKES[4][0], "on both sides"),
        (SIZE_MISTAKES[5][0], "where the kernel begins"),
        (SIZE_MISTAKES[6][0], "after it"),
        (SIZE_MISTAKES[7][0], "leave out the padding"),
        (SIZE_MISTAKES[8][0], "leave out the stride"),
        (lambda n, k, s, p: print(_output_size(n, k, s, p)), "Return the side"),
        (lambda n, k, s, p: n // s, "Count the kernel's positions"),
        (lambda n, k, s, p: float((n + 2 * p - k) // s + 1), "an int, not float"),
        (lambda n, k, s, p: str((n + 2 * p - k) // s + 1), "an int, not str"),
        (
            lambda n, k, s, p: torch.tensor((n + 2 * p - k) // s + 1),
            "an int, not Tensor",
        ),
        (lambda n, k, s, p: (_output_size(n, k, s, p),) * 2, "not a tuple"),
        (lambda size, kernel, padding, stride: size // stride, "in this order"),
        (32, "the function itself"),
    ],
)


# ---- make_net


def _check_make_net(make_net):
    if isinstance(make_net, nn.Module):
        raise Wrong("Check the function: ex.make_net.check(make_net), without ().")
    net, given = make_net(), _start_make_net()
    if not isinstance(net, nn.Sequential):
        raise Wrong(
            "make_net() should return the nn.Sequential, not {}. Section 5.",
            type(net).__name__,
        )
    kinds = [type(layer).__name__ for layer in net]
    if kinds[-1:] == ["LazyLinear"]:
        raise Wrong(
            "LazyLinear finds the number by itself. Here you should compute it: use "
            "nn.Linear and give it its number of inputs. Section 5."
        )
    if kinds != [type(layer).__name__ for layer in given]:
        raise Wrong(
            "It should have the same layers: Conv2d, MaxPool2d, Flatten, Linear. "
            "Yours has {}. Only the Linear layer is wrong. Section 5.",
            ", ".join(kinds),
        )
    image = torch.zeros(2, 1, 28, 28)
    for old, new in zip(given[:3], net, strict=False):
        image = old(image)
        if _settings(old) != _settings(new):
            why = N_("It accepts images of any size")
            if isinstance(old, nn.Flatten):
                why = N_("The batch must stay a dimension of its own")
            raise Wrong(
                "You changed {} to {}. {}, so leave it as it was, and change the "
                "Linear layer to fit what it receives. Section 5.",
                old,
                new,
                why,
            )
    arrives, linear = image.shape[1], net[3]
    if linear.in_features == given[3].in_features:
        raise Wrong(
            "Your Linear layer still takes {} numbers, 8 channels of 7 x 7. Which "
            "side do the convolution and the pooling give? Section 2.",
            linear.in_features,
        )
    if linear.in_features != arrives:
        raise Wrong(
            "Your Linear layer takes {} numbers, but receives {} for each image: 8 "
            "channels of 6 x 6. {} Sections 2 and 5.",
            linear.in_features,
            arrives,
            _size_hint(linear),
        )
    if linear.out_features != 10:
        raise Wrong(
            "There are ten classes, so the last layer has 10 outputs, not {}. Only "
            "its inputs were wrong. Section 5.",
            linear.out_features,
        )
    if linear.bias is None:
        raise Wrong("The Linear layer had a bias: change its inputs only. Section 5.")


def _settings(layer: nn.Module) -> dict[str, Any]:
    """A layer's settings; a side may be given as 2 or as (2, 2)."""
    names = [*getattr(layer, "__constants__", ()), "bias"]
    values = {name: getattr(layer, name, None) for name in names}
    values["bias"] = values["bias"] is not None
    return {k: (v, v) if type(v) is int else v for k, v in values.items()}


def _size_hint(linear: nn.Linear) -> str:
    if linear.out_features == 8 * 6 * 6:
        return N_("Linear's arguments are inputs, then outputs.")
    return {
        8 * 12 * 12: N_("You left out the pooling, which halves the side."),
        2 * 8 * 6 * 6: N_("The batch is not among a layer's inputs."),
        6 * 6: N_("All 8 channels are flattened, not one."),
        8: N_(
            "Flatten keeps height and width, so the inputs are more than 8 channels."
        ),
        8 * 5 * 5: N_(
            "The convolution's side is 12: a kernel of 5 takes away 4, not 5."
        ),
        8 * 14 * 14: N_("Without padding the convolution gives 12, not 14."),
    }.get(linear.in_features, N_("Compute the side layer by layer."))


def _start_make_net():
    """For grey images of 28 x 28 pixels, with ten classes."""
    conv = nn.Conv2d(1, 8, kernel_size=5, stride=2)
    return nn.Sequential(conv, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 7 * 7, 10))


def _make_net():
    """For grey images of 28 x 28 pixels, with ten classes."""
    conv = nn.Conv2d(1, 8, kernel_size=5, stride=2)  # (28 - 5) // 2 + 1 = 12
    # MaxPool2d: (12 - 2) // 2 + 1 = 6
    return nn.Sequential(conv, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 6 * 6, 10))


def _net_with(linear, conv=None, *more):
    conv = conv or nn.Conv2d(1, 8, kernel_size=5, stride=2)
    return lambda: nn.Sequential(conv, nn.MaxPool2d(2), *more, nn.Flatten(), linear)


make_net = Exercise(
    _check_make_net,
    start=_start_make_net,
    hints=[
        "Which side does the convolution give for 28 pixels, with kernel 5, stride 2 "
        "and no padding?",
        "12: (28 - 5) // 2 + 1. And the pooling after it, with kernel and stride 2?",
        "6. Flatten puts all 8 channels in one row. How many numbers are that?",
    ],
    solution=_make_net,
    text=_source(_make_net),
    wrong_answers=[
        (_net_with(nn.Linear(8 * 12 * 12, 10)), "left out the pooling"),
        (_net_with(nn.Linear(8, 10)), "keeps height and width"),
        (_net_with(nn.Linear(6 * 6, 10)), "All 8 channels"),
        (_net_with(nn.Linear(10, 288)), "inputs, then outputs"),
        (_net_with(nn.Linear(8 * 6 * 6, 288)), "10 outputs, not 288"),
        (_net_with(nn.Linear(400, 10)), "layer by layer"),
        (_net_with(nn.Linear(8 * 6 * 6, 10, bias=False)), "had a bias"),
        (_net_with(nn.LazyLinear(10)), "compute it"),
        (_net_with(nn.Linear(8 * 6 * 6, 10))(), "without ()"),
        (lambda: _net_with(nn.Linear(8 * 6 * 6, 10))()[3], "the nn.Sequential"),
        (
            _net_with(nn.Linear(8 * 7 * 7, 10), nn.Conv2d(1, 8, 5, 2, padding=2)),
            "You changed Conv2d",
        ),
        (
            _net_with(nn.Linear(8 * 7 * 7, 10), nn.Conv2d(1, 8, 2, 2)),
            "You changed Conv2d",
        ),
        (
            lambda: nn.Sequential(
                *_net_with(nn.Linear(288, 10))()[:2], nn.Flatten(0), nn.Linear(288, 10)
            ),
            "The batch must stay",
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 8, 5, 2),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(49 * 8, 10),
            ),
            "still takes 392",
        ),
        (
            _net_with(nn.Linear(8 * 7 * 7, 10), None, nn.AdaptiveAvgPool2d(7)),
            "the same layers",
        ),
    ],
)


# ---- run_with_hooks


class _Failed(Exception):
    """What the checker's model raises."""


class _Fails(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


def _modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def _hooks(model: nn.Module) -> list[dict]:
    return [dict(module._forward_hooks) for module in model.modules()]


def _try_hooks(run_with_hooks, last: nn.Module, when: str) -> list[str]:
    """Run the answer on a model with a hook of the user's own; what it recorded."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU()), last)
    users = model[0].register_forward_hook(lambda *_: None)
    model[1].eval()  # as a user freezes a BatchNorm: the modes differ
    before, seen, modes = _hooks(model), [], _modes(model)

    def record(layer, inputs, output):
        seen.append(type(layer).__name__)

    raised = None
    try:
        run_with_hooks(model, torch.zeros(2, 3), record)
    except (_Failed, KeyboardInterrupt) as error:
        raised = error
    except Exception as error:
        if isinstance(last, _Fails) and isinstance(error.__context__, last.error):
            raise Wrong(
                "The model raised {}, but the caller saw another error, {!r}. Let "
                "the model's own error through. Section 5.",
                last.error.__name__,
                error,
            ) from error
        raise
    after = _hooks(model)
    if users.id not in after[1]:
        raise Wrong(
            "The user had a hook on the first layer, and it is gone. Clearing "
            "`_forward_hooks` removes hooks that are not yours: remove your own by "
            "their handles. Section 3."
        )
    users.remove()
    if users.id in model[0]._forward_hooks:
        raise Wrong(
            "The user's hook is still there, but its handle no longer works: you put "
            "another dictionary of hooks on the layer. Remove your own hooks by their "
            "handles. Section 3."
        )
    if _modes(model) != modes:
        raise Wrong(
            "Your function changes the model's mode, or that of a submodule: "
            "`model.train(mode)` sets them all. Call `eval()` outside it, where the "
            "user can see it. Section 3."
        )
    left = sum(map(len, after)) - sum(map(len, before))
    if left:
        raise Wrong(
            "{} of your hooks are still on the model {} Section 5.",
            left,
            when,
        )
    if isinstance(last, _Fails) and raised is None:
        raise Wrong(
            "The model raised an error, but your function swallowed it. The caller "
            "must see it: do not catch it without raising it again, and do not use "
            "`return` inside `finally`, which drops it. Section 5."
        )
    return seen


def _check_run_with_hooks(run_with_hooks):
    seen = _try_hooks(
        run_with_hooks,
        nn.Linear(4, 2),
        "after a run without an error. `except` runs only when there is one; "
        "`finally` always does.",
    )
    if seen != ["Linear", "ReLU", "Linear"]:
        why = N_(
            "Put it on the leaves alone: modules() without those that have children."
        )
        if not seen:
            why = N_(
                "Put it on before the model runs, and take it off after, not before."
            )
        elif seen == ["Linear", "ReLU", "Linear"] * (len(seen) // 3):
            why = N_("Run the model once, with one hook on each leaf.")
        raise Wrong(
            "The hook should be called for the leaves Linear, ReLU, Linear, in this "
            "order. It was called for {}. {} Section 3.",
            seen,
            why,
        )
    seen, leaf = [], nn.Linear(3, 4)
    run_with_hooks(leaf, torch.zeros(2, 3), lambda layer, *_: seen.append(layer))
    if seen != [leaf]:
        raise Wrong(
            "A model can be a single leaf, nn.Linear for example. Its hook was "
            "called {} times, not once: call model(x), since model.forward(x) skips "
            "the model's own hooks. Section 3.",
            len(seen),
        )
    _try_hooks(
        run_with_hooks,
        _Fails(_Failed),
        "after the model raised an exception of its own class. `finally` runs "
        "whatever is raised.",
    )
    _try_hooks(
        run_with_hooks,
        _Fails(KeyboardInterrupt),
        "after the user stopped it. KeyboardInterrupt is not an Exception, so "
        "`except Exception` does not catch it; `finally` runs then too.",
    )


def _start_run_with_hooks(model, x, hook):
    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(hook) for leaf in leaves]
    model(x)
    for handle in handles:
        handle.remove()


def _run_with_hooks(model, x, hook):
    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(hook) for leaf in leaves]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()


def _put_on(model, hook):
    leaves = [module for module in model.modules() if not list(module.children())]
    return [leaf.register_forward_hook(hook) for leaf in leaves]


def _take_off(handles):
    for handle in handles:
        handle.remove()


def _by_except(kind, *, raise_again=True, after=True):
    def run_with_hooks(model, x, hook):
        handles = _put_on(model, hook)
        try:
            model(x)
        except kind:
            _take_off(handles)
            if raise_again:
                raise
        if after:
            _take_off(handles)

    return run_with_hooks


def _return_in_finally(model, x, hook):
    handles = _put_on(model, hook)
    try:
        model(x)
    finally:
        _take_off(handles)
        return  # noqa: B012 - the mistake


def _clear_all(model, x, hook):
    _put_on(model, hook)
    try:
        model(x)
    finally:
        for module in model.modules():
            module._forward_hooks.clear()


def _too_early(model, x, hook):
    _take_off(_put_on(model, hook))
    model(x)


def _another_error(model, x, hook):
    handles = _put_on(model, hook)
    try:
        model(x)
    except Exception as error:
        raise RuntimeError("the model failed") from error
    finally:
        _take_off(handles)


def _oldest_hook(model, x, hook):
    """Not by handles: takes the user's hook, and leaves its own."""
    _put_on(model, hook)
    try:
        model(x)
    finally:
        for module in model.modules():
            if module._forward_hooks:
                module._forward_hooks.popitem(last=False)


def _leaves_eval(model, x, hook):
    model.eval()
    _run_with_hooks(model, x, hook)


def _puts_one_mode_back(model, x, hook):
    """train(was) sets every submodule, also one that the user had in evaluation."""
    was = model.training
    model.eval()
    try:
        _run_with_hooks(model, x, hook)
    finally:
        model.train(was)


def _runs_twice(model, x, hook):
    _run_with_hooks(model, x, hook)
    _run_with_hooks(model, x, hook)


def _calls_forward(model, x, hook):
    handles = _put_on(model, hook)
    try:
        model.forward(x)
    finally:
        _take_off(handles)


def _puts_copies_back(model, x, hook):
    """The user's hook is in the copy, but the handle knows the old dictionary."""
    before = [(m, m._forward_hooks.copy()) for m in model.modules()]
    _put_on(model, hook)
    try:
        model(x)
    finally:
        for module, hooks in before:
            module._forward_hooks = hooks


def _on_children(model, x, hook):
    handles = [layer.register_forward_hook(hook) for layer in model.children()]
    try:
        model(x)
    finally:
        _take_off(handles)


def _on_all_modules(model, x, hook):
    handles = [module.register_forward_hook(hook) for module in model.modules()]
    try:
        model(x)
    finally:
        _take_off(handles)


run_with_hooks = Exercise(
    _check_run_with_hooks,
    start=_start_run_with_hooks,
    hints=[
        "If model(x) raises, which lines still run?",
        "Python has a statement for code that must run, error or no error.",
        "try: ... finally: ... with the loop that removes the handles in `finally`, "
        "and no `except`.",
    ],
    solution=_run_with_hooks,
    text=_source(_run_with_hooks),
    wrong_answers=[
        (_by_except(Exception, after=False), "after a run without an error"),
        (_by_except(RuntimeError), "an exception of its own class"),
        (_by_except(Exception), "after the user stopped it"),
        (_by_except(Exception, raise_again=False), "swallowed it"),
        (_return_in_finally, "swallowed it"),
        (_clear_all, "not yours"),
        (_too_early, "not before"),
        (_on_all_modules, "leaves alone"),
        (_on_children, "leaves alone"),
        (_another_error, "another error"),
        (_oldest_hook, "not yours"),
        (_leaves_eval, "the model's mode"),
        (_puts_one_mode_back, "sets them all"),
        (_runs_twice, "Run the model once"),
        (_calls_forward, "model.forward(x) skips"),
        (_puts_copies_back, "its handle no longer works"),
    ],
)


# ---- mini_summary


class _Scale(nn.Module):
    """A layer with a parameter that is neither `weight` nor `bias`."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.factor * x


class _Nested(nn.Module):
    """Defined in another order than called; a layer used twice; a tied weight.

    `scale_1` and `scale_2` are two parameters with equal values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.body = nn.Sequential(
            nn.Linear(6, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 8))
        )
        self.again = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.again.weight
        self.scale_1, self.scale_2 = _Scale(), _Scale()
        self.head.requires_grad_(False)  # frozen, and counted all the same

    def forward(self, x):
        x = self.tied(self.again(self.again(self.body(x))))
        return self.head(self.scale_2(self.scale_1(x)))


NESTED_ROWS = [
    ("body.0", (2, 8), 56),
    ("body.1.0", (2, 8), 0),
    ("body.1.1", (2, 8), 72),
    ("again", (2, 8), 72),
    ("again", (2, 8), 0),
    ("tied", (2, 8), 8),
    ("scale_1", (2, 8), 8),
    ("scale_2", (2, 8), 8),
    ("head", (2, 4), 36),
]


def _check_mini_summary(mini_summary):
    model = _Nested()
    users = model.head.register_forward_hook(lambda *_: None)
    model.body.eval()  # as a user freezes a BatchNorm: the modes differ
    modes = _modes(model)
    try:
        rows = mini_summary(model, torch.zeros(2, 6))
    except RuntimeError as error:
        if "size of tensor" in str(error) or "value of Tensor" in str(error):
            raise Wrong(
                "`p in some_list` compares the *values* of the tensors, which fails "
                "here: {}. Keep the parameters in a set: it compares identity.",
                error,
            ) from error
        raise
    try:
        assert all(isinstance(row, tuple | list) for row in rows)
        rows = [
            (name, shape if isinstance(shape, str) else tuple(shape), params)
            for name, shape, params in rows
        ]
    except (AssertionError, TypeError, ValueError) as error:
        raise Wrong(
            "mini_summary should return a list of (name, output shape, parameters), "
            "not {!r}. Section 3.",
            rows,
        ) from error
    if any(isinstance(shape, str) for _, shape, _ in rows):
        raise Wrong(
            "The output shape should be a tuple or a torch.Size, not text: {!r}. "
            "Section 3.",
            rows[0][1],
        )
    if _modes(model) != modes:
        raise Wrong(
            "Your function changes the model's mode, or that of a submodule: "
            "`model.train(mode)` sets them all. Call `eval()` outside it. Section 3."
        )
    if users.id not in model.head._forward_hooks:
        raise Wrong(
            "The user had a hook on the model, and it is gone: remove your own hooks "
            "by their handles. Exercise 2."
        )
    users.remove()
    if any(_hooks(model)):
        raise Wrong("Your hooks are still on the model: remove them. Exercise 2.")
    names, expected = [row[0] for row in rows], [row[0] for row in NESTED_ROWS]
    if names != expected:
        if sorted(names) == sorted(expected):
            why = N_("Rows come in the order of the calls, not of the definitions.")
        elif sorted(set(names)) == sorted(set(expected)):
            why = N_("A layer that is called twice has two rows, one for each call.")
        elif len(names) == len(expected) and len(set(names)) == 1:
            why = N_(
                "All rows have the last name: a hook made in a loop looks "
                "`name` up when it is called. Look the name up by the layer "
                "instead."
            )
        elif {"body", "body.1", ""} & set(names):
            why = N_("Containers have no row: take modules that have no children.")
        elif {"0", "1", "Linear"} & set(names):
            why = N_("Take the full name, `body.1.0`: model.named_modules() gives it.")
        else:
            why = N_("model.named_modules() gives all modules with their names.")
        raise Wrong(
            "The names should be {}; yours are {}. {} Section 3.",
            expected,
            names,
            why,
        )
    for found, wanted in zip(rows, NESTED_ROWS, strict=True):
        if found == wanted:
            continue
        if found[1] != wanted[1]:
            why = N_(
                "The shape is that of the layer's output, a tuple or a torch.Size."
            )
        elif wanted[0] == "again":
            why = N_("This layer has been counted already, in its first row.")
        elif wanted[0] == "tied":
            why = N_(
                "Its weight is the same tensor as that of `again`, and was "
                "counted there; only its bias is new. Remember tensors, not "
                "layers."
            )
        elif wanted[0] == "scale_1":
            why = N_(
                "Its parameter is named `factor`. Ask for layer.parameters(), "
                "whatever the names are."
            )
        elif wanted[0] == "scale_2":
            why = N_(
                "Its parameter has the same values as another one, but is a "
                "tensor of its own. Compare identity (`is`, or a set), not "
                "values."
            )
        elif wanted[0] == "head":
            why = N_("Its parameters are frozen, but they are parameters: count them.")
        else:
            why = N_(
                "No earlier row has counted its parameters. Compare identity (a "
                "set of tensors), not shapes."
            )
        raise Wrong(
            "Expected the row {}, found {}. {} Section 4.",
            wanted,
            found,
            why,
        )
    crashing = nn.Sequential(nn.Linear(6, 8), _Fails(_Failed))
    try:
        mini_summary(crashing, torch.zeros(2, 6))
    except _Failed:
        pass
    else:
        raise Wrong(
            "The table is right. But when the model raises an error, your function "
            "swallows it: the caller must see it. Exercise 2."
        )
    if any(_hooks(crashing)):
        raise Wrong(
            "The table is right. But when the model raises an error, your hooks stay "
            "on it: remove them in `finally`. Exercise 2."
        )
    rows = mini_summary(nn.Linear(6, 8), torch.zeros(2, 6))
    if len(rows) != 1:
        raise Wrong(
            "A model can be a single leaf, nn.Linear(6, 8) for example. Your table "
            "has {} rows for it, not one: call model(x), since model.forward(x) "
            "skips the model's own hooks.",
            len(rows),
        )


def _start_mini_summary(model, x):
    """A row (name, output shape, parameters not counted before) for each call."""


def _mini_summary(model, x):
    """A row (name, output shape, parameters not counted before) for each call."""
    rows, counted = [], set()
    names = {module: name for name, module in model.named_modules()}

    def record(layer, inputs, output):
        new = [p for p in layer.parameters() if p not in counted]
        counted.update(new)
        rows.append((names[layer], output.shape, sum(p.numel() for p in new)))

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(record) for leaf in leaves]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return rows


def _mini(count=None, names=None, keep=None, hooks_stay=None, run=None):
    """A mini_summary with one mistake."""

    def mini_summary(model, x):
        rows, seen = [], set()
        full = {module: name for name, module in model.named_modules()}

        def record(layer, inputs, output):
            every = list(layer.parameters())
            new = [p for p in every if p not in seen]
            if count == "layers":
                new = [] if layer in seen else every
            if count == "calls":
                new = every
            if count == "names":
                new = [p for p in new if not hasattr(layer, "factor")]
            if count == "trainable":
                new = [p for p in new if p.requires_grad]
            if count == "shapes":
                shapes = {q.shape for q in seen if isinstance(q, nn.Parameter)}
                new = [p for p in every if p.shape not in shapes]
            if count == "values":
                new = [p for p in every if not any(_same(p, q) for q in seen)]
            seen.update([*new, layer])
            name = names(layer, full) if names else full[layer]
            rows.append((name, output.shape, sum(p.numel() for p in new)))

        chosen = [m for m in model.modules() if keep or not list(m.children())]
        handles = [m.register_forward_hook(record) for m in chosen]
        try:
            model.forward(x) if run == "forward" else model(x)
        except Exception:
            handles = [] if hooks_stay == "after an error" else handles
            if run == "swallow":
                return rows
            raise
        finally:
            if hooks_stay != "always":
                _take_off(handles)
        return rows

    return mini_summary


def _same(parameter, other):
    """Compares values, as a learner may; `other` may be a layer."""
    return isinstance(other, nn.Parameter) and torch.equal(parameter, other)


def _in_a_list(model, x):
    """`p not in counted` with a list compares values, and fails."""
    counted = []

    def record(layer, inputs, output):
        counted.extend(p for p in layer.parameters() if p not in counted)

    _run_with_hooks(model, x, record)


def _late_name(model, x):
    """Each hook takes `name` from the loop, when the loop is over."""
    rows, handles = [], []
    for name, layer in model.named_modules():
        if not list(layer.children()):
            hook = lambda _, inputs, out: rows.append((name, out.shape, 0))  # noqa: B023, E731
            handles.append(layer.register_forward_hook(hook))
    model(x)
    _take_off(handles)
    return rows


def _as_dicts(model, x):
    keys = "name", "shape", "parameters"
    return [dict(zip(keys, row, strict=True)) for row in _mini_summary(model, x)]


def _shape_as_text(model, x):
    return [(name, str(tuple(s)), n) for name, s, n in _mini_summary(model, x)]


def _evaluating(model, x):
    return _mini_summary(model.eval(), x)


def _mode_put_back(model, x):
    was = model.training
    rows = _mini_summary(model.eval(), x)
    model.train(was)
    return rows


def _and_clear(model, x):
    rows = _mini_summary(model, x)
    for module in model.modules():
        module._forward_hooks.clear()
    return rows


def _in_order_of_definition(model, x):
    rows = _mini_summary(model, x)
    order = [name for name, _ in model.named_modules()]
    return sorted(rows, key=lambda row: order.index(row[0]))


def _one_row_a_layer(model, x):
    return list({row[0]: row for row in reversed(_mini_summary(model, x))}.values())[
        ::-1
    ]


mini_summary = Exercise(
    _check_mini_summary,
    start=_start_mini_summary,
    hints=[
        "model.named_modules() yields pairs such as ('body.1.0', ReLU()). Which of "
        "them have no children?",
        "The hook gets the layer, not its name: make a dictionary from layer to name "
        "first.",
        "Keep a set of the parameters counted so far, and skip those in it: "
        "new = [p for p in layer.parameters() if p not in counted]",
        "counted.update(new); rows.append((names[layer], output.shape, "
        "sum(p.numel() for p in new)))",
    ],
    solution=_mini_summary,
    text=_source(_mini_summary),
    wrong_answers=[
        (_mini(count="calls"), "counted already"),
        (_mini(count="layers"), "Remember tensors, not layers"),
        (_mini(names=lambda layer, full: type(layer).__name__), "the full name"),
        (_mini(names=lambda layer, full: full[layer].split(".")[-1]), "full name"),
        (_mini(keep="containers"), "Containers have no row"),
        (_mini(count="names"), "whatever the names are"),
        (_mini(count="values"), "Compare identity"),
        (_mini(hooks_stay="always"), "remove them"),
        (_mini(hooks_stay="after an error"), "in `finally`"),
        (_mini(count="trainable"), "they are parameters"),
        (_mini(count="shapes"), "not shapes"),
        (_mini(run="forward"), "model.forward(x)"),
        (_mini(run="swallow"), "swallows it"),
        (_in_a_list, "Keep the parameters in a set"),
        (_late_name, "All rows have the last name"),
        (_as_dicts, "a list of"),
        (_shape_as_text, "not text"),
        (_evaluating, "the model's mode"),
        (_mode_put_back, "sets them all"),
        (_and_clear, "it is gone"),
        (_in_order_of_definition, "order of the calls"),
        (_one_row_a_layer, "has two rows"),
        (lambda model, x: len(_mini_summary(model, x)), "a list of"),
    ],
)


# ---- count_parameters (deeper/01_what_summaries_miss)


class _Odd(nn.Module):
    """A tied weight, a parameter of the model itself, a buffer, an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(7))
        self.a = nn.Linear(5, 5)  # 25 and 5
        self.b = nn.Linear(5, 5)  # 5
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(5)  # 10, and 11 in buffers
        self.unused = nn.Linear(5, 3)  # 18
        self.a.weight.requires_grad_(False)  # and its bias is trained
        self.unused.requires_grad_(False)

    def forward(self, x):
        return self.norm(self.b(self.a(x))) + self.token.sum()


COUNT_MISTAKES = {  # by how much the total is wrong
    25: N_("The weight that two layers share is counted twice."),
    25 + 11: N_(
        "A state_dict holds buffers, too, and a shared tensor under both names."
    ),
    11: N_("BatchNorm's buffers are not parameters."),
    -7: N_("A parameter of the model itself, not of a layer, is missing."),
    -18: N_("A layer that forward() does not use is still part of the model."),
}


def _check_count_parameters(count_parameters):
    answer, expected = count_parameters(_Odd()), (70, 27)
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise Wrong(
            "Return (total, trainable), two numbers, not {}.",
            answer,
        )
    if not all(type(number) is int for number in answer):
        raise Wrong(
            "Return two ints, (total, trainable), not {}.",
            answer,
        )
    total, trainable = answer
    if (total, trainable) == expected:
        small = count_parameters(nn.Linear(3, 2))
        if tuple(small) == (8, 8):
            return
        raise Wrong(
            "nn.Linear(3, 2) has 3 * 2 + 2 = 8 parameters; you find {}.",
            small,
        )
    if (trainable, total) == expected:
        why = N_("Return the total first.")
    elif total != expected[0]:
        why = N_("Ask the model for its parameters(): each tensor comes once.")
        why = COUNT_MISTAKES.get(total - expected[0], why)
        if total == len(list(_Odd().parameters())):
            why = N_("You count tensors. p.numel() is the number of elements of one.")
    elif trainable == 43:
        why = N_("43 is the number of frozen ones, total - trainable.")
    elif trainable == total:
        why = N_("Some parameters have requires_grad=False: they are not trainable.")
    else:
        why = N_(
            "Each has its own requires_grad: a frozen weight's bias can still learn."
        )
    raise Wrong(
        "Expected (total, trainable) {}, found {}. {} Section 2.",
        expected,
        answer,
        why,
    )


def _start_count_parameters(model):
    """(total, trainable): how many numbers the model's parameters have."""


def _count_parameters(model):
    """(total, trainable): how many numbers the model's parameters have."""
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    return total, sum(p.numel() for p in parameters if p.requires_grad)


def _by_modules(model):
    """Tied weights twice: each module is asked for its own."""
    own = [p for m in model.modules() for p in m.parameters(recurse=False)]
    return sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)


def _by_state_dict(model):
    tensors = model.state_dict(keep_vars=True).values()
    trainable = sum(t.numel() for t in tensors if t.requires_grad)
    return sum(t.numel() for t in tensors), trainable


def _with_buffers(model):
    total, trainable = _count_parameters(model)
    return total + sum(b.numel() for b in model.buffers()), trainable


def _by_children(model):
    children = nn.ModuleList(model.children())
    return _count_parameters(children)


def _called_only(model):
    called = []
    handles = [
        module.register_forward_hook(lambda layer, *_: called.append(layer))
        for module in model.modules()
    ]
    model(torch.zeros(2, 5))
    _take_off(handles)
    own = {p for m in called for p in m.parameters(recurse=False)}
    return sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)


def _by_weight(model):
    total = _count_parameters(model)[0]
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.BatchNorm1d)]
    trained = [m for m in layers if m.weight.requires_grad]
    return total, sum(math.prod(p.shape) for m in trained for p in m.parameters())


count_parameters = Exercise(
    _check_count_parameters,
    start=_start_count_parameters,
    hints=[
        "Which method of the model yields each parameter once, however many layers "
        "use it?",
        "p.numel() is the number of elements, p.requires_grad says whether it is "
        "trained.",
        "sum(p.numel() for p in model.parameters() if p.requires_grad)",
    ],
    solution=_count_parameters,
    text=_source(_count_parameters),
    wrong_answers=[
        (_by_modules, "two layers share"),
        (_by_state_dict, "holds buffers, too"),
        (_with_buffers, "are not parameters"),
        (_by_children, "of the model itself"),
        (_called_only, "still part of the model"),
        (_by_weight, "a frozen weight's bias"),
        (lambda model: (_count_parameters(model)[0],) * 2, "requires_grad=False"),
        (lambda model: _count_parameters(model)[0], "two numbers"),
        (lambda model: {"total": 70, "trainable": 27}, "two numbers"),
        (lambda model: (70, 27), "has 3 * 2 + 2"),
        (lambda model: ("70", "27"), "two ints"),
        (lambda model: (70, 43), "frozen ones"),
        (lambda model: (len(list(model.parameters())),) * 2, "You count tensors"),
        (lambda model: _count_parameters(model)[::-1], "total first"),
    ],
)

quiz = define(globals())
