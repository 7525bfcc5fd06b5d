"""The contract of a layer: forward and backward, on a frozen record of parameters; and what models and losses are."""

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeAlias

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, override

from fundl._common.listed import ListedABC
from fundl._common.place import Place
from fundl._common.suggestions import require_tensor
from fundl.shapes import AnyShape, Shape
from fundl.tree import Record

Residuals = TypeVar("Residuals")
In = TypeVar("In", default=Tensor)
Out = TypeVar("Out", default=Tensor)
Prediction = TypeVar("Prediction")
Target = TypeVar("Target")


@attrs.frozen(eq=False, init=False)  # see Record: whoever derives is decorated, and gets a constructor
class Layer(Record, Generic[Residuals, In, Out], metaclass=ListedABC):
    """A differentiable function with parameters, as a value.

    A layer y = f(params, x) is a frozen record of its parameters with pure methods. `forward` computes y, and the
    residuals: the least that `backward` needs. `backward` computes the vector-Jacobian product, for a cotangent grad of y's
    shape:

        grad_params = (df/dparams)^T grad,    grad_x = (df/dx)^T grad

    Write `forward`, and either `backward`, or both its halves, `backward_params` and `backward_input`, whichever is the more
    natural: the halves where each is a computation of its own. What is not written is made of what is. (A layer made of
    layers may write all three, to hand each on to those inside.)

    The gradient with respect to the parameters is a layer of the same type, whose tensors are the gradients of the tensors
    in the same place: ``self.gradient(grad_weight, grad_bias)`` makes it, of the gradients of all parameters in the order of
    their fields. A layer without parameters is its own gradient.

    Decorate the class with ``@attrs.frozen(eq=False)``. Fields whose annotation names Tensor, a layer, or a tuple of them are
    parameters; all other fields are static, and must be hashable. A parameter ``weight`` that `initialize` is to fill has a
    static field ``weight_init``, an initialiser, beside it. If a function makes the layer of sizes, give it the name of the
    class in small letters, in the same module, as `linear` for `Linear`: the error for ``Linear(2, 3)`` then says to write it.

    What else is true of a layer is said by attributes of its class, as ``elementwise = True``: see `takes_integers`,
    `elementwise`, `by_position`, `usual_gain` and `counterpart`.

    >>> import torch
    >>> from fundl import vjp
    >>> @attrs.frozen(eq=False)
    ... class Scale(Layer[Tensor]):
    ...     weight: Tensor
    ...
    ...     def forward(self, x):
    ...         return self.weight * x, x
    ...
    ...     def backward(self, x, grad):
    ...         return self.gradient((grad * x).sum(0)), self.weight * grad
    >>> grads, grad_x = vjp(Scale(torch.tensor([2.0, 3.0])), torch.ones(4, 2), torch.ones(4, 2))
    >>> grads.weight, grad_x[0]
    (tensor([4., 4.]), tensor([2., 3.]))
    """

    _is_contract: ClassVar[bool] = True  # see Listed

    takes_integers: ClassVar[bool] = False
    """Whether the input may be of an integer dtype: true of layers that look things up, or only rearrange.

    Integers have no gradient: `backward` gives zeros for them, see `zero_gradient`.
    """

    counterpart: ClassVar[str] = ""
    """The class of torch.nn that computes the same, by which `fundl.interop.torch_nn` converts; "" for none.

    It reads as a call that makes the module. Only what has another name than the layer's field is in its brackets: "ReLU" for
    `ReLU`, "Hardtanh(min_val=low, max_val=high)" for `Hardtanh`. It serves layers whose fields are options; layers with tensors
    are converted by functions.
    """

    @property
    def elementwise(self) -> bool:
        """Whether each number of the output comes of the input's number in its place alone, as that of an activation.

        A class says so by ``elementwise = True``. If it has no parameters, it is applied to all runs of an ensemble at once.
        """
        return False

    @property
    def usual_gain(self) -> float | None:
        """What `gain_of` gives for the layer; None if no gain is known. A class says it by ``usual_gain = 5 / 3``, say."""
        return None

    @property
    def by_position(self) -> bool:
        """Whether each position of sequences (B, T, ...) is made of the same position of the input alone.

        What is `elementwise` is; any other class says so by ``by_position = True``.
        """
        return self.elementwise

    if not TYPE_CHECKING:  # a checker must go on to refuse the call

        def __call__(self, *_args, **_kwargs):
            """Say how a layer is applied: it is a value."""
            name = type(self).__name__
            raise TypeError(f"a {name} is a value, not a function: write apply(layer, x) for layer(x)")

    @classmethod
    @override
    def __attrs_init_subclass__(cls) -> None:
        """Refuse a class that says how to go forward, but not back."""
        super().__attrs_init_subclass__()
        halves = (cls.backward_params is Layer.backward_params, cls.backward_input is Layer.backward_input)
        if cls.backward is Layer.backward and any(halves) and not getattr(cls.forward, "__isabstractmethod__", False):
            raise TypeError(
                f"{cls.__name__} has a forward, but no backward: write backward(self, residuals, grad), which returns the"
                " gradients with respect to the parameters and to the input, or both its halves, backward_params and"
                " backward_input"
            )

    @abstractmethod
    def forward(self, x: In) -> tuple[Out, Residuals]:
        """The output, and what `backward` needs of the computation."""

    def backward(self, residuals: Residuals, grad: Out) -> tuple[Self, In]:
        """The gradients with respect to the parameters and the input, given that with respect to the output."""
        return self.backward_params(residuals, grad), self.backward_input(residuals, grad)

    def backward_params(self, residuals: Residuals, grad: Out) -> Self:
        """The first half of `backward`: what the first layer of a model is asked for when it is trained."""
        alone = [residuals]
        del residuals  # a layer made of layers lets go of what they kept as it goes
        return self.backward(alone.pop(), grad)[0]

    def backward_input(self, residuals: Residuals, grad: Out) -> In:
        """The second half of `backward`: what a layer is asked for whose parameters are not trained."""
        return self.backward(residuals, grad)[1]

    if TYPE_CHECKING:  # each class has its own, with a parameter for each of its trainable fields

        def gradient(self, *parts: object, **named: object) -> Self:
            """The gradient with respect to the parameters: a record like this one, of other tensors.

            It takes the gradient of each field that is a parameter, in the order of the fields; what is no parameter
            (buffers, static fields) stays as it is here.
            """

    def first_cache(self, batch: int, length: int) -> object:  # noqa: ARG002  # a layer that keeps something overrides it
        """What `step` is given at first: a tree of tensors, for so many sequences of up to so many positions.

        See `fundl.language`. A layer that is `by_position` keeps nothing of earlier positions.
        """
        if not self.by_position:
            raise TypeError(_not_by_position(self))
        return ()

    def step(self, x: In, cache: object, place: Place) -> tuple[Out, object]:  # noqa: ARG002  # likewise
        """The output at some positions of sequences, of the input there and the cache of all before; and the next cache.

        It is what `forward` gives at these positions of the whole sequences. A layer that is made of layers, or looks at
        earlier positions, writes it and `first_cache`.
        """
        return self.forward(x)[0], cache

    def output_shape(self, shape: AnyShape) -> AnyShape:  # noqa: ARG002  # a layer that says more overrides it
        """The shape of the output for that of an input: the layer's rule, by which layers that do not fit are found.

        It says the same in its types, for fundl_mypy, and in its body, for `compose` and `initialize`; see `fundl.shapes`.
        A layer without a rule of its own takes any shape, and nothing is known of what it gives.
        """
        return Shape(...)


def _not_by_position(layer: object) -> str:
    name = type(layer).__name__
    return (
        f"{name} cannot be run a position at a time: its output may depend on later positions, or on a key. Take a model that"
        f" is causal and has no keys; if {name} is a layer of yours, say by_position = True on its class, or write its"
        " first_cache and step"
    )


def zero_gradient(x: Tensor) -> Tensor:
    """What `backward` gives for an input that has no gradient, of integers or booleans: zeros of its shape and dtype.

    It is one zero, seen as often as there are elements, and takes no memory.

    >>> import torch
    >>> from fundl import zero_gradient
    >>> zero_gradient(torch.tensor([3, 1]))
    tensor([0, 0])
    """
    require_tensor(x, "zero_gradient(x): x must be")
    return torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape)


# The one Any of the core. A model holds layers of any residuals, inputs and outputs, and no other type says so: Layer is
# invariant in all three, because forward and backward use them in both directions.
AnyLayer: TypeAlias = Layer[Any, Any, Any]  # type: ignore[explicit-any]
Model: TypeAlias = "AnyLayer | tuple[Model, ...]"
"""A layer, or a tuple of models, which are applied one after the other.

A named tuple of models is one, too. `compose` makes one, and checks that its layers fit.

>>> from fundl import Model, Tanh, linear
>>> model: Model = (linear(2, 25), (Tanh(), linear(25, 2)))
"""

P = TypeVar("P", bound=Model)

Loss: TypeAlias = Callable[[Prediction, Target], tuple[Tensor, Prediction]]
"""A loss goes from a prediction and its target to the loss' value and its gradient with respect to the prediction.

`mse` is one, and a configured one is a `functools.partial`, ``partial(huber, delta=0.1)``. One of your own is a function:

>>> from torch import Tensor
>>> def squared(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
...     error = prediction - target
...     return (error * error).sum(), 2 * error
"""
