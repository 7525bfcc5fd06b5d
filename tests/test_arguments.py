"""Every argument of every public function, and every setting of every layer: a value of a wrong kind is answered by a sentence.

What is wrong for an argument, its annotation says, by a rule of this file's own.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import attrs
import pytest
import torch

import fundl
from fundl import (
    Add,
    DeferredLogits,
    Epoch,
    Evaluation,
    Layer,
    Linear,
    ReLU,
    Shape,
    adjustable,
    batch_norm,
    chain,
    compose,
    constant_schedule,
    cosine_schedule,
    decoder_block,
    distributed,
    ema,
    embedding,
    ensemble,
    forward,
    frozen,
    initialize,
    key,
    language,
    layer_norm,
    linear,
    lstm,
    mse,
    random,
    save,
    sgd,
    skip_nonfinite,
    split,
    train_state,
    train_step,
    transformer_block,
    tree,
)
from fundl._common.arguments import is_told
from fundl._common.generated import Function
from tests.face import PUBLIC
from tests.samples import SAMPLES

WRONG: Final[Mapping[str, object]] = MappingProxyType(
    {
        "True": True,
        "an int": 3,
        "a number": 2.5,
        "a text": "1",
        "None": None,
        "a list": [1],
        "a tensor": torch.ones(7),
        "a function": len,
        "a class": int,
        "an object": object(),
    }
)
"""One value of each kind."""


def takes(annotation: object, value: object) -> bool:
    """Whether a value is what an annotation says, or it is not known; True is no number."""
    if isinstance(annotation, typing.TypeVar):
        return annotation.__bound__ is None or takes(annotation.__bound__, value)
    if isinstance(annotation, str | typing.ForwardRef):  # of a model, or what shows progress
        return isinstance(value, bool | Layer | tuple | None)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in {typing.Union, types.UnionType, typing.Literal}:
        return any(takes(one, value) if origin is not typing.Literal else repr(one) == repr(value) for one in arguments)
    if annotation in {int, float}:
        return isinstance(value, int if annotation is int else int | float) and not isinstance(value, bool)
    cls = origin or annotation
    if getattr(cls, "_is_protocol", False):  # of functions
        return callable(value)
    return not isinstance(cls, type) or cls is inspect.Parameter.empty or isinstance(value, cls)


# --- Calls that are right ----------------------------------------------------------------------------------------------

MODEL: Final = initialize(key(0), compose(linear(2, 8), ReLU(), linear(8, 1)))
X: Final = torch.ones(4, 2)
TARGET: Final = torch.zeros(4, 1)
OPTIMIZER: Final = sgd(0.1)
MODELS: Final = ensemble.initialize(split(key(0), 2), linear(2, 1))
HISTORY: Final = (Epoch(1, 10, Evaluation(0.7), None, 0.1),)

GIVEN: Final[Mapping[str, object]] = {
    **dict.fromkeys(("params", "model", "tree", "like", "updates", "tangent"), MODEL),
    **dict.fromkeys(("x", "prediction", "actual", "expected", "first", "second", "data", "tangent_x"), X),
    **dict.fromkeys(("features", "hidden", "channels", "in_features", "out_features", "length", "vocabulary"), 8),
    **dict.fromkeys(("in_channels", "out_channels", "in1_features", "in2_features", "hidden_features", "steps"), 4),
    **dict.fromkeys(("heads", "groups", "blocks", "count", "every", "batch_size", "classes", "patience", "rank", "runs"), 2),
    **dict.fromkeys(("warmup_steps", "epochs", "low"), 1),
    **dict.fromkeys(
        ("rate", "initial", "final", "peak", "decay", "momentum", "weight_decay", "rtol", "atol", "probability"), 0.1
    ),
    **dict.fromkeys(("factor", "scale", "growth", "max_norm", "limit", "value"), 0.5),
    **dict.fromkeys(("optimizer", "transform", "direction"), OPTIMIZER),
    **dict.fromkeys(("kernel_size", "high", "seed"), 3),
    **dict.fromkeys(("shape", "input_shape"), (4, 2)),
    **dict.fromkeys(("mean", "std"), torch.ones(2)),
    "target": TARGET,
    "equation": "...d,dh->...h",
    "sizes": {"d": 2, "h": 3},
    "grad": TARGET,
    "key": key(0),
    "keys": split(key(0), 2),
    "models": MODELS,
    "loss": mse,
    "step": train_step(mse, OPTIMIZER),
    "state": train_state(key(1), MODEL, OPTIMIZER),
    "batches": [(X, TARGET)],
    "history": HISTORY,
    "number": "train_loss",
    "name": "a name",
    "progress": False,
    "residuals": forward(MODEL, X)[1],
    "labels": torch.tensor([0, 1]),
    "layer": linear(4, 4),
    "layers": (linear(8, 8),),
    "branches": (linear(8, 8),),
    "transforms": (OPTIMIZER,),
    "activation": ReLU(),
    "block": transformer_block(8, 2),
    "norm": layer_norm(8),
    "mask": None,
    "losses": [1.0, 2.0],
    "schedules": [cosine_schedule(0.1, 10), constant_schedule(0.1)],
    "boundaries": [5],
    "values": [0.1, 0.01],
    "points": {0: 0.1, 10: 0.01},
    "trees": [X, X],
    "embedding": embedding(10, 8),
    "error": ValueError(),
    "function": torch.neg,
    "where": lambda model: model[0],
    "device": "cpu",
    "dtype": torch.float64,
    "group_sizes": 2,
    "memory": 1e9,
}
"""What arguments are, by their names."""

CLASSES: Final[Mapping[str, object]] = {"prediction": torch.zeros(4, 2), "target": torch.tensor([0, 1, 0, 1])}
NUMBERS: Final[Mapping[str, object]] = {"target": X}
PAIRS: Final[Mapping[str, object]] = {"prediction": (X, X), "target": X}
VECTORS: Final[Mapping[str, object]] = {"prediction": (X, X), "target": X[:, 0]}
RUNS: Final[Mapping[str, object]] = {
    "state": ensemble.train_state(split(key(0), 2), MODELS, OPTIMIZER),
    "step": ensemble.train_step(mse, OPTIMIZER),
    "batches": [(torch.ones(2, 4, 2), torch.ones(2, 4, 1))],
}
RATES: Final[Mapping[str, object]] = {"state": train_state(key(0), MODEL, adjustable(OPTIMIZER))}
WRITER: Final[Mapping[str, object]] = {
    "model": initialize(key(0), embedding(10, 10)),
    **dict.fromkeys(("x", "prompt"), torch.ones(1, 2, dtype=torch.int64)),
    "batch": 1,
    "length": 8,
    "compile": False,
}
AVERAGING: Final = chain(ema(0.9), OPTIMIZER)
DEFAULTS: Final[Mapping[str, object]] = {"norm": None, "hidden": None}
EVERYWHERE: Final[Mapping[str, object]] = {"where": None}
OTHERS: Final[Mapping[str, Mapping[str, object]]] = {
    **dict.fromkeys(("focal", "multi_class_margin", "precision", "recall", "f1"), CLASSES),
    "top_k_accuracy": {**CLASSES, "k": 1},
    **dict.fromkeys(("mean_absolute_error", "root_mean_squared_error", "r2", "auroc"), NUMBERS),
    "metric_of_sums": {"sums": torch.add, "value": torch.sum},
    "metric_of_rows": {"rows": torch.add, "value": torch.sum},
    **dict.fromkeys(("cross_entropy", "nll", "accuracy", "confusion_matrix", "perplexity"), CLASSES),
    **dict.fromkeys(("mse", "mae", "huber", "kl_divergence", "binary_cross_entropy_with_logits"), NUMBERS),
    "binary_cross_entropy": {"prediction": X, "target": X},
    **dict.fromkeys(("log_cosh", "pinball", "poisson_nll", "binary_focal"), NUMBERS),
    **dict.fromkeys(("hinge", "squared_hinge", "soft_margin", "hinge_embedding", "multi_label_margin"), NUMBERS),
    **dict.fromkeys(("gaussian_nll", "margin_ranking"), PAIRS),
    **dict.fromkeys(("contrastive", "cosine_embedding"), VECTORS),
    "triplet": {"prediction": (X, X, X)},
    "dice": {"prediction": torch.ones(1, 2, 3), "target": torch.ones(1, 2, 3)},
    "ctc": {"prediction": torch.zeros(1, 3, 3), "target": torch.tensor([[1]])},
    **dict.fromkeys(("adamw", "lion", "add_decayed_weights", "save", "load"), EVERYWHERE),
    **dict.fromkeys(
        (
            "radam",
            "nadam",
            "adamax",
            "adadelta",
            "adafactor",
            "muon",
            "lamb",
            "lars",
            "schedule_free_adamw",
            "scale_by_trust_ratio",
        ),
        EVERYWHERE,
    ),
    **dict.fromkeys(("reduce_on_plateau", "hyperparameters", "with_hyperparameters"), RATES),
    "skipped_steps": {"state": train_state(key(0), MODEL, skip_nonfinite(OPTIMIZER))},
    "attention": dict.fromkeys(("q", "k", "v"), torch.ones(1, 1, 3, 2)),
    **dict.fromkeys(("language.empty_cache", "language.generate", "language.prefill"), WRITER),
    "chunked_cross_entropy": {"prediction": DeferredLogits(X, torch.ones(5, 2), None), "target": torch.tensor([0, 1, 0, 1])},
    "adapted": {"layer": initialize(key(0), linear(4, 4))},
    "averaged": {"state": train_state(key(0), MODEL, AVERAGING)},
    "both": {"first": linear(2, 2), "second": linear(2, 2)},
    "cyclic_schedule": {"low": 0.0, "high": 1.0, "rise": 3},
    "calibrate": {"model": initialize(key(0), batch_norm(2)), "batches": [X]},
    "decoder": {"block": decoder_block(8, 2)},
    "ensemble.fit": RUNS,
    "ensemble.minibatches": {"data": torch.ones(2, 4)},
    "ensemble.initialize": {"model": linear(2, 1)},
    "ensemble.stack": {"models": [linear(2, 1), linear(2, 1)]},
    "fold_in": {"data": 3},
    "jit": {"function": lambda a: a},
    "on_masked_pair": {"layer": Add()},
    "output_shape": {"shape": Shape(4, 2)},
    "partition": {"transforms": {"a": OPTIMIZER, "b": OPTIMIZER}, "where": {"a": "[0].weight", "b": "bias"}},
    "pipe": {"layers": (linear(8, 8), ReLU())},
    "random.gumbel": {"location": 0.0, "scale": 1.0},
    "random.exponential": {"scale": 1.0},
    "random.categorical": {"logits": X, "axis": -1, "shape": ()},
    "random.choice": {"shape": (2,), "probabilities": torch.ones(2)},
    "random.gamma": {"concentration": 2.0, "scale": 1.0},
    "random.dirichlet": {"concentration": torch.ones(2)},
    "random.beta": {"alpha": 1.0, "beta": torch.ones(2)},
    "random.normal": {"mean": 0.0, "std": 1.0},
    "random.truncated_normal": {"mean": 0.0, "std": 1.0, "low": -1.0, "high": 1.0},
    "random.uniform": {"low": 0.0, "high": 1.0},
    "scheduled": {"numbers": {"rate": constant_schedule(0.1)}},
    "scan": {"step": lambda state, _: (state, state)},
    "stateful": {"layer": lstm(2, 3)},
    "thaw": {"layer": frozen(linear(2, 3))},
    **dict.fromkeys(("transformer_block", "decoder_block"), DEFAULTS),
    "tree.axpy": {"y": X},
    "tree.map_with_path": {"function": lambda _path, leaf: leaf},
    "tree.records_of": {"cls": Linear},
    "tree.where": {"condition": torch.tensor(True), "yes": X, "no": X},
    "tree.map_records": {"function": lambda record: record},
    "tree.unstack": {"tree": torch.ones(2, 3)},
    "train_test_split": {"test_fraction": 0.5},
    "weight_of": {"mean": mse, "target": X},
}
"""What other arguments some functions take."""


IN_MODULES: Final[Mapping[types.ModuleType, str]] = MappingProxyType(
    {
        tree: "all any at axpy cast_to count equal inner_product leaves map_records map_with_path max mean min"
        " move_to norm records_of stack sum unstack where zeros_like",
        random: "bernoulli beta bits categorical choice dirichlet exponential gamma gumbel normal permutation rademacher"
        " randint truncated_normal uniform",
        distributed: "plan",
        language: "empty_cache generate prefill",
        ensemble: "each fit initialize minibatches share stack train_state train_step unstack",
    }
)
FUNCTIONS: Final[Mapping[str, Function]] = {
    **{name: value for name in PUBLIC if inspect.isfunction(value := getattr(fundl, name))},
    **{
        f"{module.__name__.removeprefix('fundl.')}.{name}": getattr(module, name)
        for module, names in IN_MODULES.items()
        for name in names.split()
    },
}

TAKEN: Final = frozenset(
    {
        ("mean_and_std", "axes", "None"),  # all axes, as in torch
        ("mean_and_std", "axes", "a list"),
        ("reduce_on_plateau", "losses", "a tensor"),
        ("standardize", "mean", "an int"),
        ("standardize", "std", "an int"),
        ("standardize", "std", "True"),
        ("standardize", "mean", "a number"),
        ("standardize", "std", "a number"),
        ("tree.stack", "trees", "a tensor"),
    }
)
"""What does what is meant."""
HOT: Final = frozenset(
    (
        "accuracy",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "binary_focal",
        "confusion_matrix",
        "contrastive",
        "cosine_embedding",
        "ctc",
        "dice",
        "f1",
        "focal",
        "gaussian_nll",
        "hinge",
        "hinge_embedding",
        "margin_ranking",
        "multi_class_margin",
        "multi_label_margin",
        "pinball",
        "poisson_nll",
        "precision",
        "recall",
        "squared_hinge",
        "top_k_accuracy",
        "triplet",
        "cross_entropy",
        "huber",
        "nll",
        "perplexity",
        "scale_loss",
    )
)
"""Each step calls them, or what they return: nothing is looked at unless the call has failed, and True is the number 1."""
CALLED: Final[Mapping[str, tuple[str, ...]]] = {
    "transform": ("optimizer",),
    "direction": ("optimizer",),
    "params": ("model", "layer 1"),
    "data": ("number to fold in",),
    "layer": ("Linear", "frozen", "recurrent", "Masked"),
    "activation": ("gains",),
    "models": ("ensemble",),
    "block": ("layer 1",),
    "norm": ("layer 1", "layer 2"),
    **dict.fromkeys(("first", "second"), ("model",)),
    "feed_forward": ("layer 2",),
    "count": ("how many", "permutation"),
    "step": ("what is compiled",),
    "schedules": ("schedule",),
    "dtype": ("random numbers come in",),
    "updates": ("updates",),
    **dict.fromkeys(("over", "part"), ("group",)),
    "error": ("last_good(error",),
}
"""How sentences may call an argument besides by its name, or a word of it."""


# --- The check ---------------------------------------------------------------------------------------------------------


def faults(what: str, annotations: Mapping[str, object], right: Mapping[str, object], call: Callable[..., object]) -> list[str]:  # type: ignore[explicit-any]  # of all arguments by name
    """What is wrong with how a call answers wrong values: it takes one in silence, or has no sentence of ours that names it."""
    call(**right)
    found = []
    for word in right:
        for kind, value in WRONG.items():
            if takes(annotations[word], value) or (what, word, kind) in TAKEN or (what in HOT and kind == "True"):
                continue
            names = (word, *word.split("_"), *CALLED.get(word, ()))
            try:
                call(**{**right, word: value})
            except (TypeError, ValueError) as error:
                if not is_told(error) or not any(name in str(error) for name in names):
                    found.append(f"{what}({word}={kind}): {error}")
            except Exception as error:
                found.append(f"{what}({word}={kind}): {type(error).__name__}: {error}")
            else:
                found.append(f"{what}({word}={kind}) is taken")
    return found


def called(function: Function, variadic: object, arguments: Mapping[str, object]) -> object:
    """The result of a call by names; a run goes to its end."""
    args, keywords = list[object](), dict[str, object]()
    for word, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            assert isinstance(variadic, tuple)
            args += variadic
        elif parameter.kind is parameter.KEYWORD_ONLY:
            keywords[word] = arguments[word]
        elif parameter.kind is not parameter.VAR_KEYWORD:
            args.append(arguments[word])
    result = function(*args, **keywords)
    return list(result) if isinstance(result, types.GeneratorType) else result


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, object]]:
    """The paths that functions take."""
    folder: Path = tmp_path_factory.mktemp("files")
    save(folder / "model", MODEL)
    (folder / "labels").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    there = {"path": folder / "model"}
    return {
        **dict.fromkeys(("load", "load_model", "load_metadata"), there),
        "save": {"path": folder / "new"},
        "write_csv": {"path": folder / "new.csv"},
        "read_idx": {"path": folder / "labels"},
        "write_picture": {"path": folder / "new.png"},
    }


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in {"is_matrix", "keep_freed_memory", "weighed_by"}])
def test_functions_answer_values_of_a_wrong_kind(name: str, files: Mapping[str, Mapping[str, object]]) -> None:
    function = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters
    given = {**GIVEN, **OTHERS.get(name, {}), **files.get(name, {})}
    single = [
        word
        for word, parameter in parameters.items()
        if parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    ]
    asked_for = {*OTHERS.get(name, ()), *files.get(name, ()), "progress"}
    right = {
        word: given[word]
        if word in asked_for or parameters[word].default is inspect.Parameter.empty
        else parameters[word].default
        for word in single
    }
    variadic = next((given[word] for word, one in parameters.items() if one.kind is one.VAR_POSITIONAL), ())
    annotations = {word: parameters[word].annotation for word in single}
    assert not faults(name, annotations, right, lambda **arguments: called(function, variadic, arguments))


LAYERS: Final = {type(record): record for sample in SAMPLES for record in tree.records(sample.model)}


@pytest.mark.parametrize("cls", [cls for cls in LAYERS if cls.__module__.startswith("fundl.")], ids=lambda cls: cls.__name__)
def test_layers_answer_settings_of_a_wrong_kind(cls: type[Layer[object]]) -> None:
    layer, annotations = LAYERS[cls], typing.get_type_hints(cls)
    fields = [field for field in attrs.fields(cls) if field.init]
    values = {field.alias: getattr(value := getattr(layer, field.name), "as_given", value) for field in fields}
    settings = {field.alias: annotations[field.name] for field in fields if field.name not in cls.children}
    rest = {alias: value for alias, value in values.items() if alias not in settings}
    assert not faults(
        cls.__name__,
        settings,
        {alias: values[alias] for alias in settings},
        functools.partial(cls, **rest),
    )


def test_a_parameter_that_is_no_tensor_is_told() -> None:
    for wrong in (2.5, "1", [1], len, object()):
        with pytest.raises(TypeError, match=r"^Linear's weight must be a tensor, not "):
            Linear(wrong, None)  # type: ignore[arg-type]  # the error under test
        with pytest.raises(TypeError, match=r"^Linear's bias must be a tensor or None, not "):
            Linear(torch.ones(1, 2), wrong)  # type: ignore[arg-type]  # likewise
