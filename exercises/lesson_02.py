"""Lesson 02: state_dict, and its deeper lesson on averaging and `assign=True`."""

import copy
import inspect
import warnings
from collections.abc import Callable

import torch
from torch import nn

from exercises import Exercise, Wrong, define
from helpers.compare import max_difference
from helpers.models import SmallCNN

State = dict[str, torch.Tensor]

QUIZZES = {
    "best_weights": [
        {
            "question": "After the last epoch, you load best into a new model. "
            "Which validation accuracy does the new model have?",
            "type": "multiple_choice",
            "answers": [
                {
                    "answer": "that of the best epoch",
                    "correct": False,
                    "feedback": "That is the intention. But state_dict() does not copy "
                    "the tensors, and training keeps changing them.",
                },
                {
                    "answer": "that of the last epoch",
                    "correct": True,
                    "feedback": "Yes. The tensors in best share memory with the model, "
                    "so they hold the weights of the last epoch.",
                },
                {
                    "answer": "that of an untrained model",
                    "correct": False,
                    "feedback": "load_state_dict does copy values into the new model. "
                    "The question is which values the tensors in best hold by then.",
                },
            ],
        }
    ],
    "optimizer_order": [
        {
            "question": "An optimizer got [weight, bias], and you load its state_dict "
            "into one that got [bias, weight]. What does load_state_dict do?",
            "type": "multiple_choice",
            "answers": [
                {
                    "answer": "it matches them by name: each gets its own state",
                    "correct": False,
                    "feedback": "A model does that. An optimizer never matches by "
                    "name, even if the names are stored.",
                },
                {
                    "answer": "it raises an error: the shapes differ",
                    "correct": False,
                    "feedback": "An optimizer only checks how many parameters each "
                    "group has. It does not compare shapes.",
                },
                {
                    "answer": "it matches them by order: each gets the other's state",
                    "correct": True,
                    "feedback": "Yes. Number 0 gets the state of number 0, without an "
                    "error.",
                },
                {
                    "answer": "it loads the settings only",
                    "correct": False,
                    "feedback": "The settings are loaded, but so is the state of "
                    "every parameter.",
                },
            ],
        }
    ],
}


# --- 1: register what belongs to the state ---------------------------------------


class _Start(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(4)
        self.layers = [nn.Linear(4, 4), nn.Linear(4, 2)]

    def forward(self, x):
        return self.layers[1](self.layers[0](x - self.mean))


class _Registered(_Start):
    def __init__(self):
        nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(4))
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])


def _check_registered(make: Callable[[], nn.Module]) -> None:
    if isinstance(make, nn.Module):
        raise Wrong("This is a model. Pass the class itself: check(Net).")
    model = make()
    if not isinstance(model, nn.Module):
        raise Wrong(f"Calling it gave a {type(model).__name__}, not an nn.Module.")
    keys, trained = list(model.state_dict()), dict(model.named_parameters())
    if "mean" in trained:
        raise Wrong(
            "mean is a parameter now, so an optimizer would train it (or would as soon "
            "as someone calls requires_grad_(True)). It is a statistic: make it a "
            "buffer. Section 2."
        )
    if "mean" not in keys and "mean" in dict(model.named_buffers()):
        raise Wrong(
            "mean is a buffer with persistent=False: it moves with the model, but is "
            "not in the state_dict, so it is not saved. Section 2."
        )
    if "mean" not in keys:
        raise Wrong(
            "mean is not in the state_dict: a plain tensor attribute is not "
            f"registered. Keys found: {keys}. Section 2."
        )
    if len(trained) != 4:
        raise Wrong(
            "Expected the weights and biases of two Linear layers among the "
            f"parameters, found {list(trained)}. Layers in a plain list or dict are "
            "invisible to PyTorch. Section 2."
        )
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    expected = {k: v.shape for k, v in _Registered().state_dict().items()}
    if shapes != expected:
        raise Wrong(
            "Keep the names and the shapes, because other code and existing files "
            f"rely on them. Expected {list(expected)} and a mean of shape (4,), "
            f"found {keys} and {tuple(shapes['mean'])}. Section 1."
        )
    loss = model(torch.rand(3, 4)).sum()
    if loss.requires_grad:
        loss.backward()
    if idle := [name for name, p in model.named_parameters() if p.grad is None]:
        raise Wrong(
            f"{idle} got no gradient from backward(), so no optimizer can train them. "
            "Is requires_grad off, or does forward run under torch.no_grad()?"
        )
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape))
    loaded, x = make(), torch.randn(3, 4)
    loaded.load_state_dict(model.state_dict())
    for candidate in (model, loaded):
        first, second = (
            list(candidate.parameters())[:2],
            list(candidate.parameters())[2:],
        )
        hidden = nn.functional.linear(x - candidate.mean, *first)
        expected = nn.functional.linear(hidden, *second)
        if not torch.allclose(candidate(x), expected, atol=1e-5):
            raise Wrong(
                "All keys are right, but the output is not that of the two layers "
                "applied to x - self.mean. Does forward use what you registered?"
            )


class _ListStays(_Start):
    def __init__(self):
        nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(4))
        self.layers = [nn.Linear(4, 4), nn.Linear(4, 2)]


class _TensorStays(_Start):
    def __init__(self):
        nn.Module.__init__(self)
        self.mean = torch.zeros(4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])


class _Parameter(_TensorStays):
    def __init__(self):
        super().__init__()
        del self.mean
        self.mean = nn.Parameter(torch.zeros(4), requires_grad=False)


class _NotPersistent(_TensorStays):
    def __init__(self):
        super().__init__()
        del self.mean
        self.register_buffer("mean", torch.zeros(4), persistent=False)


class _BufferUnused(_Registered):
    def forward(self, x):
        return self.layers[1](self.layers[0](x))


class _Renamed(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x - self.mean))


class _Frozen(_Registered):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class _NoGrad(_Registered):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


registered = Exercise(
    _check_registered,
    start=_Start,
    hints=[
        "Print list(Net().state_dict()). Which names are missing?",
        "A module registers parameters, buffers and modules. A plain list or a plain "
        "tensor is none of these.",
        "nn.ModuleList for the layers; self.register_buffer(name, tensor) for mean, "
        "instead of the line self.mean = ...",
    ],
    solution=_Registered,
    text="""\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])

    def forward(self, x):
        return self.layers[1](self.layers[0](x - self.mean))
""",
    wrong_answers=[
        (_ListStays, "plain list or dict are invisible"),
        (_TensorStays, "a plain tensor attribute is not registered"),
        (_Parameter, "make it a buffer"),
        (_NotPersistent, "persistent=False"),
        (_BufferUnused, "Does forward use what you registered?"),
        (_Renamed, "Keep the names"),
        (_Frozen, "got no gradient"),
        (_NoGrad, "got no gradient"),
        (_Registered(), "Pass the class itself"),
    ],
)


# --- 2: load all or nothing ------------------------------------------------------


def _with_new_key(state: State) -> State:
    return {**state, "head.scale": torch.ones(10)}


def _without(state: State, key: str) -> State:
    return {k: v for k, v in state.items() if k != key}


def _filled(state: State) -> State:
    """The same state with other values in every tensor, as after training."""
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 1)
        else:
            tensor.random_(1, 1000)
    return state


class _Counted(SmallCNN):
    loads = 0

    def load_state_dict(self, *args, **kwargs):
        self.loads += 1
        return super().load_state_dict(*args, **kwargs)


def _check_safe_load(safe_load: Callable[[nn.Module, State], None]) -> None:
    model, good = SmallCNN(), _filled(copy.deepcopy(SmallCNN().state_dict()))
    objects = list(model.parameters())
    safe_load(model, good)
    if max_difference(model.state_dict(), good) > 0:
        raise Wrong(
            "A state that fits was not loaded: the model does not have its values. "
            "Loading into a copy is only a test; the model itself must be loaded, too."
        )
    _same_parameters(objects, model)
    other = _filled(SmallCNN().state_dict())
    cases = {
        "with a head for 5 classes": _filled(SmallCNN(num_classes=5).state_dict()),
        "without head.bias": _without(other, "head.bias"),
        "with a key that the model lacks": _with_new_key(other),
    }
    for case, state in cases.items():
        _check_failure(safe_load, case, state)


def _check_failure(safe_load: Callable, case: str, state: State) -> None:
    model = _Counted()
    objects = list(model.parameters())
    before, raised = copy.deepcopy(_filled(model.state_dict())), False
    try:
        safe_load(model, state)
    except AssertionError as error:
        raise Wrong(
            f"A state {case} is refused by an assertion. `python -O` leaves "
            "assertions out, so raise an exception yourself. Section 4."
        ) from error
    except (NameError, TypeError, AttributeError):
        raise  # a slip in the learner's code
    except Exception:
        raised = True
    after = model.state_dict()
    if changed := [k for k, v in after.items() if not torch.equal(v, before[k])]:
        parameters = dict(model.named_parameters())
        if model.loads < 2:
            reason = (
                "load_state_dict copies what fits before it raises an error. Find all "
                "mismatches before you load, or load a backup into this model "
                "(`model = backup` only changes a local name). Section 4."
            )
        elif any(key in parameters for key in changed):
            reason = (
                "You loaded a backup, but it already held the new values: it "
                "shares its memory with the model, or you took it after the load. "
                "Take a real copy before you load. Section 3."
            )
        else:
            reason = (
                "All parameters are back, but not the buffers: back up the whole "
                "state_dict. Section 2."
            )
        raise Wrong(
            f"After a failed load of a state {case}, {changed[0]} has changed. {reason}"
        )
    _same_parameters(objects, model)
    if not raised:
        raise Wrong(
            f"A state {case} raised no error, so the caller assumes that the weights "
            "are loaded. Raise an error. Section 4."
        )


def _same_parameters(objects: list[nn.Parameter], model: nn.Module) -> None:
    if any(a is not b for a, b in zip(objects, model.parameters(), strict=True)):
        raise Wrong(
            "The values are right, but the model has new parameters (assign=True?). An "
            "existing optimizer still holds the old ones. Copy the values instead."
        )


def _restore_with(backup: Callable[[State], State], again: bool = True) -> Callable:
    def safe_load(model, state):
        kept = backup(model.state_dict())
        try:
            model.load_state_dict(state)
        except RuntimeError:
            model.load_state_dict(kept)
            if again:
                raise

    return safe_load


def _start_safe_load(model, state):
    backup = model.state_dict()
    try:
        model.load_state_dict(state)
    except RuntimeError:
        model.load_state_dict(backup)
        raise


def _only_shapes(model, state):
    own = model.state_dict()
    for key in own:
        if key in state and own[key].shape != state[key].shape:
            raise ValueError(key)
    model.load_state_dict(state)


def _only_keys(model, state):
    if model.state_dict().keys() != state.keys():
        raise ValueError
    model.load_state_dict(state)


def _filtered(model, state):
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if fits.keys() == own.keys():
        model.load_state_dict(fits)


def _rebound(model, state):
    backup = copy.deepcopy(model)
    try:
        model.load_state_dict(state)
    except RuntimeError:
        model = backup
        raise


def _only_a_copy(model, state):
    copy.deepcopy(model).load_state_dict(state)


def _assigned(model, state):
    copy.deepcopy(model).load_state_dict(state)
    model.load_state_dict(state, assign=True)


def _parameters_only(model, state):
    backup = {name: p.clone() for name, p in model.named_parameters()}
    try:
        model.load_state_dict(state)
    except RuntimeError:
        model.load_state_dict(backup, strict=False)
        raise


def _restored_by_assign(model, state):
    backup = copy.deepcopy(model.state_dict())
    try:
        model.load_state_dict(state)
    except RuntimeError:
        model.load_state_dict(backup, assign=True)
        raise


def _copied_too_late(model, state):
    try:
        model.load_state_dict(state)
    except RuntimeError:
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        raise


def _asserted_first(model, state):
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert all(own[key].shape == state[key].shape for key in own)
    model.load_state_dict(state)


safe_load = Exercise(
    _check_safe_load,
    start=_start_safe_load,
    hints=[
        "What does backup hold after load_state_dict has written into the model?",
        "Section 3: backup shares its memory with the model, so it was overwritten "
        "too.",
        "Which expressions in section 3 really copy? Use one for backup.",
    ],
    solution=_restore_with(copy.deepcopy),
    text="""\
def safe_load(model, state):
    backup = copy.deepcopy(model.state_dict())
    try:
        model.load_state_dict(state)
    except RuntimeError:
        model.load_state_dict(backup)
        raise

# or, without a backup: compare all keys and shapes first, or try
# copy.deepcopy(model).load_state_dict(state) first
""",
    wrong_answers=[
        (_restore_with(dict), "shares its memory"),
        (_restore_with(lambda s: s.copy()), "shares its memory"),
        (
            _restore_with(lambda s: {k: v.cpu() for k, v in s.items()}),
            "Take a real copy",
        ),
        (lambda model, state: model.load_state_dict(state), "copies what fits before"),
        (_rebound, "only changes a local name"),
        (_restore_with(copy.deepcopy, again=False), "raised no error"),
        (_only_shapes, "without head.bias"),
        (_only_keys, "with a head for 5 classes"),
        (_filtered, "raised no error"),
        (_only_a_copy, "the model itself must be loaded"),
        (_assigned, "has new parameters"),
        (_restored_by_assign, "has new parameters"),
        (_parameters_only, "not the buffers"),
        (_copied_too_late, "you took it after the load"),
        (_asserted_first, "is refused by an assertion"),
    ],
)


# --- 3: strip the prefixes of wrappers -------------------------------------------

# The key in the file -> the key of the plain model
_KEYS = {
    "nothing to strip": {"layer1.0.weight": "layer1.0.weight"},
    "DataParallel or DDP": {"module.layer1.0.weight": "layer1.0.weight"},
    "torch.compile": {"_orig_mod.layer1.0.weight": "layer1.0.weight"},
    "a compiled model in DDP": {"module._orig_mod.head.bias": "head.bias"},
    "a compiled DDP": {"_orig_mod.module.head.bias": "head.bias"},
    "module. in the middle of a key": {
        "module.encoder.module.weight": "encoder.module.weight",
        "module.head.bias": "head.bias",
    },
    "module. in the middle, and no wrapper": {
        "encoder.module.weight": "encoder.module.weight",
        "decoder._orig_mod.weight": "decoder._orig_mod.weight",
    },
    "a name that begins like a prefix": {
        "module_list.0.weight": "module_list.0.weight",
        "modulation.weight": "modulation.weight",
    },
}


def _check_strip_wrappers(strip_wrappers: Callable[[State], State]) -> None:
    for case, keys in _KEYS.items():
        state = {key: torch.randn(2) for key in keys}
        given = dict(state)
        stripped = strip_wrappers(state)
        if list(state) != list(given):
            raise Wrong(
                f"You changed the dictionary that was passed in ({case}): it now "
                f"holds {list(state)}. Build a new one and return it. Section 5."
            )
        if not isinstance(stripped, dict):
            raise Wrong(f"Expected a dictionary, got a {type(stripped).__name__}.")
        if list(stripped) != list(keys.values()):
            raise Wrong(
                f"{case}: from {list(keys)} expected {list(keys.values())}, got "
                f"{list(stripped)}. {_reason(case)} Section 5."
            )
        for key, new in keys.items():
            if not torch.equal(stripped[new], given[key]):
                raise Wrong(f"{new} does not hold the values of {key}.")
            if stripped[new].data_ptr() != given[key].data_ptr():
                raise Wrong(
                    f"{new} is a copy. Only the keys change: put the same tensors "
                    "into the new dictionary, which takes no memory."
                )


def _reason(case: str) -> str:
    if case.startswith("module. in the middle"):
        return (
            "Only a prefix at the beginning comes from a wrapper, but "
            "replace removes every match."
        )
    if "compile" in case and "D" in case:
        return "Wrappers can be nested, in either order."
    if case == "torch.compile":
        return "torch.compile adds a prefix, too."
    return "Remove the prefix only where a key begins with exactly that prefix."


def _strip(key: str) -> str:
    return key.removeprefix("_orig_mod.").removeprefix("module.")


def _on_keys(rename: Callable[[str], str]) -> Callable[[State], State]:
    return lambda state: {rename(key): value for key, value in state.items()}


def _solution_strip(state):
    stripped = {}
    for key, value in state.items():
        while key.startswith(("module.", "_orig_mod.")):
            key = key.partition(".")[2]
        stripped[key] = value
    return stripped


def _start_strip(state):
    return ...


def _in_place(state):
    for key in list(state):
        state[_strip(_strip(key))] = state.pop(key)
    return state


strip_wrappers = Exercise(
    _check_strip_wrappers,
    start=_start_strip,
    hints=[
        "Build a new dictionary: compute each new key, and keep the value.",
        'key.removeprefix("module.") changes only a key that begins with "module.".',
        "Wrappers can be nested in either order: repeat until the key has no prefix "
        "left.",
        'while key.startswith(("module.", "_orig_mod.")): key = key.partition(".")[2]',
    ],
    solution=_solution_strip,
    text=inspect.getsource(_solution_strip).replace("_solution_strip", "strip_wrappers")
    + """
# PyTorch has a helper for one prefix, which changes the dictionary itself:
# torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(state, "module.")
""",
    wrong_answers=[
        (
            _on_keys(lambda k: k.replace("module.", "").replace("_orig_mod.", "")),
            "replace removes every match",
        ),
        (
            _on_keys(lambda k: k.replace("module.", "", 1).replace("_orig_mod.", "")),
            "replace removes every match",
        ),
        (_on_keys(lambda k: k[7:]), "only where a key begins"),
        (_on_keys(lambda k: k.lstrip("module.")), "only where a key begins"),
        (_on_keys(lambda k: k.split(".", 1)[1]), "only where a key begins"),
        (_on_keys(lambda k: k.removeprefix("module.")), "torch.compile adds a prefix"),
        (_on_keys(_strip), "in either order"),
        (_in_place, "Build a new one"),
        (lambda state: copy.deepcopy(_solution_strip(state)), "is a copy"),
        (lambda state: list(_solution_strip(state)), "Expected a dictionary"),
    ],
)


# --- 4: the backbone of a checkpoint with another head ---------------------------


class _Named(nn.Module):
    """Keys that hold "head" without being the head's."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"head": nn.Linear(4, 4)})
        self.head_norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, num_classes)


def _check_load_backbone(load_backbone: Callable[[nn.Module, State], None]) -> None:
    for make, classes in ((SmallCNN, 5), (_Named, 3), (SmallCNN, 10), (SmallCNN, 0)):
        model, state = make(10), make(classes or 10).state_dict()
        _filled(state)  # buffers too
        if classes == 0:
            state = _backbone_of(state)
        given, before = copy.deepcopy(state), copy.deepcopy(model.state_dict())
        try:
            load_backbone(model, state)
        except (ValueError, RuntimeError) as error:
            reason = (
                "It has no head, and needs none: only the other keys must match."
                if classes == 0
                else "Is a head of another shape in your way? Or keys such as "
                'attention.head.bias, which have "head" in them but do not begin '
                'with "head."? They belong to the backbone, on both sides.'
            )
            raise Wrong(
                "A state that should be accepted was refused: "
                f"{str(error)[:200]!r}. {reason} Section 5."
            ) from error
        if list(state) != list(given) or max_difference(state, given) > 0:
            raise Wrong(
                "You changed the state that was passed in: the caller may still need "
                "the head. Build a new dictionary. Section 5."
            )
        for key, value in model.state_dict().items():
            if not key.startswith("head.") and not torch.equal(value, given[key]):
                raise Wrong(
                    f"{key} was not loaded. Everything belongs to the backbone, "
                    'buffers included, except the keys that begin with "head.". '
                    "Sections 2 and 5."
                )
            if key.startswith("head.") and not torch.equal(value, before[key]):
                raise Wrong(
                    f"{key} was overwritten. The model must keep its own head, even "
                    f"if the shapes match (the state's head has {classes} outputs)."
                )
        memory = {tensor.data_ptr() for tensor in state.values()}
        if any(tensor.data_ptr() in memory for tensor in model.state_dict().values()):
            raise Wrong(
                "The model now shares its memory with the state that was passed in "
                "(assign=True?): training would change the state. Copy the values."
            )
    _check_refusals(load_backbone)


def _check_refusals(load_backbone: Callable[[nn.Module, State], None]) -> None:
    """A state that is not this backbone must be refused, and the keys be named."""
    state = SmallCNN(5).state_dict()
    body = _without(state, "layer2.0.weight")
    cases = {
        "whose keys all begin with module.": (
            {f"module.{key}": value for key, value in state.items()},
            "layer1.0.weight",
        ),
        "without layer2.0.weight": (body, "layer2.0.weight"),
        "with an unexpected key layer4.0.weight": (
            {**state, "layer4.0.weight": torch.ones(1)},
            "layer4.0.weight",
        ),
        "in which layer2.0.weight has another shape": (
            {**state, "layer2.0.weight": torch.ones(1)},
            "layer2.0.weight",
        ),
    }
    damaged, other_errors = [], []
    for case, (bad, key) in cases.items():
        model = SmallCNN(10)
        before = copy.deepcopy(_filled(model.state_dict()))
        try:
            load_backbone(model, bad)
        except AssertionError as error:
            raise Wrong(
                f"A state {case} is refused by an assertion. `python -O` leaves "
                "assertions out, so raise a ValueError, as the task says."
            ) from error
        except KeyError as error:
            if error.args[0] not in before.keys() | bad.keys():
                raise  # a slip in the learner's code
            raise Wrong(
                f"A state {case} ends in a KeyError: {error}. A key can be on one "
                "side only, so use .get(key). The task asks for a ValueError."
            ) from error
        except (RuntimeError, ValueError) as error:
            if key not in str(error):
                raise Wrong(
                    f"A state {case} is refused, but the message does not name "
                    f"{key!r}. It says: {str(error)[:200]!r}"
                ) from error
            if isinstance(error, RuntimeError):
                other_errors.append(f"{case} is refused by a {type(error).__name__}")
            if max_difference(model.state_dict(), before) > 0:
                damaged.append(case)
        else:
            raise Wrong(
                f"A state {case} was accepted silently. strict=False returns the "
                "missing and the unexpected keys: if they are not what you expect, "
                "raise a ValueError. Sections 4 and 5."
            )
    if damaged:
        raise Wrong(
            f"A state {damaged[0]} was refused, but only after part of it was "
            "loaded: the model is a mixture now. Compare keys and shapes before you "
            "load, or load into a copy of the model first. Section 4."
        )
    if other_errors:
        raise Wrong(
            f"A state {other_errors[0]}. The task asks for a ValueError, so that a "
            "caller can catch that. Compare the shapes yourself, too. Section 4."
        )


def _backbone_of(state: State) -> State:
    return {k: v for k, v in state.items() if not k.startswith("head.")}


def _solution_backbone(model, state):
    def without_head(state):
        return {k: v for k, v in state.items() if not k.startswith("head.")}

    backbone = without_head(state)
    new = {key: value.shape for key, value in backbone.items()}
    own = {k: v.shape for k, v in without_head(model.state_dict()).items()}
    misfits = [key for key in own | new if own.get(key) != new.get(key)]
    if misfits:
        raise ValueError(f"missing, unexpected or of another shape: {misfits}")
    model.load_state_dict(backbone, strict=False)


def _start_backbone(model, state):
    return ...


def _what_fits(model, state):
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fits, strict=False)


def _what_fits_without_head(model, state):
    own, body = model.state_dict(), _backbone_of(state)
    fits = {k: v for k, v in body.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fits, strict=False)


def _popped(model, state):
    for key in [k for k in state if k.startswith("head.")]:
        state.pop(key)
    model.load_state_dict(state, strict=False)


def _only_parameters(model, state):
    for name, parameter in model.named_parameters():
        if not name.startswith("head."):
            parameter.data.copy_(state[name])


def _only_missing(model, state):
    result = model.load_state_dict(_backbone_of(state), strict=False)
    missing = [k for k in result.missing_keys if not k.startswith("head.")]
    if missing:
        raise ValueError(missing)


def _asserted(model, state):
    result = model.load_state_dict(_backbone_of(state), strict=False)
    assert all(key.startswith("head.") for key in result.missing_keys)
    assert not result.unexpected_keys


def _load_then_look(model, state):
    result = model.load_state_dict(_backbone_of(state), strict=False)
    missing = [k for k in result.missing_keys if not k.startswith("head.")]
    if missing or result.unexpected_keys:
        raise ValueError(f"{missing}, {result.unexpected_keys}")


def _tried_on_a_copy(model, state):
    _load_then_look(copy.deepcopy(model), state)
    model.load_state_dict(_backbone_of(state), strict=False)


def _head_demanded(model, state):
    if misfits := model.state_dict().keys() ^ state.keys():
        raise ValueError(misfits)
    _solution_backbone(model, state)


def _all_shapes_compared(model, state):
    own = model.state_dict()
    if misfits := [k for k in state if k in own and own[k].shape != state[k].shape]:
        raise ValueError(misfits)
    _solution_backbone(model, state)


def _head_anywhere_on_one_side(model, state):
    new = {k for k in state if "head" not in k}
    if misfits := new ^ _backbone_of(model.state_dict()).keys():
        raise ValueError(misfits)
    _solution_backbone(model, state)


def _unguarded(model, state):
    own = model.state_dict()
    for key, value in _backbone_of(state).items():
        if own[key].shape != value.shape:
            raise ValueError(key)
    _solution_backbone(model, state)


def _shared(model, state):
    model.load_state_dict(_backbone_of(state), strict=False, assign=True)


def _runtime_error(model, state):
    try:
        _solution_backbone(model, state)
    except ValueError as error:
        raise RuntimeError(str(error)) from None


def _nameless(model, state):
    result = model.load_state_dict(_backbone_of(state), strict=False)
    if len(result.missing_keys) > 2 or result.unexpected_keys:
        raise ValueError("this state does not fit")


load_backbone = Exercise(
    _check_load_backbone,
    start=_start_backbone,
    hints=[
        "First build a dictionary without the head, as in section 5.",
        'Not every key with "head" in it is the head\'s: use startswith("head.").',
        "If you load first and check later, a refused state has already changed the "
        "model. Compare keys and shapes before you load, as in section 4, or load "
        "into a copy of the model first.",
        "own = {key: shape} of model.state_dict() without the head, new = the same of "
        "the backbone; misfits = [k for k in own | new if own.get(k) != new.get(k)]",
    ],
    solution=_solution_backbone,
    text=inspect.getsource(_solution_backbone).replace(
        "_solution_backbone", "load_backbone"
    ),
    wrong_answers=[
        (_what_fits, "was overwritten"),
        (_what_fits_without_head, "was accepted silently"),
        (
            lambda model, state: (
                model.load_state_dict(
                    {k: v for k, v in state.items() if "head" not in k}, strict=False
                )
                and None
            ),
            "was not loaded",
        ),
        (
            lambda model, state: (
                model.load_state_dict(_backbone_of(state), strict=False) and None
            ),
            "was accepted silently",
        ),
        (_popped, "Build a new dictionary"),
        (_only_parameters, "buffers included"),
        (_only_missing, "an unexpected key layer4.0.weight was accepted"),
        (_nameless, "does not name"),
        (_asserted, "is refused by an assertion"),
        (_load_then_look, "a mixture now"),
        (_shared, "shares its memory with the state"),
        (_runtime_error, "asks for a ValueError"),
        (_tried_on_a_copy, "another shape is refused by a RuntimeError"),
        (_head_demanded, "It has no head"),
        (_all_shapes_compared, "a head of another shape"),
        (_head_anywhere_on_one_side, "do not begin with"),
        (_unguarded, "ends in a KeyError"),
    ],
)


# --- Deeper: average two models --------------------------------------------------


def _check_average(average: Callable[[State, State], State]) -> None:
    a, b = SmallCNN(), SmallCNN()
    with torch.no_grad():
        for batches, model in ((1, a), (3, b)):
            for _ in range(batches):
                model.train()(torch.rand(4, 3, 32, 32))
    # Both ways round: the larger count is once the first's and once the second's
    for one, two in ((a, b), (b, a)):
        states = one.state_dict(), two.state_dict()
        kept = copy.deepcopy(states)
        mean = average(*states)
        for name, state, before in zip(("a", "b"), states, kept, strict=True):
            if list(state) != list(before) or max_difference(state, before) > 0:
                raise Wrong(
                    f"You changed {name}: you average in place (+=, add_, mul_ or "
                    "copy_), or write into the dictionary that was passed in, and so "
                    "into the model itself. Section 3 of lesson 02."
                )
        _check_mean(mean, *states)


def _check_mean(mean: State, a: State, b: State) -> None:
    if not isinstance(mean, dict) or set(mean) != set(a):
        found = list(mean)[:3] if isinstance(mean, dict) else type(mean).__name__
        raise Wrong(f"Expected a dictionary with all keys of a, got {found} ...")
    for key, value in mean.items():
        if not a[key].is_floating_point():
            if not isinstance(value, torch.Tensor):
                raise Wrong(
                    f"{key} is a {type(value).__name__}. A state dict holds tensors."
                )
            if value.dtype != torch.int64 or value != torch.maximum(a[key], b[key]):
                raise Wrong(
                    f"{key} is a count of batches, {a[key].item()} in a and "
                    f"{b[key].item()} in b. Expected the larger of the two as int64, "
                    f"got {value.item()} as {value.dtype}. Section 2."
                )
        elif not torch.allclose(value, (a[key] + b[key]) / 2):
            kind = "A buffer" if "running" in key else "A parameter"
            raise Wrong(
                f"{key} is not the mean of a's and b's values. {kind} that is a "
                "floating-point number is averaged. Section 3."
            )
    own = {t.data_ptr() for state in (a, b) for t in state.values()}
    shared = [key for key, value in mean.items() if value.data_ptr() in own]
    if shared:
        raise Wrong(
            f"{shared[0]} of the average shares its memory with a model: training that "
            "model would change the average. Section 3 of lesson 02."
        )
    SmallCNN().load_state_dict(mean)


def _average_with(
    number: Callable, count: Callable, running: Callable | None = None
) -> Callable[[State, State], State]:
    def average(a, b):
        mean = {}
        for key in a:
            merge = number if a[key].is_floating_point() else count
            if running is not None and "running" in key:
                merge = running
            mean[key] = merge(a[key], b[key])
        return mean

    return average


def _mean(a, b):
    return (a + b) / 2


def _solution_average(a, b):
    mean = {}
    for key in a:
        if a[key].is_floating_point():
            mean[key] = (a[key] + b[key]) / 2
        else:
            mean[key] = torch.maximum(a[key], b[key])
    return mean


def _start_average(a, b):
    return ...


average = Exercise(
    _check_average,
    start=_start_average,
    hints=[
        "Build a new dictionary, key by key.",
        "a[key].is_floating_point() tells weights and statistics from counts.",
        "torch.maximum(a[key], b[key]) is a new tensor, and so is (a[key] + b[key]) "
        "/ 2.",
    ],
    solution=_solution_average,
    text=inspect.getsource(_solution_average).replace("_solution_average", "average"),
    wrong_answers=[
        (_average_with(_mean, _mean), "a count of batches"),
        (_average_with(_mean, lambda a, b: a.clone()), "a count of batches"),
        (_average_with(_mean, lambda a, b: a + b), "a count of batches"),
        (_average_with(_mean, lambda a, b: max(a.item(), b.item())), "holds tensors"),
        (_average_with(_mean, torch.maximum, lambda a, b: a.clone()), "A buffer that"),
        (_average_with(lambda a, b: a.add_(b).div_(2), torch.maximum), "in place"),
        (_average_with(lambda a, b: a + b, torch.maximum), "is not the mean"),
        (_average_with(_mean, lambda a, b: a if a > b else b), "shares its memory"),
        (
            lambda a, b: {k: (a[k] + b[k]) / 2 for k in a if "num_batches" not in k},
            "all keys of a",
        ),
    ],
)


# --- Deeper: an optimizer that was created too early -----------------------------


def _check_prepare(prepare: Callable[[State], tuple[nn.Module, object]]) -> None:
    state = _filled(copy.deepcopy(SmallCNN().state_dict()))
    kept, random_state = copy.deepcopy(state), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each tensor that stays on meta
        answer = prepare(state)
    drawn = not torch.equal(random_state, torch.get_rng_state())
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise Wrong("Return two things: the model and the optimizer.")
    model, optimizer = answer
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise Wrong(
            "The model is still on the meta device, without values: load_state_dict "
            "without assign=True can't copy into it. Section 5."
        )
    if max_difference(model.state_dict(), kept) > 0:
        raise Wrong("The model does not hold the values of the state. Section 5.")
    memory = {tensor.data_ptr() for tensor in state.values()}
    copied = [k for k, v in model.state_dict().items() if v.data_ptr() not in memory]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left = [name for name, p in model.named_parameters() if id(p) not in held]
    before = copy.deepcopy(dict(model.named_parameters()))
    model(torch.rand(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    if max_difference(before, dict(model.named_parameters())) == 0:
        raise Wrong(
            "One step of the optimizer changes no parameter: it was created before "
            "load_state_dict(assign=True), and still holds the tensors that the model "
            "had then. Section 5."
        )
    if left:
        raise Wrong(f"The optimizer does not hold these parameters: {left}.")
    if copied:
        raise Wrong(
            f"It trains, but {copied[0]} is a copy of the state's tensor, so the "
            "weights take memory twice. Use the same tensors: assign=True. Section 5."
        )
    if drawn:
        raise Wrong(
            "It trains, but random weights were drawn first, and never used. "
            'Build the model under `with torch.device("meta"):`. Section 5.'
        )


def _start_prepare(state):
    with torch.device("meta"):
        model = SmallCNN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.load_state_dict(state, assign=True)
    return model, optimizer


def _solution_prepare(state):
    with torch.device("meta"):
        model = SmallCNN()
    model.load_state_dict(state, assign=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer


def _real_but_early(state):
    model = SmallCNN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.load_state_dict(state, assign=True)
    return model, optimizer


def _to_empty(state):
    with torch.device("meta"):
        model = SmallCNN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.zero_()
    return model, optimizer


def _only_the_head(state):
    model, _ = _solution_prepare(state)
    return model, torch.optim.SGD(model.head.parameters(), lr=0.1)


def _copying(state):
    model = SmallCNN()
    model.load_state_dict(state)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def _random_first(state):
    model = SmallCNN()
    model.load_state_dict(state, assign=True)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


prepare = Exercise(
    _check_prepare,
    start=_start_prepare,
    hints=[
        "Which parameters does the optimizer hold, and which does the model hold now?",
        "assign=True gives the model new parameters. When do you create the optimizer?",
        "Build, load, then create the optimizer.",
    ],
    solution=_solution_prepare,
    text=inspect.getsource(_solution_prepare).replace("_solution_prepare", "prepare"),
    wrong_answers=[
        (_real_but_early, "changes no parameter"),
        (_to_empty, "does not hold the values"),
        (_only_the_head, "does not hold these parameters"),
        (_copying, "take memory twice"),
        (_random_first, "random weights were drawn first"),
        (lambda state: _solution_prepare(state)[0], "Return two things"),
    ],
)

quiz = define(globals())
