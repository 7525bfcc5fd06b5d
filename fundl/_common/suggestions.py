"""Suggestions for error messages: what to write here for the names, arguments and objects of other libraries.

It is looked up only after something has failed.
"""

import functools
import inspect
import re
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar, cast

from torch import Tensor

from fundl._common.arguments import is_told, require_plain, wrong_argument
from fundl._common.generated import Function, define

F = TypeVar("F")

_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "rate": ("lr", "learning_rate", "step_size", "p", "drop_prob"),
    "beta1": ("betas", "b1"),
    "beta2": ("betas", "b2"),
    "epsilon": ("eps",),
    "delta": ("beta",),
    "decay": ("alpha",),
    "rate_decay": ("lr_decay",),
    "initial": ("initial_accumulator_value", "init_value"),
    "where": ("mask",),
    "axis": ("dim",),
    "start": ("start_dim",),
    "in_features": ("in_size", "input_size"),
    "out_features": ("out_size",),
    "hidden_features": ("hidden_size",),
    "depth": ("num_layers",),
    "features": ("embed_dim", "d_model", "embedding_dim", "normalized_shape"),
    "heads": ("nhead", "num_heads"),
    "hidden": ("dim_feedforward",),
    "vocabulary": ("num_embeddings",),
    "padding": ("padding_idx",),
    "channels": ("num_features", "num_channels", "num_parameters"),
    "bound": ("lambd",),
    "std": ("stddev",),
    "groups": ("num_groups",),
    "bias": ("use_bias",),
    "weight_init": ("kernel_init",),
    "factor": ("scale_factor", "upscale_factor", "downscale_factor", "gamma", "decay_rate"),
    "negative_slope": ("a",),
    "steps": ("T_max", "decay_steps", "transition_steps", "total_steps"),
    "final": ("eta_min", "end_value"),
    "peak": ("max_lr", "peak_value"),
    "low": ("min_val",),
    "high": ("max_val",),
    "divisor": ("divisor_override",),
    "count_include_padding": ("count_include_pad",),
    "classes": ("num_classes",),
    "test_fraction": ("test_size",),
    "max_norm": ("max_grad_norm",),
    "limit": ("clip_value",),
    "epochs": ("n_epochs", "num_epochs", "max_epochs"),
    "count": ("epochs",),
    "progress": ("verbose",),
    "change": ("min_delta",),
    "static": ("static_argnames",),
}
"""Parameters, each with what torch, equinox, flax, optax and scikit-learn call it."""

_NEEDLESS: Final[Mapping[str, str]] = {
    "inplace": "no layer writes over its input",
    "batch_first": "the batch is always the first axis",
    **dict.fromkeys(("foreach", "fused"), "kernels for all parameters at once are used where there are any"),
    "capturable": "any step can be compiled, see jit",
    "differentiable": "steps are functions, and record no tape",
    "maximize": "to climb, let the loss be the negative",
    "track_running_stats": "statistics are those of the batch until calibrate or track gives others",
    **dict.fromkeys(
        ("affine", "elementwise_affine"), "a norm made by its function has a weight, one made by its class has none"
    ),
    "momentum": "that of statistics is for track(model, residuals, momentum=...), that of steps for sgd",
    "device": "initialize(key, model, device=...) says where",
    "requires_grad": "what is not to be trained is frozen(...)",
    **dict.fromkeys(
        ("training", "train", "deterministic"),
        "there are no modes: rekey(model, key) is the model that drops, the model itself does not",
    ),
    **dict.fromkeys(("key", "rngs", "generator"), "initialize(key, model) draws the parameters of a whole model"),
    "return_indices": "a layer has one output",
}
"""Parameters of theirs that have no counterpart here, each with the reason."""


# --- Calls -------------------------------------------------------------------------------------------------------------


def with_suggestions(function: F) -> F:
    """The function, but that the error for arguments that it does not take says what to write.

    Numbers, texts, options and initialisers are looked at before the call. It is for functions that are called now and then,
    such as those that make layers and optimizers: each call takes up to a microsecond longer.
    """
    called = cast("Function", function)  # what can be called is one

    def run(*args: object, **keywords: object) -> object:
        try:
            require_plain(called, args, keywords)
            return called(*args, **keywords)
        except Exception as error:
            if (wrong := _explanation(error, called, args, keywords)) is not None:
                raise wrong from None
            raise

    functools.update_wrapper(run, called)
    return cast("F", run)  # which is called as the function is


# Its own parameters are handed on by name, without tuples and dicts. What cannot be right goes the way of any call.
_EXPLAINED: Final = """
def {name}({parameters}):
    if {wrong}:
        return anyhow(({places}, *more), {{{by_name}}}, other)
    try:
        return called({places}, {named})
    except Exception as error:
        wrong = explanation(error, called, ({places},), {{{by_name}}})
        if wrong is None:
            raise
        raise wrong from None
"""
_NOTHING: Final = object()


def with_explanations(function: F) -> F:
    """`with_suggestions` for functions that each step calls, such as losses: nothing is looked at unless a call has failed."""
    called = cast("Function", function)
    known = inspect.signature(called).parameters
    places = [word for word, parameter in known.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    defaults = {word: known[word].default for word in known if word not in places}

    def anyhow(args: Sequence[object], named: Mapping[str, object], other: Mapping[str, object]) -> object:
        """The result of a call of which something is missing, too much or unknown."""
        count = args.index(_NOTHING) if any(value is _NOTHING for value in args) else len(args)
        behind = {word: value for word, value in zip(places[count:], args[count:], strict=False) if value is not _NOTHING}
        given = {word: value for word, value in named.items() if value is not defaults[word] and value is not _NOTHING}
        return with_suggestions(called)(*args[:count], **behind, **given, **other)

    source = _EXPLAINED.format(
        name=called.__name__,
        parameters=", ".join(
            [*(f"{word}=NOTHING" for word in places), "*more", *(f"{word}=default_{word}" for word in defaults), "**other"]
        ),
        wrong=" or ".join(["more", "other", *(f"{word} is NOTHING" for word in known)]),
        places=", ".join(places),
        named=", ".join(f"{word}={word}" for word in defaults),
        by_name=", ".join(f"{word!r}: {word}" for word in defaults),
    )
    scope: dict[str, object] = {"called": called, "anyhow": anyhow, "explanation": _explanation, "NOTHING": _NOTHING}
    missing = inspect.Parameter.empty
    scope |= {f"default_{word}": _NOTHING if value is missing else value for word, value in defaults.items()}
    run = define(source, called.__name__, scope)
    functools.update_wrapper(run, called)
    return cast("F", run)


def _explanation(
    error: Exception, called: Function, args: Sequence[object], keywords: Mapping[str, object]
) -> TypeError | None:
    """What to say instead of the error of a call, if it is one of Python or of a kernel for a wrong argument."""
    if is_told(error):
        return None
    if not fits(called, args, keywords):
        return misfit(called.__name__, called, args, keywords)
    return wrong_argument(called, args, keywords)


def _holds_parameters(value: object) -> bool:
    """Whether a value is a model, or parameters, as optimizers of torch are given them."""
    return isinstance(value, tuple | list | types.GeneratorType) or hasattr(type(value), "forward")


def misfit(name: str, function: Function, args: Sequence[object], keywords: Mapping[str, object]) -> TypeError:
    """The error for a call that does not fit a function: it says what to write, if that is known."""
    known = inspect.signature(function).parameters
    unknown = [word for word in keywords if word not in known]
    if function.__module__.startswith("fundl.optim") and args and _holds_parameters(args[0]):
        return TypeError(f"{name} is made without the model: write {name}(0.001), say, whose init(model) makes its first state")
    if unknown and _would_fit(function, args, keywords):
        return TypeError(f"{name} has no {' and '.join(unknown)}: write {written(name, function, args, keywords)}")
    by_place = [word for word, parameter in known.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    by_name = [word for word in known if word not in by_place]
    takes = f"it takes {', '.join([*by_place, *by_name]) or 'nothing'}"
    if unknown:
        renamed = [f"; for {word}, write {' and '.join(ours)}" for word in unknown if (ours := _ours(word, known))]
        strange = [word for word in unknown if not _ours(word, known)]
        return TypeError(f"{name} has no {' and '.join(strange or unknown)}: {takes}{''.join(renamed)}")
    if len(args) > len(by_place):
        places = f"{len(by_place)} by place ({', '.join(by_place)})" if by_place else "nothing by place"
        return TypeError(f"{name} takes {places}, not {len(args)}{'; by name, ' if by_name else ''}{', '.join(by_name)}")
    needed = [word for word, parameter in known.items() if parameter.default is parameter.empty]
    missing = [word for place, word in enumerate(by_place) if place >= len(args) and word in needed and word not in keywords]
    missing += [word for word in by_name if word in needed and word not in keywords]
    return TypeError(f"{name} lacks {' and '.join(missing) or 'nothing, but has something twice'}: {takes}")


def written(name: str, function: Function, args: Sequence[object], keywords: Mapping[str, object]) -> str:
    """The call as it is written here, and why some of its arguments are left out."""
    known = inspect.signature(function).parameters
    said = [_said(value) for value in args]
    for word, value in keywords.items():
        ours = (word,) if word in known else _ours(word, known)
        values = value if len(ours) > 1 and isinstance(value, tuple | list) else [value] * len(ours)
        said += [f"{our}={_said(one)}" for our, one in zip(ours, values, strict=False)]
    reasons = [f"; {word} is left out: {_NEEDLESS[word]}" for word in keywords if word not in known and word in _NEEDLESS]
    return f"{name}({', '.join(said)}){''.join(reasons)}"


def _ours(word: str, known: Mapping[str, object]) -> tuple[str, ...]:
    ours = tuple(name for name, theirs in _WORDS.items() if word in theirs)
    return ours if all(our in known for our in ours) else ()


def _said(value: object) -> str:
    """A value as one would write it, if that is short."""
    said = "..." if isinstance(value, Tensor) else repr(value)
    return said if len(said) <= 40 else "..."


# --- Records -----------------------------------------------------------------------------------------------------------


def refused(cls: type, args: Sequence[object], keywords: Mapping[str, object]) -> TypeError:
    """The error for a record that is made of the wrong things: of sizes, say, which its factory takes."""
    name, maker = cls.__name__, maker_of(cls)
    sizes = any(type(value) is int for value in (*args, *keywords.values()))
    if maker is not None:
        if _would_fit(maker, args, keywords):
            call, _, reasons = written(maker.__name__, maker, args, keywords).partition("; ")
            made_of = "its tensors, not of sizes" if sizes else "its parts as they are kept"
            values = ", and give it values with initialize(key(0), ...)" if sizes else ""
            return TypeError(f"{name} is made of {made_of}: write {call}{values}{'; ' if reasons else ''}{reasons}")
        if sizes:
            takes = ", ".join(inspect.signature(maker).parameters)
            return TypeError(f"{name} is made of its tensors, not of sizes: these are for {maker.__name__}({takes})")
    if fits(cls, args, keywords):
        return TypeError(f"{name} is made of tensors, not of numbers: {written(name, cls, args, keywords)}")
    return misfit(name, cls, args, keywords)


def _would_fit(function: Function, args: Sequence[object], keywords: Mapping[str, object]) -> bool:
    """Whether a call fits a function, with the names of parameters that they have here."""
    known = inspect.signature(function).parameters
    words = [our for word in keywords for our in ((word,) if word in known else _ours(word, known) or (word,))]
    return fits(function, args, {word: None for word in words if word in known or word not in _NEEDLESS})


def fits(function: Function, args: Sequence[object], keywords: Mapping[str, object]) -> bool:
    """Whether a function can be called so."""
    try:
        inspect.signature(function).bind(*args, **keywords)
    except TypeError:
        return False
    return True


def maker_of(cls: type) -> Function | None:
    """The function of a class' module that makes records of it: `batch_norm` for `BatchNorm`, `prelu` for `PReLU`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
    module = sys.modules.get(cls.__module__)
    maker: object = getattr(module, words, None) or getattr(module, cls.__name__.lower(), None)
    return maker if callable(maker) else None


# --- Attributes --------------------------------------------------------------------------------------------------------

_ATTRIBUTES: Final[Mapping[str, str]] = {
    "parameters": "write tree.trainable_leaves(model)",
    "named_parameters": "write tree.trainable_paths(model) and tree.trainable_leaves(model)",
    "buffers": "write tree.leaves(model)",
    **dict.fromkeys(("modules", "named_modules"), "write tree.records(model)"),
    "apply": "write tree.map_records(function, model), or apply(model, x)",
    "to": 'write tree.move_to(model, "cuda") or tree.cast_to(model, torch.bfloat16)',
    "cuda": 'write tree.move_to(model, "cuda")',
    "cpu": 'write tree.move_to(model, "cpu")',
    "half": "write tree.cast_to(model, torch.float16)",
    "float": "write tree.cast_to(model, torch.float32)",
    "double": "write tree.cast_to(model, torch.float64)",
    "bfloat16": "write tree.cast_to(model, torch.bfloat16)",
    **dict.fromkeys(
        ("train", "eval", "training"),
        "there are no modes: rekey(model, key) is the model that drops, the model itself is for use",
    ),
    "state_dict": "write save(path, model)",
    "load_state_dict": "write load(path, like=model)",
    "zero_grad": "gradients are values that value_and_grad returns, and nothing adds to them",
    "grad": "gradients are values that value_and_grad returns",
    "requires_grad_": "write frozen(layer) for a layer that is not to be trained",
    "register_forward_hook": "forward(model, x) gives the residuals as well, and any part of a model can be applied by itself",
    "register_buffer": "write attrs.field(metadata=BUFFER)",
    **dict.fromkeys(("add_module", "append"), "a model is a value: write compose(*model, layer) for another one"),
    "param_groups": "an optimizer holds no parameters: its init(model) makes its state",
}
"""Attributes of theirs that our objects do not have, each with what to write."""


def no_attribute(obj: object, name: str) -> AttributeError:
    """The error for an attribute that an object of ours does not have."""
    said = f": {_ATTRIBUTES[name]}" if name in _ATTRIBUTES else ""
    return AttributeError(f"{type(obj).__name__!r} object has no attribute {name!r}{said}", name=name, obj=obj)


# --- Things ------------------------------------------------------------------------------------------------------------

_NAMES: Final[Mapping[str, str]] = {
    "Sequential": "compose(*layers)",
    "ModuleList": "a tuple of layers",
    "MultiheadAttention": "self_attention(...)",
    "TransformerEncoderLayer": "transformer_block(...)",
    "TransformerDecoderLayer": "decoder_block(...)",
    "TransformerEncoder": "encoder(...)",
    **dict.fromkeys(("Scale", "LayerScale"), "gain(...)"),
    **dict.fromkeys(("Dropout1d", "Dropout2d", "Dropout3d"), "ChannelDropout(...)"),
    "StochasticDepth": "DropPath(...)",
    "DenseGeneral": "einsum(...)",
    "FanOut": "fork(...)",
    **dict.fromkeys(("L1Loss", "l1_loss"), "mae"),
    **dict.fromkeys(("SmoothL1Loss", "smooth_l1_loss"), "huber"),
    "BCELoss": "binary_cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    **dict.fromkeys(("KLDivLoss", "kl_div"), "kl_divergence"),
    **dict.fromkeys(("MultiMarginLoss", "multi_margin_loss"), "multi_class_margin"),
    **dict.fromkeys(("MultiLabelMarginLoss", "multilabel_margin_loss"), "multi_label_margin"),
    **dict.fromkeys(("MultiLabelSoftMarginLoss", "multilabel_soft_margin_loss"), "binary_cross_entropy_with_logits"),
    **dict.fromkeys(("TripletMarginLoss", "TripletMarginWithDistanceLoss", "triplet_margin_loss"), "triplet"),
    "sigmoid_focal_loss": "binary_focal",
}
"""Names of theirs, each with what to write here; those that `ours_for` finds by their letters are not listed."""


_ARRAYS: Final[Mapping[str, str]] = {"numpy": "torch.from_numpy(array)", "jaxlib": "torch.from_dlpack(array)"}
_LIBRARIES: Final = frozenset({"flax", "equinox", "haiku", "optax", "keras", "tensorflow", "thinc", "torchopt"})


def ours_for(name: str) -> str:
    """What to write for a name of theirs, or ""."""
    if name in _NAMES:
        return _NAMES[name]
    public: Sequence[str] = getattr(sys.modules.get("fundl"), "__all__", ())
    loss = re.sub(r"_?[Ll]oss$", "", name)
    plain = loss.replace("_", "").lower()
    alike = {word.replace("_", "").lower(): word for word in sorted(public)}  # of linear and Linear, linear is the later
    word = alike.get(plain) or alike.get(re.sub(r"\dd$", "", plain)) or ""
    return f"{word}(...)" if word and loss == name else word


def hint(value: object) -> str:
    """What to write in the place of a wrong object, as the end of an error message; "" if that is not known."""
    if is_function(value):
        name = name_of(value)
        ours = f"{name}(...)" if str(getattr(value, "__module__", "")).partition(".")[0] == "fundl" else ours_for(name)
        return f": write {ours}" if ours else ""
    if type(value) is dict:
        return ": a model with named parts is a NamedTuple of layers"
    cls = value if isinstance(value, type) else type(value)
    homes = {str(base.__module__) for base in cls.__mro__}
    libraries = {home.partition(".")[0] for home in homes}
    ours = ours_for(cls.__name__)
    if is_module(value):
        converted = "fundl.interop.torch_nn.from_torch(module), which makes a layer of it, with its parameters"
        return f": write {f'{ours}, or ' if ours else ''}{converted}"
    if library := next((library for library in _ARRAYS if library in libraries), ""):
        return f": write {_ARRAYS[library]}"
    theirs = "torch.optim" if "torch.optim.optimizer" in homes else next(iter(libraries & _LIBRARIES), "")
    return f": it is {theirs}'s{f'; write {ours}' if ours else ''}" if theirs else ""


def require_tensor(value: object, claim: str) -> None:
    """Raise an error that begins with the claim, unless a value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{claim} a tensor, not {type(value).__name__}{hint(value) or ': write torch.tensor(...)'}")


def is_function(value: object) -> bool:
    """Whether a value is a plain function, of Python or of C."""
    return isinstance(value, types.FunctionType | types.BuiltinFunctionType)


def name_of(function: object) -> str:
    """The name of a function or class, of what a partial is of, or of a thing's class."""
    return str(getattr(getattr(function, "func", function), "__name__", type(function).__name__))


def is_from_torch(function: object) -> bool:
    """Whether a value is a function of torch's, or a module or a class of modules that stands for one."""
    home = str(getattr(getattr(function, "func", function), "__module__", ""))
    return is_module(function) or home.partition(".")[0] == "torch"


def is_module(value: object) -> bool:
    """Whether a value, or a class, is a module of torch.nn."""
    cls = value if isinstance(value, type) else type(value)
    for base in cls.__mro__:  # noqa: SIM110  # all that layers keep is asked, and any() over a generator takes twice as long
        if base.__module__ == "torch.nn.modules.module":
            return True
    return False
