"""Models that do not fit: each function is one program, which is told the same by mypy and when it runs."""

from collections.abc import Callable
from typing import Final, Literal

import torch
from typing_extensions import TypeVar

import fundl
from fundl import (
    CELU,
    ELU,
    GELU,
    GLU,
    SELU,
    AdaptiveAveragePool2d,
    AdaptiveMaxPool2d,
    AlphaDropout,
    AveragePool1d,
    AveragePool2d,
    ChannelDropout,
    Dropout,
    DropPath,
    Flatten,
    GaussianNoise,
    GlobalAveragePool,
    GlobalMaxPool,
    Hardshrink,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    Identity,
    LastPosition,
    LeakyReLU,
    Linear,
    LogSigmoid,
    LogSoftmax,
    Maxout,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    Mish,
    Model,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    ReLU,
    Reshape,
    Residual,
    RMSNorm,
    Rotary,
    Sigmoid,
    SiLU,
    SinusoidalPositions,
    Softmax,
    Softmin,
    Softplus,
    Softshrink,
    Softsign,
    Tanh,
    Tanhshrink,
    Threshold,
    Upsample,
    apply,
    batch_norm,
    bias,
    checkpoint,
    compose,
    embedding,
    feed_forward,
    forward,
    gain,
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
    parallel,
    prelu,
    residual,
    rms_norm,
    rnn,
    summary,
    value_and_grad,
    vjp,
    weight_norm,
    weight_standardization,
)
from tests.typing.image_layers import (
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

X: Final = torch.ones(4, 2)
WIDTH: Final = 24


# --- Chains ------------------------------------------------------------------------------------------------------------


def two_layers() -> None:
    # E: layer 2 (Linear) expects 24 features but layer 1 (Linear) gives 25 features
    compose(linear(2, 25), linear(24, 2))


def the_example() -> None:
    # E: layer 3 (Linear) expects 24 features but layer 1 (Linear) gives 25 features
    compose(linear(2, 25), ReLU(), linear(24, 2))


def one_feature() -> None:
    # E: layer 2 (Linear) expects 2 features but layer 1 (Linear) gives 1 feature
    compose(linear(2, 1), linear(2, 1))


def through_all_activations() -> None:
    compose(
        linear(2, 3),
        ReLU(),
        LeakyReLU(),
        ELU(),
        SELU(),
        GELU(),
        SiLU(),
        Mish(),
        Sigmoid(),
        Tanh(),
        Softplus(),
        Hardtanh(),
        CELU(),
        Hardswish(),
        Hardsigmoid(),
        LogSigmoid(),
        Softsign(),
        Softshrink(),
        Hardshrink(),
        Tanhshrink(),
        Threshold(0.0, 0.0),
        prelu(),
        Dropout(0.1),
        ChannelDropout(0.1),
        DropPath(0.1),
        AlphaDropout(0.1),
        GaussianNoise(0.1),
        Identity(),
        Softmax(),
        Softmin(),
        LogSoftmax(axis=-1),
        # E: layer 32 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
        linear(4, 5),
    )


def without_bias() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(linear(2, 3, bias=False), linear(4, 5))


def by_keyword() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(linear(in_features=2, out_features=3), linear(4, 5))


def keywords_the_other_way_round() -> None:
    # E: layer 2 (Linear) expects 2 features but layer 1 (Linear) gives 3 features
    compose(linear(out_features=3, in_features=2), linear(2, 5))


def by_module() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    fundl.compose(fundl.linear(2, 3), fundl.linear(4, 5))


def arithmetic() -> None:
    # E: layer 2 (Linear) expects 25 features but layer 1 (Linear) gives 24 features
    compose(linear(2, 3 * 8), linear(5 * 5, 2))


def a_constant() -> None:
    # E: layer 2 (Linear) expects 25 features but layer 1 (Linear) gives 24 features
    compose(linear(2, WIDTH), linear(25, 2))


def arithmetic_with_a_constant() -> None:
    # E: layer 2 (Linear) expects 12 features but layer 1 (Linear) gives 24 features
    compose(linear(2, WIDTH), linear(WIDTH // 2, 2))


def a_local_constant() -> None:
    width: Final = 3
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(linear(2, width), linear(4, width))


def the_second_of_two() -> None:
    # E: layer 3 (Linear) expects 5 features but layer 2 (Linear) gives 4 features
    compose(linear(2, 3), linear(3, 4), linear(5, 6))


def in_a_variable() -> None:
    first = linear(2, 3)
    second = linear(4, 5)
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(first, second)


def declared() -> None:
    # E: layer 3 (Linear) expects 24 features but layer 1 (Linear) gives 25 features
    model: tuple[Linear, ReLU, Linear] = compose(linear(2, 25), ReLU(), linear(24, 2))
    assert model


def returned() -> None:
    def make() -> tuple[Linear, ReLU, Linear]:
        # E: layer 3 (Linear) expects 24 features but layer 1 (Linear) gives 25 features
        return compose(linear(2, 25), ReLU(), linear(24, 2))

    make()


def in_a_condition() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    if compose(linear(2, 3), linear(4, 5)):
        pass


def in_a_list() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    models = [compose(linear(2, 3), linear(4, 5))]
    assert models


def in_a_lambda() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    make: Callable[[], object] = lambda: compose(linear(2, 3), linear(4, 5))
    make()


def in_a_default() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    def make(model: Model = compose(linear(2, 3), linear(4, 5))) -> None:
        assert model

    make()


def behind_one_without_a_rule() -> None:
    # E: layer 4 (Linear) expects 6 features but layer 3 (Linear) gives 5 features
    compose(linear(2, 3), Ruleless(), linear(4, 5), linear(6, 7))


# --- Models in models --------------------------------------------------------------------------------------------------


def nested() -> None:
    # E: layer 2.2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(linear(2, 3), compose(ReLU(), linear(4, 5)))


def a_tuple() -> None:
    # E: layer 2.2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(linear(2, 3), (ReLU(), linear(4, 5)))


def out_of_a_tuple() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1.1 (Linear) gives 3 features
    compose((linear(2, 3), ReLU()), linear(4, 5))


def inside_a_tuple() -> None:
    # E: layer 2.2 (Linear) expects 4 features but layer 2.1 (Linear) gives 3 features
    compose(ReLU(), (linear(2, 3), linear(4, 5)))


def deep() -> None:
    # E: layer 2.1.2.1 (Linear) expects 4 features but layer 1.1.1.1 (Linear) gives 3 features
    compose((((linear(2, 3),),),), ((ReLU(), (linear(4, 5),)),))


def unpacked() -> None:
    model = compose(linear(2, 3), ReLU())
    # E: layer 3 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(*model, linear(4, 5))


def unpacked_behind() -> None:
    model = compose(linear(4, 5), ReLU())
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(linear(2, 3), *model)


def unpacked_twice() -> None:
    model = compose(linear(2, 3), ReLU())
    # E: layer 3 (Linear) expects 2 features but layer 1 (Linear) gives 3 features
    compose(*model, *model)


def indexed() -> None:
    model = compose(linear(2, 3), ReLU(), linear(3, 4))
    # E: layer 2 (Linear) expects 5 features but layer 1 (Linear) gives 4 features
    compose(model[2], linear(5, 6))


def sliced() -> None:
    model = compose(linear(2, 3), ReLU(), linear(3, 4))
    # E: layer 3 (Linear) expects 5 features but layer 1 (Linear) gives 3 features
    compose(*model[:2], linear(5, 6))


def added() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(*(compose(linear(2, 3)) + (linear(4, 5),)))


# --- Layers made of layers ---------------------------------------------------------------------------------------------


def residual_changes_the_shape() -> None:
    # E: Residual expects 25 features but layer 1 (Linear) gives 24 features
    residual(linear(25, 24))


def residual_within() -> None:
    # E: layer 3 (Linear) expects 25 features but layer 1 (Linear) gives 24 features
    residual(linear(25, 24), ReLU(), linear(25, 25))


def into_a_residual() -> None:
    # E: layer 2.1 (Linear) expects 24 features but layer 1 (Linear) gives 25 features
    compose(linear(2, 25), residual(linear(24, 24)))


def out_of_a_residual() -> None:
    # E: layer 2 (Linear) expects 24 features but layer 1 (Residual) gives 25 features
    compose(residual(linear(25, 25)), linear(24, 2))


def residual_of_a_tuple() -> None:
    # E: Residual expects 25 features but layer 2 (Linear) gives 24 features
    residual((linear(25, 3), ReLU()), linear(3, 24))


def sum_of_branches() -> None:
    # E: Parallel expects 3 features but layer 2 (Linear) gives 4 features
    parallel(linear(2, 3), linear(2, 4))


def branches_of_one_input() -> None:
    # E: layer 2.2 (Linear) expects 3 features but the branches before it expect 2 features
    parallel(linear(2, 3), (ReLU(), linear(3, 3)))


def into_branches() -> None:
    # E: layer 2 (Linear) expects 5 features but the branches before it expect 3 features
    compose(linear(2, 3), parallel(linear(3, 4), linear(5, 4)))


def into_all_branches() -> None:
    # E: layer 2.1 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(linear(2, 3), parallel(linear(4, 4), linear(4, 4)))


def out_of_a_sum() -> None:
    # E: layer 2 (Linear) expects 6 features but layer 1 (Parallel) gives 3 features
    compose(parallel(linear(2, 3), linear(2, 3)), linear(6, 1))


def out_of_a_concatenation() -> None:
    # E: layer 2 (Linear) expects 3 features but layer 1 (Parallel) gives 7 features
    compose(parallel(linear(2, 3), linear(2, 4), join="concatenate"), linear(3, 1))


def a_branch_is_a_tuple() -> None:
    # E: layer 1.2 (Linear) expects 4 features but layer 1.1 (Linear) gives 3 features
    parallel((linear(2, 3), linear(4, 3)), linear(2, 3))


def into_a_checkpoint() -> None:
    # E: layer 2.2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(linear(2, 3), checkpoint(ReLU(), linear(4, 5)))


def out_of_a_checkpoint() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Checkpoint) gives 3 features
    compose(checkpoint(linear(2, 3), ReLU()), linear(4, 5))


def a_container_of_the_users() -> None:
    # E: layer 3 (Linear) expects 5 features but layer 2 (Named) gives 4 features
    compose(linear(2, 3), Named("hidden", (linear(3, 4), ReLU())), linear(5, 6))


# --- Where models are used ---------------------------------------------------------------------------------------------


def applied() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    apply((linear(2, 3), linear(4, 5)), X)


def applied_from_a_variable() -> None:
    model = (linear(2, 3), linear(4, 5))
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    apply(model, X)


def run_forward() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    forward((linear(2, 3), linear(4, 5)), X)


def differentiated() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    vjp((linear(2, 3), linear(4, 5)), X, X)


def trained() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    value_and_grad(mse, (linear(2, 3), linear(4, 5)), X, X)


def initialized() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    initialize(key(0), (linear(2, 3), linear(4, 5)))


def summarized() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    summary((linear(2, 3), linear(4, 5)), (10, 2))


def composed_after_initializing() -> None:
    model = initialize(key(0), compose(linear(2, 3), ReLU()))
    # E: layer 3 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(*model, linear(4, 5))


def composed_of_gradients() -> None:
    grads, _ = vjp(initialize(key(0), linear(2, 3)), X, torch.ones(4, 3))
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(grads, linear(4, 5))


# --- Functions of the user's -------------------------------------------------------------------------------------------


def block(n: A, m: B) -> tuple[Linear[A, B], ReLU]:
    return compose(linear(n, m), ReLU())


def blocks() -> None:
    # E: layer 2.1 (Linear) expects 4 features but layer 1.1 (Linear) gives 3 features
    compose(block(2, 3), block(4, 5))


def a_block_unpacked() -> None:
    # E: layer 3 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(*block(2, 3), *block(4, 5))


def square(n: A, depth: int = 2) -> tuple[Residual[Linear[A, A], ReLU], Linear[A, A]]:
    assert depth
    return compose(residual(linear(n, n), ReLU()), linear(n, n))


def a_block_with_options() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1.2 (Linear) gives 3 features
    compose(square(3, depth=1), linear(4, 5))


def head() -> Linear[Literal[4], Literal[5]]:
    return linear(4, 5)


def a_function_that_states_its_sizes() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(linear(2, 3), head())


def a_function_in_a_function() -> None:
    def inner(n: A) -> Linear[A, A]:
        return linear(n, n)

    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(inner(3), inner(4))


def a_parameter_with_sizes() -> None:
    def with_head(body: tuple[Linear[Literal[2], Literal[3]], ReLU]) -> None:
        # E: layer 3 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
        compose(*body, linear(4, 5))

    with_head(compose(linear(2, 3), ReLU()))


def use(model: P) -> P:
    return initialize(key(0), model)


def a_function_that_takes_models() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    use((linear(2, 3), linear(4, 5)))


class Nets:
    """Makes models."""

    def __init__(self) -> None:
        self.body = compose(linear(2, 3), ReLU())

    def narrow(self, n: A) -> Linear[A, Literal[1]]:
        return linear(n, 1)


def a_method() -> None:
    # E: layer 2 (Linear) expects 4 features but layer 1 (Linear) gives 1 feature
    compose(Nets().narrow(3), linear(4, 5))


def an_attribute() -> None:
    # E: layer 3 (Linear) expects 4 features but layer 1 (Linear) gives 3 features
    compose(*Nets().body, linear(4, 5))


# --- Images ------------------------------------------------------------------------------------------------------------


def channels() -> None:
    # E: layer 3 (Conv2d) expects 16 channels but layer 1 (Conv2d) gives 8 channels
    compose(conv2d(3, 8, 3), ReLU(), conv2d(16, 32, 3))


def channels_through_a_pool() -> None:
    # E: layer 3 (Conv2d) expects 16 channels but layer 2 (MaxPool2d) gives 8 channels
    compose(conv2d(3, 8, 3), MaxPool2d(2), conv2d(16, 32, 3))


def flattened() -> None:
    compose(
        Images(1, 28, 28),
        conv2d(1, 8, 3),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        # E: layer 6 (Linear) expects 1800 features but layer 5 (Flatten) gives 1352 features
        linear(1800, 10),
    )


def flattened_by_arithmetic() -> None:
    # E: layer 4 (Linear) expects 5000 features but layer 3 (Flatten) gives 5408 features
    compose(Images(1, 28, 28), conv2d(1, 8, 3), Flatten(), linear(8 * 25 * 25, 10))


def stride() -> None:
    # E: layer 4 (Linear) expects 1568 features but layer 3 (Flatten) gives 1352 features
    compose(Images(1, 28, 28), conv2d(1, 8, 3, stride=2), Flatten(), linear(8 * 14 * 14, 10))


def padding() -> None:
    # E: layer 4 (Linear) expects 5408 features but layer 3 (Flatten) gives 6272 features
    compose(Images(1, 28, 28), conv2d(1, 8, 3, padding=1), Flatten(), linear(5408, 10))


def stride_and_padding() -> None:
    # E: layer 4 (Linear) expects 99 features but layer 3 (Flatten) gives 800 features
    compose(Images(1, 28, 28), conv2d(1, 8, 5, padding=2, stride=3), Flatten(), linear(99, 10))


def stride_of_a_pool() -> None:
    # E: layer 4 (Linear) expects 100 features but layer 3 (Flatten) gives 81 features
    compose(Images(1, 28, 28), MaxPool2d(3, stride=3), Flatten(), linear(100, 10))


def image_that_is_not_square() -> None:
    # E: layer 4 (Linear) expects 2048 features but layer 3 (Flatten) gives 1680 features
    compose(Images(3, 32, 16), conv2d(3, 4, 3), Flatten(), linear(4 * 32 * 16, 10))


def height() -> None:
    # E: layer 3 (Images) expects size 28 along axis 2 but layer 2 (Conv2d) gives size 26 along axis 2
    compose(Images(1, 28, 28), conv2d(1, 8, 3), Images(8, 28, 26))


def width() -> None:
    # E: layer 3 (Images) expects size 28 along axis 3 but layer 2 (Conv2d) gives size 26 along axis 3
    compose(Images(1, 28, 28), conv2d(1, 8, 3), Images(8, 26, 28))


def image_smaller_than_the_kernel() -> None:
    # E: layer 2 (Conv2d) expects a height and width of at least 5 but layer 1 (Images) gives one of 4
    compose(Images(1, 4, 4), conv2d(1, 8, 5))


def features_of_an_average() -> None:
    # E: layer 3 (Linear) expects 16 features but layer 2 (GlobalAverage) gives 8 features
    compose(conv2d(3, 8, 3), GlobalAverage(), linear(16, 10))


def no_image() -> None:
    # E: layer 3 (Conv2d) expects 4 axes but layer 2 (Flatten) gives 2 axes
    compose(conv2d(3, 8, 3), Flatten(), conv2d(8, 8, 3))


def residual_of_images() -> None:
    # E: layer 2 (Residual) expects size 28 along axis 3 but layer 2.1 (Conv2d) gives size 26 along axis 3
    compose(Images(8, 28, 28), residual(conv2d(8, 8, 3)))


def residual_of_channels() -> None:
    # E: Residual expects size 8 along axis 1 but layer 1 (Conv2d) gives size 16 along axis 1
    residual(conv2d(8, 16, 3, padding=1))


# --- Normalisation -----------------------------------------------------------------------------------------------------


def normalised_features() -> None:
    # E: layer 2 (LayerNorm) expects 24 features but layer 1 (Linear) gives 25 features
    compose(linear(2, 25), layer_norm(24))


def behind_normalised_features() -> None:
    # E: layer 4 (Linear) expects 24 features but layer 2 (LayerNorm) gives 25 features
    compose(linear(2, 25), layer_norm(25, bias=False), ReLU(), linear(24, 2))


def without_parameters() -> None:
    # E: layer 2 (RMSNorm) expects 24 features but layer 1 (Linear) gives 25 features
    compose(linear(2, 25), RMSNorm(24))


def inside_a_residual() -> None:
    # E: layer 2 (Linear) expects 24 features but layer 1 (RMSNorm) gives 25 features
    residual(rms_norm(25), linear(24, 25))


# --- Pooling -----------------------------------------------------------------------------------------------------------


def a_pool_that_rounds_up() -> None:
    # E: layer 4 (Linear) expects 9 features but layer 3 (Flatten) gives 16 features
    compose(Images(1, 7, 7), MaxPool2d(2, ceil_mode=True), Flatten(), linear(9, 10))


def a_pool_that_rounds_down() -> None:
    # E: layer 4 (Linear) expects 16 features but layer 3 (Flatten) gives 9 features
    compose(Images(1, 7, 7), AveragePool2d(2, ceil_mode=False), Flatten(), linear(16, 10))


def a_pool_with_every_option() -> None:
    # E: layer 4 (Linear) expects 10 features but layer 3 (Flatten) gives 25 features
    compose(Images(1, 10, 10), MaxPool2d(3, stride=2, padding=1, dilation=2, ceil_mode=True), Flatten(), linear(10, 10))


def a_pool_with_a_size_for_each_axis() -> None:
    # E: layer 4 (Linear) expects 12 features but layer 3 (Flatten) gives 16 features
    compose(Images(1, 8, 6), MaxPool2d((2, 3), stride=(2, 1)), Flatten(), linear(12, 10))


def a_sequence_smaller_than_the_pool() -> None:
    # E: layer 2 (AveragePool1d) expects a length of at least 4 but layer 1 (Positions) gives one of 3
    compose(Positions(8, 3), AveragePool1d(4))


def parts_with_a_number_for_each_axis() -> None:
    # E: layer 4 (Linear) expects 49 features but layer 3 (Flatten) gives 6 features
    compose(Images(1, 7, 7), AdaptiveAveragePool2d((2, 3)), Flatten(), linear(49, 10))


def an_average_with_padding() -> None:
    # E: layer 4 (Linear) expects 64 features but layer 3 (Flatten) gives 81 features
    compose(Images(1, 8, 8), AveragePool2d(2, stride=1, padding=1), Flatten(), linear(64, 10))


def an_image_smaller_than_the_pool() -> None:
    # E: layer 2 (MaxPool2d) expects a height and width of at least 3 but layer 1 (Images) gives one of 2
    compose(Images(1, 2, 2), MaxPool2d(3))


def a_pool_of_sequences_for_images() -> None:
    # E: layer 2 (MaxPool1d) expects 3 axes but layer 1 (Conv2d) gives 4 axes
    compose(conv2d(3, 8, 3), MaxPool1d(2))


def a_pool_of_volumes_for_images() -> None:
    # E: layer 2 (MaxPool3d) expects 5 axes but layer 1 (Conv2d) gives 4 axes
    compose(conv2d(3, 8, 3), MaxPool3d(2))


def parts_of_an_image() -> None:
    # E: layer 4 (Linear) expects 25 features but layer 3 (Flatten) gives 16 features
    compose(Images(1, 7, 7), AdaptiveAveragePool2d(4), Flatten(), linear(25, 10))


def channels_through_parts() -> None:
    # E: layer 3 (Conv2d) expects 16 channels but layer 2 (AdaptiveMaxPool2d) gives 8 channels
    compose(conv2d(3, 8, 3), AdaptiveMaxPool2d(4), conv2d(16, 8, 3))


def the_mean_of_each_channel() -> None:
    # E: layer 3 (Linear) expects 16 features but layer 2 (GlobalAveragePool) gives 8 features
    compose(conv2d(3, 8, 3), GlobalAveragePool(), linear(16, 10))


def the_maximum_of_each_channel() -> None:
    # E: layer 3 (Linear) expects 16 features but layer 2 (GlobalMaxPool) gives 8 features
    compose(conv2d(3, 8, 3), GlobalMaxPool(), linear(16, 10))


def groups_of_channels() -> None:
    # E: layer 2 (GroupNorm) expects 16 channels but layer 1 (Conv2d) gives 32 channels
    compose(conv2d(3, 32, 3), group_norm(4, 16))


def channels_of_instances() -> None:
    # E: layer 2 (InstanceNorm) expects 16 channels but layer 1 (Conv2d) gives 32 channels
    compose(conv2d(3, 32, 3), instance_norm(16))


def channels_of_batches() -> None:
    # E: layer 3 (BatchNorm) expects 16 channels but layer 1 (Conv2d) gives 32 channels
    compose(conv2d(3, 32, 3), ReLU(), batch_norm(16))


def behind_batches() -> None:
    # E: layer 4 (Conv2d) expects 16 channels but layer 2 (BatchNorm) gives 32 channels
    compose(conv2d(3, 32, 3), batch_norm(32), ReLU(), conv2d(16, 8, 3))


def a_normalised_weight() -> None:
    # E: layer 2.1 (Linear) expects 24 features but layer 1 (Linear) gives 25 features
    compose(linear(2, 25), weight_norm(linear(24, 3)))


def behind_a_normalised_weight() -> None:
    # E: layer 3 (Linear) expects 24 features but layer 1 (WeightNorm) gives 25 features
    compose(weight_norm(linear(2, 25)), ReLU(), linear(24, 3))


def a_standardised_weight() -> None:
    # E: layer 2.1 (Conv2d) expects 16 channels but layer 1 (Conv2d) gives 32 channels
    compose(conv2d(3, 32, 3), weight_standardization(conv2d(16, 8, 3)))


# --- Resampling --------------------------------------------------------------------------------------------------------


def an_image_made_larger() -> None:
    # E: layer 4 (Linear) expects 49 features but layer 3 (Flatten) gives 196 features
    compose(Images(1, 7, 7), Upsample(2), Flatten(), linear(49, 10))


def an_image_made_larger_along_each_axis() -> None:
    # E: layer 4 (Linear) expects 49 features but layer 3 (Flatten) gives 147 features
    compose(Images(1, 7, 7), Upsample((3, 1), mode="linear"), Flatten(), linear(49, 10))


def an_image_of_another_size() -> None:
    # E: layer 4 (Linear) expects 49 features but layer 3 (Flatten) gives 54 features
    compose(Images(1, 7, 7), Upsample(size=(6, 9)), Flatten(), linear(49, 10))


def channels_through_upsample() -> None:
    # E: layer 3 (Conv2d) expects 16 channels but layer 2 (Upsample) gives 8 channels
    compose(conv2d(3, 8, 3), Upsample(2), conv2d(16, 8, 3))


def a_sequence_for_an_upsample_of_images() -> None:
    # E: layer 2 (Upsample) expects 4 axes but layer 1 (Positions) gives 3 axes
    compose(Positions(10, 16), Upsample((2, 2)))


def a_frame() -> None:
    # E: layer 4 (Linear) expects 49 features but layer 3 (Flatten) gives 90 features
    compose(Images(1, 7, 7), Pad((1, (0, 3)), mode="reflect"), Flatten(), linear(49, 10))


def features_that_are_padded() -> None:
    # E: layer 3 (Linear) expects 25 features but layer 2 (Pad) gives 27 features
    compose(linear(2, 25), Pad((1,)), linear(25, 2))


def shuffled_pixels() -> None:
    # E: layer 3 (Conv2d) expects 8 channels but layer 2 (PixelShuffle) gives 2 channels
    compose(conv2d(3, 8, 3), PixelShuffle(2), conv2d(8, 8, 3))


def channels_that_do_not_divide() -> None:
    # E: layer 2 (PixelShuffle) expects a size that is a multiple of 9 but layer 1 (Conv2d) gives one of 8
    compose(conv2d(3, 8, 3), PixelShuffle(3))


def columns_of_patches() -> None:
    # E: layer 4 (Linear) expects 144 features but layer 3 (Flatten) gives 420 features
    compose(Images(3, 8, 6), fundl.Unfold(2), Flatten(), linear(144, 10))


def images_of_patches() -> None:
    # E: layer 3 (Fold) expects 35 places of the window but layer 2 (Unfold) gives 12 places of the window
    compose(Images(3, 8, 6), fundl.Unfold(2, stride=2), fundl.Fold((8, 6), 2))


def strides_of_pools() -> None:
    # E: layer 4 (Linear) expects 9 features but layer 3 (Flatten) gives 16 features
    compose(Images(1, 7, 7), MaxPool2d(3, stride=2, padding="same"), Flatten(), linear(9, 10))


def strides_back() -> None:
    # E: layer 4 (Linear) expects 225 features but layer 3 (Flatten) gives 196 features
    compose(Images(1, 7, 7), fundl.conv_transpose2d(1, 1, 3, stride=2, padding="same"), Flatten(), linear(225, 10))


def strides_of_convolutions() -> None:
    # E: layer 4 (Linear) expects 49 features but layer 3 (Flatten) gives 16 features
    compose(Images(1, 7, 7), fundl.conv2d(1, 1, 3, stride=2, padding="same"), Flatten(), linear(49, 10))


def pixels_in_channels() -> None:
    # E: layer 3 (Conv2d) expects 8 channels but layer 2 (PixelUnshuffle) gives 32 channels
    compose(conv2d(3, 8, 3), PixelUnshuffle(2), conv2d(8, 8, 3))


def an_image_that_does_not_divide() -> None:
    # E: layer 2 (PixelUnshuffle) expects a size that is a multiple of 2 but layer 1 (Images) gives one of 7
    compose(Images(1, 7, 8), PixelUnshuffle(2))


# --- Other rules of the user's -----------------------------------------------------------------------------------------


def repeated() -> None:
    # E: layer 3 (Linear) expects 3 features but layer 2 (Repeat) gives 12 features
    compose(linear(2, 3), Repeat(4), linear(3, 1))


def repeated_by_default() -> None:
    # E: layer 3 (Linear) expects 3 features but layer 2 (Repeat) gives 6 features
    compose(linear(2, 3), Repeat(), linear(3, 1))


def widened() -> None:
    # E: layer 3 (Linear) expects 8 features but layer 2 (Widen) gives 7 features
    compose(linear(2, 3), Widen(4), linear(8, 1))


def dropped() -> None:
    # E: layer 3 (Linear) expects 5 features but layer 2 (Drop) gives 6 features
    compose(linear(2, 8), Drop(2), linear(5, 1))


def gated() -> None:
    # E: layer 3 (Linear) expects 8 features but layer 2 (Gate) gives 4 features
    compose(linear(2, 8), Gate(), linear(8, 1))


def scaled() -> None:
    # E: layer 2 (Scale) expects 16 channels but layer 1 (Conv2d) gives 8 channels
    compose(conv2d(3, 8, 3), Scale(16))


def steps() -> None:
    # E: layer 2 (Positions) expects 12 steps but layer 1 (Positions) gives 10 steps
    compose(Positions(10, 16), Positions(12, 16))


def features_of_steps() -> None:
    # E: layer 2 (Linear) expects 8 features but layer 1 (Positions) gives 16 features
    compose(Positions(10, 16), linear(8, 4))


def reshaped() -> None:
    # E: layer 2 (Reshape) expects 176 elements but layer 1 (Positions) gives 160 elements
    compose(Positions(10, 16), Reshape((4, 44)))


def reshaped_with_a_rest() -> None:
    # E: layer 3 (Linear) expects 9 features but layer 2 (Reshape) gives 8 features
    compose(Positions(10, 16), Reshape((20, -1)), linear(9, 1))


def reshaped_into_an_image() -> None:
    # E: layer 2 (Conv2d) expects 3 channels but layer 1 (Reshape) gives 1 channel
    compose(Reshape((1, 28, 28)), conv2d(3, 8, 3))


# --- Sequences ---------------------------------------------------------------------------------------------------------


def vectors_of_tokens() -> None:
    # E: layer 2 (Linear) expects 8 features but layer 1 (Embedding) gives 16 features
    compose(embedding(1000, 16), linear(8, 4))


def vectors_of_tokens_far_before() -> None:
    # E: layer 4 (Linear) expects 8 features but layer 1 (Embedding) gives 16 features
    compose(embedding(1000, 16, padding=0), Rotary(), Tanh(), linear(8, 4))


def vectors_of_tokens_in_a_row() -> None:
    # E: layer 4 (Linear) expects 100 features but layer 3 (Flatten) gives 160 features
    compose(Reshape((10,)), embedding(1000, 16), Flatten(), linear(100, 1))


def positions_of_other_features() -> None:
    # E: layer 2 (LearnedPositions) expects 8 features but layer 1 (Embedding) gives 16 features
    compose(embedding(1000, 16), learned_positions(50, 8))


def behind_positions() -> None:
    # E: layer 4 (Linear) expects 8 features but layer 2 (LearnedPositions) gives 16 features
    compose(embedding(1000, 16), learned_positions(50, 16), SinusoidalPositions(), linear(8, 4))


def positions_without_steps() -> None:
    # E: layer 2 (LearnedPositions) expects at least 2 axes but layer 1 (Reshape) gives 1 axis
    compose(Reshape(()), learned_positions(50, 8))


def behind_a_gate() -> None:
    # E: layer 3 (Linear) expects 8 features but layer 2 (GLU) gives 4 features
    compose(linear(2, 8), GLU(SiLU()), linear(8, 1))


def behind_a_gate_of_channels() -> None:
    # E: layer 3 (Conv2d) expects 8 channels but layer 2 (GLU) gives 4 channels
    compose(conv2d(3, 8, 3), GLU(axis=1), conv2d(8, 3, 3))


def maxout() -> None:
    # E: layer 3 (Linear) expects 8 features but layer 2 (Maxout) gives 4 features
    compose(linear(2, 12), Maxout(3), linear(8, 1))


def maxout_of_too_few() -> None:
    # E: layer 2 (Maxout) expects a size that is a multiple of 5 but layer 1 (Linear) gives one of 12
    compose(linear(2, 12), Maxout(5))


def maxout_of_channels() -> None:
    # E: layer 3 (Conv2d) expects 8 channels but layer 2 (Maxout) gives 4 channels
    compose(conv2d(3, 8, 3), Maxout(2, axis=1), conv2d(8, 3, 3))


def gains_and_offsets() -> None:
    # E: layer 3 (Bias) expects 5 features but layer 2 (Gain) gives 4 features
    compose(linear(2, 4), gain(4), bias(5))


def in_a_feed_forward_network() -> None:
    # E: layer 2.1 (Linear) expects 8 features but layer 1 (Embedding) gives 16 features
    compose(embedding(1000, 16), feed_forward(8, 32))


def behind_a_feed_forward_network() -> None:
    # E: layer 3 (Linear) expects 32 features but layer 2.3 (Linear) gives 16 features
    compose(embedding(1000, 16), feed_forward(16, 32, activation=Tanh()), linear(32, 4))


def in_a_gated_network() -> None:
    # E: layer 2.1 (Linear) expects 8 features but layer 1 (Embedding) gives 16 features
    compose(embedding(1000, 16), gated_feed_forward(8, 32))


def behind_a_gated_network() -> None:
    # E: layer 2 (Linear) expects 32 features but layer 1.3 (Linear) gives 16 features
    compose(gated_feed_forward(16, 32), linear(32, 4))


def an_adapted_layer() -> None:
    # E: layer 2 (LowRank) expects 8 features but layer 1 (Linear) gives 16 features
    compose(linear(2, 16), low_rank(linear(8, 4), 2))


def behind_an_adapted_layer() -> None:
    # E: layer 2 (Linear) expects 8 features but layer 1 (LowRank) gives 4 features
    compose(low_rank(linear(8, 4), 2), linear(8, 1))


def behind_a_merged_layer() -> None:
    adapted = initialize(key(1), low_rank(initialize(key(0), linear(8, 4)), 2))
    # E: layer 2 (Linear) expects 8 features but layer 1 (Linear) gives 4 features
    compose(adapted.merged(), linear(8, 1))


# --- Convolutions ------------------------------------------------------------------------------------------------------


def channels_of_convolutions() -> None:
    # E: layer 3 (Conv2d) expects 16 channels but layer 1 (Conv2d) gives 8 channels
    compose(fundl.conv2d(3, 8, 3), ReLU(), fundl.conv2d(16, 32, 3))


def channels_of_signals() -> None:
    # E: layer 2 (Conv1d) expects 4 channels but layer 1 (Conv1d) gives 8 channels
    compose(fundl.conv1d(3, 8, 3), fundl.conv1d(4, 8, 3))


def channels_of_volumes() -> None:
    # E: layer 2 (Conv3d) expects 4 channels but layer 1 (Conv3d) gives 8 channels
    compose(fundl.conv3d(3, 8, 3), fundl.conv3d(4, 8, 3))


def channels_of_groups() -> None:
    # E: layer 2 (Conv2d) expects 16 channels but layer 1 (Conv2d) gives 8 channels
    compose(fundl.conv2d(2, 8, 3, groups=2), fundl.conv2d(16, 8, 3, groups=8))


def features_behind_a_convolution() -> None:
    compose(
        Images(1, 28, 28),
        fundl.conv2d(1, 8, 3),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        # E: layer 6 (Linear) expects 1568 features but layer 5 (Flatten) gives 1352 features
        linear(8 * 14 * 14, 10),
    )


def features_with_all_settings() -> None:
    model = (Reshape((1, 28, 20)), fundl.conv2d(1, 8, 3, stride=2, padding=2, dilation=3), Flatten())
    # E: layer 4 (Linear) expects 1000 features but layer 3 (Flatten) gives 936 features
    compose(*model, linear(1000, 10))


def features_with_tuples() -> None:
    model = (Reshape((1, 28, 20)), fundl.conv2d(1, 8, (3, 5), stride=(2, 1), padding=(1, 0)), Flatten())
    # E: layer 4 (Linear) expects 1000 features but layer 3 (Flatten) gives 1792 features
    compose(*model, linear(1000, 10))


def features_of_kept_sizes() -> None:
    # E: layer 4 (Linear) expects 1000 features but layer 3 (Flatten) gives 4480 features
    compose(Reshape((1, 28, 20)), fundl.conv2d(1, 8, 4, padding="same"), Flatten(), linear(1000, 10))


def features_of_signals() -> None:
    # E: layer 4 (Linear) expects 200 features but layer 3 (Flatten) gives 208 features
    compose(Reshape((1, 28)), fundl.conv1d(1, 8, 3), Flatten(), linear(200, 10))


def features_of_volumes() -> None:
    # E: layer 4 (Linear) expects 200 features but layer 3 (Flatten) gives 192 features
    compose(Reshape((1, 4, 5, 6)), fundl.conv3d(1, 8, 3), Flatten(), linear(200, 10))


def no_place_for_a_window() -> None:
    # E: layer 2 (Conv2d) expects a height and width of at least 5 but layer 1 (Reshape) gives one of 4
    compose(Reshape((3, 4, 8)), fundl.conv2d(3, 8, 7, padding=1))


def no_place_in_a_signal() -> None:
    # E: layer 2 (Conv1d) expects a length of at least 5 but layer 1 (Reshape) gives one of 4
    compose(Reshape((3, 4)), fundl.conv1d(3, 8, 5))


def no_place_in_a_volume() -> None:
    # E: layer 2 (Conv3d) expects a depth, height and width of at least 5 but layer 1 (Reshape) gives one of 4
    compose(Reshape((3, 6, 5, 4)), fundl.conv3d(3, 8, 5))


def a_signal_is_no_image() -> None:
    # E: layer 2 (Conv2d) expects 4 axes but layer 1 (Conv1d) gives 3 axes
    compose(fundl.conv1d(3, 8, 3), fundl.conv2d(8, 8, 3))


def a_flat_image_is_no_image() -> None:
    # E: layer 3 (Conv2d) expects 4 axes but layer 2 (Flatten) gives 2 axes
    compose(fundl.conv2d(3, 8, 3), Flatten(), fundl.conv2d(8, 8, 3))


def channels_of_transposes() -> None:
    # E: layer 2 (ConvTranspose2d) expects 16 channels but layer 1 (ConvTranspose2d) gives 8 channels
    compose(fundl.conv_transpose2d(4, 8, 3, groups=2), fundl.conv_transpose2d(16, 4, 3))


def features_behind_a_transpose() -> None:
    model = (Reshape((8, 7, 5)), fundl.conv_transpose2d(8, 4, 3, stride=2, padding=1, output_padding=(1, 0)), Flatten())
    # E: layer 4 (Linear) expects 500 features but layer 3 (Flatten) gives 504 features
    compose(*model, linear(500, 1))


def features_of_transposed_signals() -> None:
    # E: layer 4 (Linear) expects 20 features but layer 3 (Flatten) gives 21 features
    compose(Reshape((8, 7)), fundl.conv_transpose1d(8, 1, 3, stride=3), Flatten(), linear(20, 1))


def features_of_transposed_volumes() -> None:
    # E: layer 4 (Linear) expects 500 features but layer 3 (Flatten) gives 480 features
    compose(Reshape((1, 2, 3, 4)), fundl.conv_transpose3d(1, 4, (3, 4, 2), dilation=1), Flatten(), linear(500, 1))


def nothing_left_of_an_image() -> None:
    # E: layer 2 (ConvTranspose2d) expects a height and width of at least 3 but layer 1 (Reshape) gives one of 2
    compose(Reshape((8, 2, 2)), fundl.conv_transpose2d(8, 4, 1, stride=2, padding=2))


def residual_around_a_convolution() -> None:
    # E: layer 2 (Residual) expects size 28 along axis 3 but layer 2.1 (Conv2d) gives size 26 along axis 3
    compose(Images(8, 28, 28), residual(fundl.conv2d(8, 8, 3)))


# --- Recurrent layers --------------------------------------------------------------------------------------------------


def features_of_a_recurrent_layer() -> None:
    # E: layer 2 (LSTM) expects 16 features but layer 1 (Linear) gives 15 features
    compose(linear(3, 15), lstm(16, 32))


def behind_a_recurrent_layer() -> None:
    # E: layer 2 (Linear) expects 64 features but layer 1 (GRU) gives 32 features
    compose(gru(16, 32, depth=2), linear(64, 10))


def behind_both_directions() -> None:
    # E: layer 2 (Linear) expects 32 features but layer 1 (RNN) gives 64 features
    compose(rnn(16, 32, bidirectional=True, activation="relu"), linear(32, 10))


def behind_the_last_position() -> None:
    # E: layer 4 (Linear) expects 32 features but layer 3 (LastPosition) gives 64 features
    compose(lstm(16, 32, bidirectional=True), Dropout(0.1), LastPosition(), linear(32, 10))


def a_recurrent_layer_of_no_sequences() -> None:
    # E: layer 3 (GRU) expects 3 axes but layer 2 (LastPosition) gives 2 axes
    compose(lstm(16, 32), LastPosition(), gru(32, 32))


def a_residual_of_both_directions() -> None:
    # E: Residual expects 16 features but layer 1 (GRU) gives 32 features
    residual(gru(16, 16, bidirectional=True))
