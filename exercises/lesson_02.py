"""Lesson 02: state_dict, and its deeper lesson on averaging and `assign=True`."""

import contextlib
import copy
import inspect
import warnings
from collections.abc import Callable

import torch
from torch import nn

from exercises import N_, Exercise, Wrong, define
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
                    "feedback": "A model does that. An optimizer only knows the "
                    "order in which it was given the parameters.",
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
        raise Wrong(
            "Calling it gave a {}, not an nn.Module.",
            type(model).__name__,
        )
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
            "registered. Keys found: {}. Section 2.",
            keys,
        )
    if len(trained) != 4:
        raise Wrong(
            "Expected the weights and biases of two Linear layers among the "
            "parameters, found {}. Layers in a plain list or dict are invisible to "
            "PyTorch. Section 2.",
            list(trained),
        )
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    expected = {k: v.shape for k, v in _Registered().state_dict().items()}
    if shapes != expected:
        raise Wrong(
            "Keep the names and the shapes, because other code and existing files "
            "rely on them. Expected {} and a mean of shape (4,), found {} and {}. "
            "Section 1.",
            list(expected),
            keys,
            tuple(shapes["mean"]),
        )
    loss = model(torch.rand(3, 4)).sum()
    if loss.requires_grad:
        loss.backward()
    if idle := [name for name, p in model.named_parameters() if p.grad is None]:
        raise Wrong(
            "{} got no gradient from backward(), so no optimizer can train them. Is "
            "requires_grad off, or does forward run under torch.no_grad()?",
            idle,
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
            "A state {} is refused by an assertion. `python -O` leaves assertions "
            "out, so raise an exception yourself. Section 4.",
            case,
        ) from error
    except (NameError, TypeError, AttributeError):
        raise  # a slip in the learner's code
    except Exception:
        raised = True
    after = model.state_dict()
    changed = [k for k, v in after.items() if not torch.equal(v, before[k])]
    if changed and not raised:
        raise Wrong(
            "A state {} was loaded in part, without an error. Did you pass "
            "strict=False, or catch the error and not raise it again? Section 4.",
            case,
        )
    if changed:
        parameters = dict(model.named_parameters())
        if model.loads < 2:
            reason = N_(
                "load_state_dict copies what fits before it raises an error. "
                "Find all mismatches before you load, or load a backup into "
                "this model (`model = backup` only changes a local name). "
                "Section 4."
            )
        elif any(key in parameters for key in changed):
            reason = N_(
                "You loaded a backup, but it already held the new values: it "
                "shares its memory with the model, or you took it after the "
                "load. Take a real copy before you load. Section 3."
            )
        else:
            reason = N_(
                "All parameters are back, but not the buffers: back up the "
                "whole state_dict. Section 2."
            )
        raise Wrong(
            "After a failed load of a state {}, {} has changed. {}",
            case,
            changed[0],
            reason,
        )
    _same_parameters(objects, model)
    if not raised:
        raise Wrong(
            "A state {} raised no error, so the caller assumes that the weights are "
            "loaded. Raise an error. Section 4.",
            case,
        )


def _same_parameters(objects: list[nn.Parameter], model: nn.Module) -> None:
    if any(a is not b for a, b in zip(objects, model.parameters(), strict=True)):
        raise Wrong(
            "The values are right, but the model has new parameters (assign=True?). An "
            "existing optimizer still holds the old ones. Copy the values instead."
        )


def _restore_with(
    backup: Callable[[State], State], again: bool = True, strict: bool = True
) -> Callable:
    def safe_load(model, state):
        kept = backup(model.state_dict())
        try:
            model.load_state_dict(state, strict=strict)
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


def _swallowed(model, state):
    with contextlib.suppress(RuntimeError):
        model.load_state_dict(state)


def _loose_copy_first(model, state):
    copy.deepcopy(model).load_state_dict(state, strict=False)
    model.load_state_dict(state, strict=False)


def _fitting_part(model, state):
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fits, strict=False)


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
        (_restore_with(copy.deepcopy, strict=False), "Did you pass strict=False"),
        (_loose_copy_first, "without head.bias was loaded in part"),
        (_fitting_part, "for 5 classes was loaded in part"),
        (_swallowed, "not raise it again"),
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


# --- 3: the backbone of a wrapped model ------------------------------------------

# The key in the file -> the key of the plain model, None where it is left out
_KEYS: dict[str, dict[str, str | None]] = {
    "nothing to strip": {"layer1.0.weight": "layer1.0.weight"},
    "DataParallel or DDP": {"module.layer1.0.weight": "layer1.0.weight"},
    "torch.compile": {"_orig_mod.layer1.0.weight": "layer1.0.weight"},
    "a compiled model in DDP": {"module._orig_mod.layer1.0.bias": "layer1.0.bias"},
    "a compiled DDP": {"_orig_mod.module.layer1.0.bias": "layer1.0.bias"},
    "module. in the middle of a key": {
        "module.encoder.module.weight": "encoder.module.weight",
        "module.layer1.0.bias": "layer1.0.bias",
    },
    "module. in the middle, and no wrapper": {
        "encoder.module.weight": "encoder.module.weight",
        "decoder._orig_mod.weight": "decoder._orig_mod.weight",
    },
    "a name that begins like a prefix": {
        "module_list.0.weight": "module_list.0.weight",
        "modulation.weight": "modulation.weight",
    },
    "the head": {"layer1.0.bias": "layer1.0.bias", "head.bias": None},
    "a wrapped head": {
        "_orig_mod.module.layer1.0.bias": "layer1.0.bias",
        "_orig_mod.module.head.weight": None,
    },
    'a backbone with "head" in its keys': {
        "module.attention.head.bias": "attention.head.bias",
        "module.head_norm.bias": "head_norm.bias",
        "module.head.bias": None,
    },
}


def _check_backbone_of(backbone_of: Callable[[State], State]) -> None:
    for case, keys in _KEYS.items():
        state = {key: torch.randn(2) for key in keys}
        given = dict(state)
        backbone = backbone_of(state)
        if list(state) != list(given):
            raise Wrong(
                "You changed the dictionary that was passed in ({}): it now holds "
                "{}. Build a new one and return it. Section 5.",
                case,
                list(state),
            )
        if not isinstance(backbone, dict):
            raise Wrong(
                "Expected a dictionary, got a {}.",
                type(backbone).__name__,
            )
        expected = {new: given[key] for key, new in keys.items() if new is not None}
        if list(backbone) != list(expected):
            raise Wrong(
                "{}: from {} expected {}, got {}. {} Section 5.",
                case,
                list(keys),
                list(expected),
                list(backbone),
                _reason(case),
            )
        for new, tensor in expected.items():
            if not torch.equal(backbone[new], tensor):
                raise Wrong(
                    "{} does not hold the values that the file has for it.",
                    new,
                )
            if backbone[new].data_ptr() != tensor.data_ptr():
                raise Wrong(
                    "{} is a copy. Only the keys change: put the same tensors into "
                    "the new dictionary, which takes no memory.",
                    new,
                )


def _reason(case: str) -> str:
    if case.startswith("module. in the middle"):
        return N_(
            "Only a prefix at the beginning comes from a wrapper, but replace "
            "removes every match."
        )
    if "compile" in case and "D" in case:
        return N_("Wrappers can be nested, in either order.")
    if case == "torch.compile":
        return N_("torch.compile adds a prefix, too.")
    if case == "the head":
        return N_("Leave out the head, whose keys begin with head.")
    if case == "a wrapped head":
        return N_(
            "The head's keys begin with head. only once the prefixes are stripped."
        )
    if "backbone" in case:
        return N_(
            'A key with "head" in it belongs to the head only if it begins with "head."'
        )
    return N_("Remove the prefix only where a key begins with exactly that prefix.")


def _strip(key: str) -> str:
    return key.removeprefix("_orig_mod.").removeprefix("module.")


def _strip_all(key: str) -> str:
    return _strip(_strip(key))


def _on_keys(rename: Callable[[str], str]) -> Callable[[State], State]:
    return lambda state: {rename(key): value for key, value in state.items()}


def _solution_backbone_of(state):
    backbone = {}
    for key, value in state.items():
        while key.startswith(("module.", "_orig_mod.")):
            key = key.partition(".")[2]
        if not key.startswith("head."):
            backbone[key] = value
    return backbone


def _start_backbone_of(state):
    return ...


def _in_place(state):
    for key in list(state):
        state[_strip_all(key)] = state.pop(key)
    return state


def _head_left_out_first(state):
    kept = {k: v for k, v in state.items() if not k.startswith("head.")}
    return _on_keys(_strip_all)(kept)


def _head_anywhere(state):
    return {_strip_all(k): v for k, v in state.items() if "head" not in k}


backbone_of = Exercise(
    _check_backbone_of,
    start=_start_backbone_of,
    hints=[
        "Build a new dictionary: compute each new key, and keep the value.",
        'key.removeprefix("module.") changes only a key that begins with "module.".',
        "Wrappers can be nested in either order: repeat until the key has no prefix "
        "left. Only then look whether it belongs to the head.",
        'while key.startswith(("module.", "_orig_mod.")): key = key.partition(".")[2]',
    ],
    solution=_solution_backbone_of,
    text=inspect.getsource(_solution_backbone_of).replace(
        "_solution_backbone_of", "backbone_of"
    )
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
        (_on_keys(_strip_all), "Leave out the head"),
        (_head_left_out_first, "only once the prefixes are stripped"),
        (_head_anywhere, 'only if it begins with "head."'),
        (_in_place, "Build a new one"),
        (lambda state: copy.deepcopy(_solution_backbone_of(state)), "is a copy"),
        (lambda state: list(_solution_backbone_of(state)), "Expected a dictionary"),
    ],
)


# --- 4: a model and its optimizer, continued twice -------------------------------

Pair = tuple[nn.Module, torch.optim.Optimizer]


def _tiny_model() -> nn.Sequential:
    """Two parameters of each shape, so that a wrong order raises no error."""
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, batches) -> None:
    for batch in batches:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()


def _check_branch(branch: Callable[[nn.Module, torch.optim.Optimizer], Pair]) -> None:
    torch.manual_seed(0)
    model, batches = _tiny_model(), torch.rand(10, 8, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, betas=(0.8, 0.9))
    _train(model, optimizer, batches[:5])
    before = copy.deepcopy(_tensors(model, optimizer))
    answer = branch(model, optimizer)
    if (
        not isinstance(answer, tuple)
        or len(answer) != 2
        or not isinstance(answer[0], nn.Module)
        or not isinstance(answer[1], torch.optim.Optimizer)
    ):
        raise Wrong("Return two things: the copy of the model, and its optimizer.")
    twin, twin_optimizer = answer
    _check_twin(model, twin)
    _check_twin_optimizer(model, optimizer, twin, twin_optimizer)
    _train(twin, twin_optimizer, batches[5:])
    if max_difference(_tensors(model, optimizer), before) > 0:
        raise Wrong(
            "Training the copy changed the original model or its optimizer: they share "
            "memory. Section 7."
        )
    _train(model, optimizer, batches[5:])
    ours, theirs = _tensors(model, optimizer), _tensors(twin, twin_optimizer)
    if ours.keys() != theirs.keys() or max_difference(ours, theirs) > 1e-6:
        raise Wrong(
            "Trained on the same batches, the copy and the original end with different "
            "weights. Does the copy's optimizer hold the whole state? Section 6."
        )


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """All tensors that training changes, by name."""
    tensors = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key} of {name}"] = value
    return tensors


def _check_twin(model: nn.Module, twin: nn.Module) -> None:
    memory = {parameter.data_ptr() for parameter in model.parameters()}
    if any(parameter.data_ptr() in memory for parameter in twin.parameters()):
        raise Wrong(
            "The weights of the model that you return are those of the original, so "
            "training it would train the original. Section 3."
        )
    if max_difference(twin.state_dict(), model.state_dict()) > 0:
        raise Wrong("The copy of the model does not have the original's weights.")


def _check_twin_optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    twin: nn.Module,
    twin_optimizer: torch.optim.Optimizer,
) -> None:
    held = {id(p) for group in twin_optimizer.param_groups for p in group["params"]}
    if held & {id(p) for p in model.parameters()}:
        raise Wrong(
            "The optimizer that you return holds the original's parameters, so its "
            "step() would train the original. Create it for the copy's parameters."
        )
    if held != {id(p) for p in twin.parameters()}:
        raise Wrong(
            "The optimizer that you return does not hold the copy's parameters, so its "
            "step() would not train the copy. (copy.deepcopy(optimizer) copies the "
            "parameters once more.) Create it for the copy's parameters."
        )
    if not twin_optimizer.state:
        raise Wrong(
            "The copy's optimizer has no state: it remembers no gradient, and its "
            "first steps are too large. Load the original's state_dict. Section 6."
        )
    memory = {
        t.data_ptr() for state in optimizer.state.values() for t in state.values()
    }
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    for original, copied in pairs:
        theirs = optimizer.state[original]
        ours = twin_optimizer.state.get(copied, {})
        if any(tensor.data_ptr() in memory for tensor in ours.values()):
            if ours.get("exp_avg") is not theirs["exp_avg"]:
                raise Wrong(_BY_ORDER)
            raise Wrong(
                "The two optimizers share their state: a step of one changes the "
                "other's, because an optimizer does not copy what it loads. Section 7."
            )
        if "exp_avg" in ours and not torch.equal(ours["exp_avg"], theirs["exp_avg"]):
            raise Wrong(_BY_ORDER)
    for name in ("lr", "betas"):
        old, new = (o.param_groups[0].get(name) for o in (optimizer, twin_optimizer))
        if old != new:
            raise Wrong(
                "The copy's optimizer has another {}: {} instead of {}. "
                "load_state_dict restores the settings, too. Section 6.",
                name,
                new,
                old,
            )


_BY_ORDER = N_(
    "A parameter of the copy has the averages of another one: the state is "
    "matched by order. Pass the parameters in the original's order. Section 7."
)


def _solution_branch(model, optimizer):
    twin = copy.deepcopy(model)
    twin_optimizer = torch.optim.Adam(twin.parameters())
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return twin, twin_optimizer


def _start_branch(model, optimizer):
    return ...


def _branch_with(
    twin_of: Callable[[nn.Module], nn.Module] = copy.deepcopy,
    given: Callable[[nn.Module, nn.Module], object] = lambda m, t: t.parameters(),
    saved: Callable[[dict], dict | None] = copy.deepcopy,
    lr: float | None = None,
) -> Callable[[nn.Module, torch.optim.Optimizer], Pair]:
    def branch(model, optimizer):
        twin = twin_of(model)
        twin_optimizer = torch.optim.Adam(given(model, twin), lr=0.05)
        if (state := saved(optimizer.state_dict())) is not None:
            twin_optimizer.load_state_dict(state)
        if lr is not None:
            twin_optimizer.param_groups[0]["lr"] = lr
        return twin, twin_optimizer

    return branch


def _without_second_moments(saved):
    state = copy.deepcopy(saved)
    for of_parameter in state["state"].values():
        of_parameter["exp_avg_sq"].zero_()
    return state


branch = Exercise(
    _check_branch,
    start=_start_branch,
    hints=[
        "Two copies and one new object: a copy of the model, a new Adam for the copy's "
        "parameters, and a copy of the old Adam's state.",
        "The new Adam needs no lr: load_state_dict restores the settings as well.",
        "Without a copy, both optimizers would write into the same averages. Which "
        "function copies a state_dict with all its tensors?",
    ],
    solution=_solution_branch,
    text=inspect.getsource(_solution_branch).replace("_solution_branch", "branch")
    + """
# or copy both at once, so that the copied optimizer holds the copied parameters:
# return copy.deepcopy((model, optimizer))
""",
    wrong_answers=[
        (_branch_with(saved=lambda state: None), "has no state"),
        (_branch_with(saved=lambda state: state), "share their state"),
        (_branch_with(saved=dict), "share their state"),
        (_branch_with(twin_of=lambda model: model), "those of the original"),
        (_branch_with(twin_of=copy.copy), "those of the original"),
        (_branch_with(twin_of=lambda model: _tiny_model()), "does not have"),
        (_branch_with(given=lambda m, t: m.parameters()), "holds the original's"),
        (
            lambda model, optimizer: (copy.deepcopy(model), optimizer),
            "holds the original's",
        ),
        (
            lambda model, optimizer: (copy.deepcopy(model), copy.deepcopy(optimizer)),
            "does not hold the copy's",
        ),
        (
            _branch_with(given=lambda m, t: list(t.parameters())[::-1]),
            "matched by order",
        ),
        (_branch_with(lr=0.001), "another lr"),
        (_branch_with(saved=_without_second_moments), "different weights"),
        (lambda model, optimizer: copy.deepcopy(model), "Return two things"),
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
                    "You changed {}: you average in place (+=, add_, mul_ or "
                    "copy_), or write into the dictionary that was passed in, and "
                    "so into the model itself. Section 3 of lesson 02.",
                    name,
                )
        _check_mean(mean, *states)


def _check_mean(mean: State, a: State, b: State) -> None:
    if not isinstance(mean, dict) or set(mean) != set(a):
        found = list(mean)[:3] if isinstance(mean, dict) else type(mean).__name__
        raise Wrong(
            "Expected a dictionary with all keys of a, got {} ...",
            found,
        )
    for key, value in mean.items():
        if not a[key].is_floating_point():
            if not isinstance(value, torch.Tensor):
                raise Wrong(
                    "{} is a {}. A state dict holds tensors.",
                    key,
                    type(value).__name__,
                )
            if value.dtype != torch.int64 or value != torch.maximum(a[key], b[key]):
                raise Wrong(
                    "{} is a count of batches, {} in a and {} in b. Expected the "
                    "larger of the two as int64, got {} as {}. Section 2.",
                    key,
                    a[key].item(),
                    b[key].item(),
                    value.item(),
                    value.dtype,
                )
        elif not torch.allclose(value, (a[key] + b[key]) / 2):
            kind = "A buffer" if "running" in key else "A parameter"
            raise Wrong(
                "{} is not the mean of a's and b's values. {} that is a "
                "floating-point number is averaged. Section 3.",
                key,
                kind,
            )
    own = {t.data_ptr() for state in (a, b) for t in state.values()}
    shared = [key for key, value in mean.items() if value.data_ptr() in own]
    if shared:
        raise Wrong(
            "{} of the average shares its memory with a model: training that model "
            "would change the average. Section 3 of lesson 02.",
            shared[0],
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
        raise Wrong(
            "The optimizer does not hold these parameters: {}.",
            left,
        )
    if copied:
        raise Wrong(
            "It trains, but {} is a copy of the state's tensor, so the weights take "
            "memory twice. Use the same tensors: assign=True. Section 5.",
            copied[0],
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
