"""Models that fit, or of which nobody can know: each function is one program, and nothing is wrong with it."""

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Generic, Literal, Protocol, TypedDict, cast

import attrs
import torch
from torch import Tensor
from typing_extensions import TypeVar, TypeVarTuple

import fundl
from fundl import (
    GLU,
    AdaptiveAveragePool2d,
    AveragePool2d,
    BatchNorm,
    Checkpoint,
    Dropout,
    Embedding,
    Flatten,
    GlobalMaxPool,
    GroupNorm,
    Identity,
    InstanceNorm,
    LastPosition,
    Layer,
    LayerNorm,
    Linear,
    MaxPool2d,
    Model,
    Pad,
    Parallel,
    PixelShuffle,
    PixelUnshuffle,
    ReLU,
    Reshape,
    Residual,
    RMSNorm,
    Rotary,
    SinusoidalPositions,
    Softmax,
    Tanh,
    Upsample,
    adam,
    apply,
    apply_updates,
    batch_norm,
    checkpoint,
    compose,
    embedding,
    feed_forward,
    forward,
    gated_feed_forward,
    group_norm,
    gru,
    initialize,
    instance_norm,
    key,
    layer_norm,
    learned_positions,
    linear,
    low_rank,
    lstm,
    mse,
    output_shape,
    parallel,
    residual,
    rms_norm,
    rnn,
    sgd,
    summary,
    train_state,
    tree,
    value_and_grad,
    vjp,
    weight_norm,
    weight_standardization,
)
from tests.typing.image_layers import (
    Conv2d,
    Drop,
    Gate,
    GlobalAverage,
    Images,
    Named,
    Positions,
    Repeat,
    Ruleless,
    Scale,
    Widen,
    conv2d,
)

A = TypeVar("A", bound=int)
B = TypeVar("B", bound=int)
P = TypeVar("P", bound=Model)
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

X: Final = torch.ones(4, 2)
WIDTH: Final = 25


# --- Chains ------------------------------------------------------------------------------------------------------------


def the_example() -> None:
    compose(linear(2, 25), ReLU(), linear(25, 2))


def nothing_to_fit() -> None:
    compose(ReLU(), Tanh(), Softmax())


def one_layer() -> None:
    compose(linear(2, 3))


def sizes_that_nobody_knows() -> None:
    def make(width: int) -> None:
        compose(linear(2, width), linear(25, 2))

    make(25)


def a_variable_is_no_constant() -> None:
    width = 24
    width += 1
    compose(linear(2, width), linear(25, 2))


def a_constant() -> None:
    compose(linear(2, WIDTH), linear(25, 2))


def arithmetic() -> None:
    compose(linear(2, WIDTH - 1), linear(4 * 6, 2), linear(2, 2**3), linear(8, 1))


def a_call_gives_the_size() -> None:
    compose(linear(2, max(3, 4)), linear(int("4"), 2))


def sizes_in_a_tuple() -> None:
    sizes = (2, 25)
    compose(linear(*sizes), linear(25, 2))


def sizes_in_a_dictionary() -> None:
    class Sizes(TypedDict):
        in_features: int
        out_features: int

    sizes: Sizes = {"in_features": 2, "out_features": 25}
    compose(linear(**sizes), linear(25, 2))


def records_made_directly() -> None:
    first = Linear(torch.ones(25, 2), None)
    second = Linear(weight=torch.ones(2, 25), bias=None)
    compose(first, second)
    compose(linear(2, 25), second, first, linear(25, 2))


def a_layer_without_a_rule() -> None:
    compose(linear(2, 3), Ruleless(), linear(3, 4))
    compose(Ruleless(), linear(3, 4), Ruleless(), linear(4, 5))


def any_layer() -> None:
    unknown = cast("Any", linear(3, 4))  # type: ignore[explicit-any]
    compose(linear(2, 3), unknown, linear(4, 5))


def as_a_layer() -> None:
    hidden: Layer[Tensor] = linear(3, 4)
    compose(linear(2, 3), hidden, linear(4, 5))


def as_a_model() -> None:
    hidden: Model = compose(linear(3, 4), ReLU())
    compose(linear(2, 3), hidden, linear(4, 5))


def by_module() -> None:
    fundl.compose(fundl.linear(2, 3), fundl.ReLU(), fundl.linear(3, 4))


def partially() -> None:
    narrow = functools.partial(linear, bias=False)
    compose(narrow(2, 3), narrow(3, 4))
    from_two = functools.partial(linear, 2)
    compose(from_two(3), linear(3, 4))


def mapped() -> None:
    layers = tuple(map(linear, (2, 3), (3, 4)))
    compose(*layers, linear(4, 5))


def renamed() -> None:
    dense = linear
    compose(dense(2, 3), dense(3, 4))


# --- Types without sizes -----------------------------------------------------------------------------------------------


def bare_names() -> None:
    def train(model: tuple[Linear, ReLU, Linear]) -> tuple[Linear, ReLU, Linear]:
        return model

    model = compose(linear(2, 25), ReLU(), linear(25, 2))
    model = train(model)
    compose(*model, linear(2, 3))


def bare_containers() -> None:
    def same(
        layers: tuple[Residual[Linear], Parallel[Linear, Tanh], Checkpoint[Linear]],
    ) -> tuple[Residual[Linear], Parallel[Linear, Tanh], Checkpoint[Linear]]:
        return layers

    model = compose(residual(linear(3, 3)), parallel(linear(3, 3), Tanh()), checkpoint(linear(3, 3)))
    model = same(model)


def containers_of_anything() -> None:
    def same(layer: Residual) -> Residual:
        return layer

    block = residual(linear(3, 3), Tanh())
    other: Residual = same(block)
    compose(linear(2, 3), other, linear(3, 4))


def declared_without_sizes() -> None:
    layer: Linear = linear(2, 3)
    layer = linear(3, 4)
    model: tuple[Linear, ReLU] = compose(linear(2, 3), ReLU())
    model = compose(layer, ReLU())
    compose(*model, linear(4, 5))


def declared_with_sizes() -> None:
    layer: Linear[Literal[2], Literal[3]] = linear(2, 3)
    compose(layer, linear(3, 4))


def some_sizes() -> None:
    def widen(layer: Linear[Literal[2], A]) -> Linear[A, Literal[2]]:
        return Linear(layer.weight.t(), None)

    compose(linear(2, 5), widen(linear(2, 5)), linear(2, 3))


# --- Names that are set more than once ---------------------------------------------------------------------------------


def set_again() -> None:
    model = compose(linear(2, 25), ReLU(), linear(25, 2))
    compose(*model, linear(2, 1))
    model = compose(linear(2, 50), ReLU(), linear(50, 3))
    compose(*model, linear(3, 1))


def set_in_branches() -> None:
    if random.random() < 0.5:
        model = compose(linear(2, 25), linear(25, 2))
    else:
        model = compose(linear(2, 50), linear(50, 2))
    compose(*model, linear(2, 1))


def set_in_a_loop() -> None:
    layer = linear(2, 3)
    for _ in range(2):
        compose(layer, ReLU())
        layer = linear(3, 4)
    compose(layer, linear(4, 5))


def set_as_a_tuple() -> None:
    first, second = linear(2, 3), linear(3, 4)
    first, second = linear(3, 4), linear(4, 5)
    compose(first, second)


def set_to_its_own() -> None:
    model = compose(linear(2, 25), ReLU(), linear(25, 2))
    model = initialize(key(0), model)
    model = tree.map(torch.neg, model)
    compose(*model, linear(2, 3))


def one_or_the_other() -> None:
    layer = linear(2, 3) if random.random() < 0.5 else linear(2, 4)
    compose(layer, Identity())
    compose(layer, linear(layer.weight.shape[0], 4))


def a_default() -> None:
    def make(layer: Linear | None = None) -> None:
        layer = layer or linear(2, 3)
        compose(layer, linear(layer.weight.shape[0], 2))

    make(linear(2, 5))


def attributes() -> None:
    class Net:
        def __init__(self) -> None:
            self.model = compose(linear(2, 25), ReLU())

        def grow(self) -> None:
            self.model = compose(linear(2, 50), ReLU())
            compose(*self.model, linear(50, 2))

    Net().grow()


def attributes_of_classes() -> None:
    class Small:
        model = compose(linear(2, 25), ReLU())

    class Large(Small):
        model = compose(linear(2, 50), ReLU())

    compose(*Large.model, linear(50, 2))


def gradients_of_two_models() -> None:
    small, large = initialize(key(0), linear(2, 3)), initialize(key(1), linear(2, 4))
    grads, grad_x = vjp(small, X, torch.ones(4, 3))
    assert grads.weight.shape == (3, 2)
    grads, grad_x = vjp(large, X, torch.ones(4, 4))
    assert grad_x.shape == (4, 2)


def states_of_two_models() -> None:
    optimizer = adam(1e-3)
    small, large = initialize(key(0), linear(2, 3)), initialize(key(1), linear(2, 4))
    state = optimizer.init(small)
    state = optimizer.init(large)
    _, grads = value_and_grad(mse, large, X, torch.ones(4, 4))
    updates, state = optimizer.update(grads, state, large)
    large = apply_updates(large, updates)


# --- Lists and the like ------------------------------------------------------------------------------------------------


def a_list() -> None:
    layers = [linear(2, 3), linear(3, 4)]
    layers.append(linear(4, 5))
    compose(*layers, linear(5, 6))
    compose(layers[0], linear(3, 3))


def a_list_that_grows() -> None:
    layers = []
    layers.append(linear(2, 3))
    layers.append(linear(3, 4))
    compose(*layers)


def a_list_of_one() -> None:
    layers = [linear(2, 3)]
    layers += [linear(3, 4)]
    layers[0] = linear(5, 3)
    compose(*layers)


def a_list_by_comprehension() -> None:
    layers = [linear(3, 3) for _ in range(3)]
    layers.append(linear(3, 4))
    compose(*layers, linear(4, 5))


def a_dictionary() -> None:
    models = {"small": compose(linear(2, 3), ReLU())}
    models["large"] = compose(linear(2, 300), ReLU())
    compose(*models["large"], linear(300, 2))


def a_set() -> None:
    layers = {linear(2, 3)}
    layers.add(linear(3, 4))
    assert len(layers) == 2


def of_any_length() -> None:
    layers: tuple[Linear, ...] = (linear(2, 3), linear(3, 4))
    compose(*layers, linear(4, 5))
    compose(linear(1, 2), *layers)


def a_generator() -> None:
    def layers(sizes: Sequence[int]) -> Iterator[Linear]:
        yield from (linear(n, m) for n, m in itertools.pairwise(sizes))

    compose(*layers([2, 3, 4]), linear(4, 5))


def in_a_loop() -> None:
    for layer in (linear(2, 3), linear(3, 4)):
        compose(layer, Identity())
    for width in (3, 4):
        compose(linear(2, width), linear(width, 2))


def zipped() -> None:
    for first, second in zip((linear(2, 3), linear(3, 4)), (linear(3, 3), linear(4, 4)), strict=True):
        compose(first, second)


def put_at_a_place() -> None:
    model = compose(linear(2, 25), ReLU(), linear(25, 2))
    model = tree.at(model, lambda model: model[2]).set(linear(25, 10))
    compose(*model)


# --- Functions of the user's -------------------------------------------------------------------------------------------


def block(n: A, m: B) -> tuple[Linear[A, B], ReLU]:
    return compose(linear(n, m), ReLU())


def blocks() -> None:
    compose(block(2, 3), block(3, 4), *block(4, 5))


def a_block_of_unknown_size() -> None:
    def make(width: int) -> None:
        compose(block(2, width), block(3, 4))

    make(3)


def a_block_in_a_block() -> None:
    def two(n: A, m: B) -> tuple[tuple[Linear[A, B], ReLU], Linear[B, A]]:
        return compose(block(n, m), linear(m, n))

    compose(two(2, 3), two(2, 4))


def two_heads() -> None:
    def heads(n: A) -> tuple[Linear[A, Literal[1]], Linear[A, Literal[5]]]:
        return linear(n, 1), linear(n, 5)

    value, policy = heads(25)
    body = compose(linear(2, 25), ReLU())
    compose(*body, value)
    compose(*body, policy)


def a_pair_is_no_model() -> None:
    pair = (linear(2, 3), linear(4, 5))
    tree.map(torch.neg, pair)
    assert tree.count(pair)


def sizes_of_the_same_name() -> None:
    def sized(in_features: int, out_features: int) -> Linear:
        return linear(in_features + 1, out_features + 1)

    compose(sized(2, 3), linear(4, 5))


def a_generic_function() -> None:
    def twice(layer: P) -> tuple[P, P]:
        return compose(layer, layer)

    compose(linear(2, 3), *twice(linear(3, 3)), linear(3, 1))


def any_layers() -> None:
    def stack(*layers: *Ts) -> tuple[*Ts]:
        return compose(*layers)

    compose(*stack(linear(2, 3), ReLU()), linear(3, 4))


def a_maker() -> None:
    def make(layer: Callable[[int, int], Linear]) -> None:
        compose(layer(2, 3), layer(3, 4), linear(4, 5))

    make(linear)


class HasBody(Protocol):
    @property
    def body(self) -> Linear: ...


@attrs.frozen
class Net:
    body: Linear = linear(2, 3)
    head: Linear = attrs.field(factory=lambda: linear(3, 4))


def a_protocol() -> None:
    def use(net: HasBody) -> None:
        compose(net.body, linear(3, 4))

    use(Net())
    use(Net(linear(5, 3)))
    compose(Net().body, Net().head)


class Box(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value


def in_a_box() -> None:
    box = Box(linear(2, 3))
    compose(box.value, linear(3, 4))


def narrowed() -> None:
    layer: object = linear(2, 3)
    if isinstance(layer, Linear):
        compose(layer, linear(3, 4))
    match layer:
        case Linear(weight=weight):
            compose(linear(1, 2), linear(weight.shape[1], 3))
        case _:
            pass


# --- Layers made of layers ---------------------------------------------------------------------------------------------


def residuals() -> None:
    compose(linear(2, 25), residual(linear(25, 25), ReLU()), residual(Tanh()), linear(25, 2))


def residual_of_blocks() -> None:
    residual(linear(25, 3), ReLU(), residual(linear(3, 3)), linear(3, 25))


def branches() -> None:
    compose(linear(2, 3), parallel(linear(3, 4), (ReLU(), linear(3, 4)), (residual(linear(3, 3)), linear(3, 4))), linear(4, 1))


def branches_side_by_side() -> None:
    compose(parallel(linear(2, 3), Identity(), linear(2, 4), join="concatenate"), linear(9, 1))


def branches_along_an_axis() -> None:
    compose(parallel(linear(2, 3), linear(2, 4), join="concatenate", axis=1), linear(7, 1))
    compose(parallel(Reshape((2, 3)), Reshape((4, 3)), join="concatenate", axis=1), Reshape((18,)), linear(18, 1))


def a_join_that_is_not_known() -> None:
    def make(join: Literal["sum", "concatenate"]) -> None:
        compose(parallel(linear(2, 3), linear(2, 3), join=join), linear(6, 1))

    make("concatenate")


def checkpoints() -> None:
    compose(checkpoint(linear(2, 3), ReLU()), checkpoint(linear(3, 4)), linear(4, 1))


def containers_as_records() -> None:
    compose(Residual((linear(3, 3),)), Parallel((linear(3, 4), linear(3, 4))), Checkpoint((linear(4, 5),)), linear(5, 1))


def a_container_of_the_users() -> None:
    compose(linear(2, 3), Named("hidden", (linear(3, 4), ReLU())), linear(4, 6))


def parts_of_containers() -> None:
    block = residual(linear(3, 4), ReLU(), linear(4, 3))
    compose(*block.layers[:2], linear(4, 1))


# --- Where models are used ---------------------------------------------------------------------------------------------


def used() -> None:
    model = initialize(key(0), compose(linear(2, 25), ReLU(), linear(25, 2)))
    apply(model, X)
    forward(model, X)
    vjp(model, X, X)
    value_and_grad(mse, model, X, X)
    summary(model, (4, 2))
    output_shape(model)


def trained() -> None:
    model = initialize(key(0), compose(linear(2, 25), ReLU(), linear(25, 2)))
    optimizer = sgd(0.1, momentum=0.9)
    state = optimizer.init(model)
    for _ in range(2):
        _, grads = value_and_grad(mse, model, X, X)
        model, state = optimizer.step(grads, state, model)
    compose(*model, linear(2, 3))


def kept_in_a_state() -> None:
    optimizer = adam(1e-3)
    state = train_state(key(1), initialize(key(0), compose(linear(2, 25), linear(25, 1))), optimizer)
    compose(*state.model, linear(1, 2))


def on_sequences() -> None:
    compose(Positions(10, 16), linear(16, 4), Tanh(), linear(4, 2), Reshape((20,)), linear(20, 1))


# --- Images ------------------------------------------------------------------------------------------------------------


def channels() -> None:
    compose(conv2d(3, 8, 3), ReLU(), MaxPool2d(2), conv2d(8, 16, 3), GlobalAverage(), linear(16, 10))


def flattened() -> None:
    compose(Images(1, 28, 28), conv2d(1, 8, 3), ReLU(), MaxPool2d(2), Flatten(), linear(8 * 13 * 13, 10))


def flattened_after_two() -> None:
    compose(
        Images(3, 32, 32),
        conv2d(3, 16, 5, padding=2),
        MaxPool2d(2),
        conv2d(16, 32, 3, stride=2, padding=1),
        Flatten(),
        linear(2048, 10),
    )


def an_image_that_is_not_square() -> None:
    compose(Images(3, 32, 16), conv2d(3, 4, 3), Flatten(), linear(4 * 30 * 14, 10))


def an_image_of_unknown_size() -> None:
    compose(conv2d(1, 8, 3), MaxPool2d(2), Flatten(), linear(1352, 10))


def a_kernel_of_unknown_size() -> None:
    def make(kernel: int) -> None:
        compose(Images(1, 28, 28), conv2d(1, 8, kernel), Flatten(), linear(8 * 24 * 24, 10))

    make(5)


def a_pool_of_unknown_stride() -> None:
    def make(stride: int) -> None:
        compose(Images(1, 28, 28), MaxPool2d(2, stride=stride), Flatten(), linear(81, 10))

    make(3)


def images_keep_their_size() -> None:
    compose(Images(8, 28, 28), residual(conv2d(8, 8, 3, padding=1), ReLU(), Scale(8)), Images(8, 28, 28))


def along_the_width() -> None:
    compose(Images(8, 28, 26), linear(26, 3), Flatten(), linear(8 * 28 * 3, 1))


def flattened_from_another_axis() -> None:
    compose(Images(8, 5, 5), Flatten(2), linear(25, 3), Flatten(start=1), linear(24, 1))


def reshaped() -> None:
    compose(Reshape((1, 28, 28)), conv2d(1, 8, 3), Reshape((8, -1)), linear(676, 1), Flatten(), linear(8, 1))


def a_convolution_without_sizes() -> None:
    layer: Conv2d = conv2d(3, 8, 3)
    compose(layer, conv2d(8, 3, 1))


# --- Normalisation -----------------------------------------------------------------------------------------------------


def normalised() -> None:
    compose(linear(2, 25), layer_norm(25), residual(rms_norm(25), linear(25, 25)), RMSNorm(25), linear(25, 2))


def of_several_axes() -> None:
    compose(layer_norm((3, 25)), LayerNorm((3, 25)), rms_norm((5, 3, 25)), linear(25, 2))


# --- Pooling -----------------------------------------------------------------------------------------------------------


def a_pool_that_rounds_up() -> None:
    compose(Images(1, 7, 7), MaxPool2d(2, ceil_mode=True), Flatten(), linear(16, 10))


def a_pool_that_may_round_up() -> None:
    def make(ceil_mode: bool) -> None:
        compose(Images(1, 7, 7), AveragePool2d(2, ceil_mode=ceil_mode), Flatten(), linear(16, 10))

    make(True)


def a_pool_with_a_size_for_each_axis() -> None:
    compose(Images(1, 8, 6), MaxPool2d((2, 3), stride=(2, 1)), Flatten(), linear(4 * 4, 10))


def parts_of_an_image() -> None:
    compose(conv2d(1, 8, 3), AdaptiveAveragePool2d(4), Flatten(), linear(8 * 4 * 4, 10))


def parts_with_a_number_for_each_axis() -> None:
    compose(conv2d(1, 8, 3), AdaptiveAveragePool2d((2, 3)), Flatten(), linear(8 * 2 * 3, 10))


def the_maximum_of_each_channel() -> None:
    compose(conv2d(3, 8, 3), GlobalMaxPool(), linear(8, 10))


def normalised_images() -> None:
    compose(
        conv2d(3, 32, 3),
        batch_norm(32),
        ReLU(),
        weight_standardization(conv2d(32, 16, 3)),
        group_norm(4, 16),
        instance_norm(16),
        GroupNorm(8),
        InstanceNorm(),
        BatchNorm(),
        conv2d(16, 8, 3),
    )


def normalised_weights() -> None:
    compose(weight_norm(linear(2, 25)), batch_norm(25), residual(weight_norm(linear(25, 25))), linear(25, 2))


# --- Resampling --------------------------------------------------------------------------------------------------------


def an_image_made_larger() -> None:
    compose(Images(1, 7, 7), Upsample(2), Upsample(size=8, mode="linear"), Flatten(), linear(64, 10))


def an_image_made_larger_by_a_fraction() -> None:
    compose(Images(1, 7, 7), Upsample(1.5), Flatten(), linear(100, 10))


def an_image_of_unknown_size_made_larger() -> None:
    compose(conv2d(3, 8, 3), Upsample(2), conv2d(8, 3, 3), Upsample((2, 3)), Flatten(), linear(5, 10))


def framed() -> None:
    compose(Images(3, 7, 7), Pad((1, 1), mode="reflect"), conv2d(3, 8, 3), Images(8, 7, 7))


def a_frame_of_unknown_width() -> None:
    def make(pad: int) -> None:
        compose(Images(1, 7, 7), Pad(((0, pad), 0)), Flatten(), linear(63, 10))

    make(2)


def pixels_to_channels_and_back() -> None:
    compose(Images(3, 8, 6), PixelUnshuffle(2), conv2d(12, 20, 1), PixelShuffle(2), Images(5, 8, 6))


def padding_for_each_stride() -> None:
    compose(
        Images(1, 27, 28),
        fundl.conv2d(1, 4, 3, stride=2, padding="same"),
        Images(4, 14, 14),
        MaxPool2d(3, stride=(2, 1), padding="same"),
        Images(4, 7, 14),
        AveragePool2d(2, padding="same"),
        Images(4, 4, 7),
        fundl.LPPool2d(3, stride=1, padding="same"),
        fundl.conv_transpose2d(4, 2, 5, stride=(2, 3), padding="same"),
        Images(2, 8, 21),
    )


def patches() -> None:
    compose(Images(3, 8, 6), fundl.Unfold(2, stride=2), fundl.Fold((8, 6), 2, stride=2), Images(3, 8, 6))
    compose(Images(3, 8, 6), fundl.Unfold((3, 2), padding=(1, 0)), Flatten(), linear(18 * 8 * 5, 10))


# --- Other rules of the user's -----------------------------------------------------------------------------------------


def repeated() -> None:
    compose(linear(2, 3), Repeat(4), linear(12, 1), Repeat(), linear(2, 1))


def arithmetic_in_types() -> None:
    compose(linear(2, 8), Widen(2), Drop(4), linear(6, 8), Gate(), linear(4, 1), Widen(0), linear(1, 1))


def unknown_arithmetic() -> None:
    def make(count: int) -> None:
        compose(linear(2, 8), Widen(count), linear(9, 4), Repeat(count), linear(4, 1))

    make(1)


def scaled() -> None:
    compose(Scale(8), linear(5, 4), Scale(8))
    compose(linear(2, 3), Scale(3), linear(3, 4))


# --- Sequences ---------------------------------------------------------------------------------------------------------


def tokens() -> None:
    compose(embedding(1000, 16), linear(16, 4))
    compose(Reshape((10,)), embedding(1000, 16), Rotary(), Flatten(), linear(160, 1))


def tokens_that_are_padded() -> None:
    model: tuple[Embedding, Linear] = compose(embedding(1000, 16, padding=0), linear(16, 4))
    compose(*model, linear(4, 1))


def an_embedding_of_unknown_size() -> None:
    def make(features: int) -> None:
        compose(embedding(10, features), linear(features, 4), linear(4, 1))

    make(16)


def positions() -> None:
    compose(embedding(1000, 16), learned_positions(50, 16), linear(16, 4))
    compose(Positions(10, 16), learned_positions(50, 16), SinusoidalPositions(), Positions(10, 16), Rotary())


def gates() -> None:
    compose(linear(2, 8), GLU(), linear(4, 6), GLU(Tanh()), linear(3, 1))
    compose(conv2d(3, 8, 3), GLU(axis=1), conv2d(4, 3, 3), GLU(), Flatten())


def a_gate_along_an_axis_that_is_not_known() -> None:
    def make(axis: int) -> None:
        compose(linear(2, 8), GLU(axis=axis), linear(4, 6))

    make(-1)


def feed_forward_networks() -> None:
    block = residual(feed_forward(16, 64), gated_feed_forward(16, 40))
    compose(embedding(1000, 16), block, feed_forward(16, 64, activation=Tanh()), linear(16, 4))


def adapters() -> None:
    adapted = initialize(key(1), low_rank(initialize(key(0), linear(8, 4)), 2))
    compose(linear(2, 8), adapted, linear(4, 1))
    compose(linear(2, 8), adapted.merged(), linear(4, 1))


# --- Convolutions ------------------------------------------------------------------------------------------------------


def images_to_classes() -> None:
    compose(
        Reshape((1, 28, 28)),
        fundl.conv2d(1, 8, 3, padding="same"),
        ReLU(),
        MaxPool2d(2),
        residual(fundl.conv2d(8, 8, 3, padding=1), ReLU(), fundl.conv2d(8, 8, (3, 5), padding=(1, 2))),
        fundl.conv2d(8, 16, 3, stride=2, dilation=2),
        Flatten(),
        linear(16 * 5 * 5, 10),
    )


def signals_and_volumes() -> None:
    compose(Reshape((3, 28)), fundl.conv1d(3, 8, 4, padding="same"), fundl.conv1d(8, 2, (5,)), Flatten(), linear(48, 1))
    compose(Reshape((1, 4, 5, 6)), fundl.conv3d(1, 8, (1, 2, 3)), Flatten(), linear(8 * 4 * 4 * 4, 1))


def to_codes_and_back() -> None:
    compose(
        Reshape((1, 28, 28)),
        fundl.conv2d(1, 8, 3, stride=2, padding=1),
        fundl.conv2d(8, 16, 3, stride=2),
        fundl.conv_transpose2d(16, 8, 3, stride=2, output_padding=1),
        fundl.conv_transpose2d(8, 1, 3, stride=2, padding=1, output_padding=(1, 1)),
        Flatten(),
        linear(28 * 28, 10),
    )
    compose(Reshape((3, 5)), fundl.conv_transpose1d(3, 2, 4, stride=2), Flatten(), linear(24, 1))
    compose(Reshape((1, 1, 2, 3)), fundl.conv_transpose3d(1, 2, 2), Flatten(), linear(48, 1))


def an_image_of_any_size() -> None:
    compose(fundl.conv2d(3, 8, 3), ReLU(), fundl.conv2d(8, 16, 3), GlobalAverage(), linear(16, 10))


def settings_that_are_not_known() -> None:
    def make(kernel_size: int, padding: int, stride: tuple[int, int]) -> None:
        compose(Reshape((1, 8, 8)), fundl.conv2d(1, 8, kernel_size, padding=padding), Flatten(), linear(8 * 8 * 8, 10))
        compose(Reshape((1, 8, 8)), fundl.conv2d(1, 8, 3, stride=stride), Flatten(), linear(8 * 3 * 6, 10))

    make(3, 1, (2, 1))


def convolutions_without_sizes() -> None:
    layer: fundl.Conv2d = fundl.conv2d(3, 8, 3)
    compose(layer, fundl.conv2d(8, 3, 1), fundl.Conv2d(torch.ones(4, 3, 2, 2), None, stride=2), fundl.conv2d(4, 1, 1))


# --- Recurrent layers --------------------------------------------------------------------------------------------------


def recurrent_layers() -> None:
    compose(rnn(3, 8), Dropout(0.1), gru(8, 16, depth=2), lstm(16, 32, bidirectional=True), linear(64, 10))
    compose(linear(3, 8), residual(lstm(8, 8)), LastPosition(), linear(8, 10))


def either_direction() -> None:
    for both in (False, True):
        compose(lstm(16, 32, bidirectional=both), linear(64 if both else 32, 10))
