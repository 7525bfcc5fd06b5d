"""Layers that are split among processes: the numbers of a model that one process has as a whole."""

from collections.abc import Callable
from functools import partial
from typing import Final

import pytest
import torch
from torch import Tensor

from fundl import (
    GELU,
    DecoderBlock,
    Dropout,
    adamw,
    apply,
    backward,
    chain,
    checkpoint,
    clip_by_global_norm,
    compose,
    cross_attention,
    cross_entropy,
    decoder_block,
    dynamic_loss_scale,
    embedding,
    evaluate,
    feed_forward,
    fit,
    forward,
    gated_feed_forward,
    initialize,
    jit,
    key,
    layer_norm,
    linear,
    minibatches,
    mixed_precision,
    random,
    rekey,
    repeat,
    residual,
    self_attention,
    sgd,
    summary,
    tied,
    train_state,
    train_step,
    transformer_block,
    tree,
    unreduced,
    weighted,
)
from fundl._common import draws
from fundl.distributed import (
    Group,
    grid,
    shard,
    split_attention,
    split_cross_entropy,
    split_embedding,
    split_feed_forward,
    split_output,
    tensor_parallel,
    unshard,
)
from fundl.layer import AnyLayer, Model
from tests.processes import together

ALONE: Final = Group("alone", 1, 0)
DOUBLE: Final = torch.float64
TOKENS: Final = 11


def language(group: Group) -> Model:
    """A small model of characters in which all is split."""
    block = tensor_parallel(group, transformer_block(8, 4, causal=True, key_value_heads=2, rotary=1e4, dropout=0.2))
    network = (linear(8, 12), GELU(), Dropout(0.3), linear(12, 8))
    return compose(
        split_embedding(group, embedding(TOKENS, 8, padding=3)),
        repeat(2, checkpoint(block)),
        residual(layer_norm(8), tensor_parallel(group, network)),
        residual(split_feed_forward(group, *gated_feed_forward(8, 6, bias=True))),
        split_output(group, linear(8, TOKENS)),
    )


def small(group: Group) -> Model:
    return compose(
        split_embedding(group, embedding(TOKENS, 8)),
        split_attention(group, self_attention(8, 2, dropout=0.2)),
        split_feed_forward(group, linear(8, 4), Dropout(0.3), linear(4, 8)),
        split_output(group, linear(8, TOKENS)),
    )


def tokens() -> tuple[Tensor, Tensor]:
    x = torch.arange(13 * 4).reshape(13, 4) % TOKENS
    return x, torch.where(x % 5 == 0, -100, (3 * x + 1) % TOKENS)


def trained(data: Group, tensor: Group, *, compiled: bool = False) -> tuple[Model, list[Tensor]]:
    """The model after some steps, whole, and the losses."""
    optimizer = chain(clip_by_global_norm(0.5), adamw(1e-2, epsilon=1e-3))
    loss = partial(split_cross_entropy, group=tensor, classes=TOKENS, axis=-1, label_smoothing=0.1)
    shapes = small(tensor) if compiled else language(tensor)
    state = train_state(key(1), initialize(key(0), shapes, dtype=DOUBLE), optimizer)
    made = train_step(loss, optimizer, over=data)
    step = jit(made, donate="state") if compiled else made
    losses: list[Tensor] = []
    for epoch in range(2):
        for batch in minibatches(key(epoch), tokens(), 6, part=data, drop_last=True):
            state, report = step(state, batch)
            losses.append(report.loss)
    return unshard(state.model), losses


def trained_on_grid(_: Group, sizes: tuple[int, int], compiled: bool) -> tuple[Model, list[Tensor]]:
    data, tensor = grid(data=sizes[0], tensor=sizes[1])
    return trained(data, tensor, compiled=compiled)


def difference(first: object, second: object) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(tree.leaves(first), tree.leaves(second), strict=True))


@pytest.mark.parametrize("sizes", [(1, 2), (2, 2)])
def test_a_run_of_split_layers_gives_the_numbers_of_one_process(sizes: tuple[int, int]) -> None:
    alone = trained(ALONE, ALONE)
    for found in together(sizes[0] * sizes[1], trained_on_grid, sizes, False):
        assert difference(found, alone) < 1e-12


@pytest.mark.slow
def test_a_compiled_run_gives_the_numbers_of_one_process() -> None:
    alone = trained(ALONE, ALONE, compiled=True)
    for found in together(2, trained_on_grid, (1, 2), True):
        assert difference(found, alone) < 1e-12


def fitted(group: Group) -> tuple[list[Tensor], Tensor]:
    """A run whose optimizer looks at all numbers, on batches of which the last one is smaller."""
    optimizer = dynamic_loss_scale(chain(clip_by_global_norm(0.5), adamw(1e-2, epsilon=1e-3)))
    loss = partial(split_cross_entropy, group=group, classes=TOKENS, axis=-1)
    state = train_state(key(1), initialize(key(0), language(group), dtype=DOUBLE), optimizer)
    state, _ = fit(train_step(loss, optimizer), state, lambda key: minibatches(key, tokens(), 5), epochs=2, progress=False)
    return tree.trainable_leaves(unshard(state.model)), torch.tensor(evaluate(loss, state.model, [tokens()]).loss)


def test_fit_and_evaluate_know_of_split_layers() -> None:
    alone = fitted(ALONE)
    for found in together(2, fitted):
        assert difference(found, alone) < 1e-12


def wrongly_over(group: Group) -> None:
    train_step(partial(split_cross_entropy, group=group, classes=TOKENS, axis=-1), sgd(0.1), over=group)(
        train_state(key(1), initialize(key(0), language(group)), sgd(0.1)), tokens()
    )


def test_a_step_over_those_that_split_the_layers_is_refused() -> None:
    with pytest.raises(RuntimeError, match="are given the same rows, but the"):
        together(2, wrongly_over)


def plain() -> Model:
    """The model of `language` as it is without any splitting."""
    return compose(
        embedding(TOKENS, 8, padding=3),
        repeat(2, checkpoint(transformer_block(8, 4, causal=True, key_value_heads=2, rotary=1e4, dropout=0.2))),
        residual(layer_norm(8), (linear(8, 12), GELU(), Dropout(0.3), linear(12, 8))),
        residual(gated_feed_forward(8, 6, bias=True)),
        linear(8, TOKENS),
    )


def looked_at(group: Group) -> tuple[Model, int, int, Tensor, int, str]:
    model = initialize(key(0), language(group), dtype=DOUBLE)
    parameters = summary(language(group), (2, 3), dtype=torch.int64).parameters
    return unshard(model), tree.count(model), tree.nbytes(model), tree.norm(model), parameters, repr(tree.paths(unshard(model)))


def test_norms_counts_summaries_and_names_are_of_the_whole() -> None:
    whole = initialize(key(0), plain(), dtype=DOUBLE)
    for model, count, nbytes, norm, parameters, names in together(2, looked_at):
        assert tree.equal(model, whole)
        assert (count, parameters, names) == (tree.count(whole), tree.count(whole), repr(tree.paths(whole)))
        assert nbytes < 0.65 * tree.nbytes(whole)
        assert (norm - tree.norm(whole)).abs() < 1e-14


def pulled_back(group: Group, name: str) -> object:
    """The gradients of layers with keys: as a whole, and with respect to the input."""
    model = rekey(initialize(key(0), MODELS[name](group), dtype=DOUBLE), key(5))
    grad = torch.linspace(-1.0, 1.0, 2 * 5 * 8, dtype=DOUBLE).reshape(2, 5, 8).cos()
    output, residuals = forward(model, INPUTS[name])
    grads, grad_x = backward(model, residuals, grad)
    return output, tree.trainable_leaves(unshard(grads)), grad_x


def sequences(features: int, steps: int = 5) -> Tensor:
    return torch.linspace(-2.0, 2.0, 2 * steps * features, dtype=DOUBLE).reshape(2, steps, features).sin()


def decoding(group: Group) -> AnyLayer:
    block = tensor_parallel(group, decoder_block(8, 2, memory_features=6, dropout=0.3))
    assert isinstance(block, DecoderBlock)
    return block


MODELS: Final[dict[str, Callable[[Group], AnyLayer]]] = {
    "attention": lambda group: split_attention(group, self_attention(8, 4, dropout=0.3, rotary=1e4)),
    "without biases": lambda group: split_attention(group, self_attention(8, 2, bias=False)),
    "memory": lambda group: split_attention(group, cross_attention(8, 4, key_value_heads=2, memory_features=6, dropout=0.3)),
    "decoder": decoding,
    "network": lambda group: split_feed_forward(group, linear(8, 6), Dropout(0.4), GELU(), linear(6, 8)),
    "gate": lambda group: split_feed_forward(group, *gated_feed_forward(8, 6)),
    "wide": lambda group: mixed_precision(split_feed_forward(group, *feed_forward(8, 6)), compute=DOUBLE),
}
INPUTS: Final = {name: sequences(8) for name in MODELS} | {
    name: (sequences(8), sequences(6, 3)) for name in ("memory", "decoder")
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_whole(name: str) -> None:
    alone = pulled_back(ALONE, name)
    for found in together(2, pulled_back, name):
        assert difference(found, alone) < 1e-11  # of gradients of 100 and more


def losses_of(group: Group, classes: int, name: str) -> tuple[Tensor, Tensor]:
    """The loss of some classes, and its gradient with respect to the logits of all."""
    x, y = logits(classes)
    part = -(-classes // group.size)
    filled = torch.cat((x, x.new_full((*x.shape[:-1], part * group.size - classes), 9.0)), -1)
    own = filled[..., group.rank * part : (group.rank + 1) * part]
    value, grad = LOSSES[name][0](own, y, group=group, classes=classes)
    return value, tree.Split(group, classes, part, axis=-1).whole_of(grad)


def logits(classes: int) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-3.0, 700.0, 6 * 4 * classes, dtype=DOUBLE).reshape(6, 4, classes).sin() * 300
    return x, torch.where(torch.arange(24).reshape(6, 4) % 5 == 0, 2, torch.arange(24).reshape(6, 4) % classes)


WEIGHT: Final = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0])
LOSSES: Final = {
    "plain": (partial(split_cross_entropy, axis=-1), partial(cross_entropy, axis=-1)),
    "smoothed": (
        partial(split_cross_entropy, axis=-1, label_smoothing=0.2),
        partial(cross_entropy, axis=-1, label_smoothing=0.2),
    ),
    "ignoring": (
        partial(split_cross_entropy, axis=-1, ignore_index=2, reduction="batch_mean"),
        partial(cross_entropy, axis=-1, ignore_index=2, reduction="batch_mean"),
    ),
    "weighted": (
        partial(split_cross_entropy, axis=-1, weight=WEIGHT, ignore_index=1),
        partial(cross_entropy, axis=-1, weight=WEIGHT, ignore_index=1),
    ),
    "all": (
        partial(split_cross_entropy, axis=-1, weight=WEIGHT, label_smoothing=0.2, ignore_index=1, reduction="sum"),
        partial(cross_entropy, axis=-1, weight=WEIGHT, label_smoothing=0.2, ignore_index=1, reduction="sum"),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_cross_entropy_of_all_classes(name: str) -> None:
    expected = LOSSES[name][1](*logits(5))
    for found in [*together(2, losses_of, 5, name), losses_of(ALONE, 5, name)]:
        assert difference(found, expected) < 1e-14 * float(expected[0])


def masked_losses_of(group: Group, classes: int, name: str) -> list[Tensor]:
    """The losses of some classes with a weight of each token, and one by one, and their gradients of all logits."""
    x, y = logits(classes)
    part = -(-classes // group.size)
    filled = torch.cat((x, x.new_full((*x.shape[:-1], part * group.size - classes), 9.0)), -1)
    own = filled[..., group.rank * part : (group.rank + 1) * part]
    loss = partial(LOSSES[name][0], group=group, classes=classes)
    value, grad = weighted(loss)(own, (y, token_weights(y)))
    losses, grads = unreduced(loss)(own, y)
    split = tree.Split(group, classes, part, axis=-1)
    return [value, split.whole_of(grad), losses, split.whole_of(grads)]


def token_weights(y: Tensor) -> Tensor:
    return (torch.arange(y.numel(), dtype=DOUBLE) % 4).reshape(y.shape)  # some of them 0


@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_tokens_are_those_of_the_cross_entropy(name: str) -> None:
    x, y = logits(5)
    whole = LOSSES[name][1]
    expected = [*weighted(whole)(x, (y, token_weights(y))), *unreduced(whole)(x, y)]
    for found in [*together(2, masked_losses_of, 5, name), masked_losses_of(ALONE, 5, name)]:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def hostile(group: Group) -> list[Tensor]:
    """Losses of samples that are left out, of infinite logits, and of half precision."""
    alike = partial(split_cross_entropy, group=group, classes=2 * group.size)
    x = torch.zeros(2, 2)
    x[0, 0] = -torch.inf
    first = alike(x, torch.tensor([1, 1]))
    none = alike(torch.full((2, 2), torch.nan), torch.tensor([-100, -100]))
    half = alike(torch.zeros(2, 2, dtype=torch.bfloat16), torch.tensor([0, 1]))
    return [*first, *none, *half]


def test_infinite_logits_and_samples_left_out() -> None:
    for value, grad, nothing, no_grad, half, half_grad in together(2, hostile):
        assert value.isfinite()
        assert grad.isfinite().all()
        assert nothing.isnan()
        assert not no_grad.any()
        assert abs(float(half) - 1.3863) < 1e-3
        assert half_grad.dtype == torch.bfloat16


@pytest.mark.parametrize("in_c", [True, False], ids=["in C", "in tensors"])
def test_a_piece_of_each_line_is_drawn(in_c: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_c:
        monkeypatch.setattr(draws, "functions", dict)
    whole = random.bernoulli(key(3), (6, 5, 15), probability=0.5)
    for place in range(3):
        own = random.of_piece(key(3), torch.tensor([place, 3]))
        assert torch.equal(random.bernoulli(own, (30, 5), probability=0.5), whole.reshape(30, 15)[:, 5 * place : 5 * place + 5])
        rows = random.of_piece(random.of_part(key(3), torch.tensor([1, 2, 3])), torch.tensor([place, 3]))
        drawn = random.bernoulli(random.split(rows, 2)[0], (15, 5), probability=0.5)
        again = random.bernoulli(random.split(key(3), 2)[0], (6, 5, 15), probability=0.5)
        assert torch.equal(drawn.reshape(3, 5, 5), again[1::2, :, 5 * place : 5 * place + 5])


FOUR: Final = Group("four", 4, 1)


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="heads=2 of attention cannot be divided among 4"):
        split_attention(FOUR, self_attention(8, 2))
    with pytest.raises(ValueError, match="key_value_heads=2"):
        split_attention(FOUR, self_attention(8, 4, key_value_heads=2))
    with pytest.raises(ValueError, match="6 inner features cannot be divided among 4"):
        split_feed_forward(FOUR, linear(8, 6), GELU(), linear(6, 8))
    with pytest.raises(TypeError, match="split_feed_forward takes a linear layer"):
        split_feed_forward(FOUR, linear(8, 8), layer_norm(8), linear(8, 8))
    with pytest.raises(TypeError, match="split_attention takes"):
        split_attention(FOUR, linear(8, 8))
    with pytest.raises(TypeError, match="split_embedding takes"):
        split_embedding(FOUR, linear(8, 8))
    with pytest.raises(TypeError, match="split_output takes"):
        split_output(FOUR, embedding(8, 8))
    with pytest.raises(ValueError, match="nothing to split"):
        tensor_parallel(FOUR, linear(8, 8))
    with pytest.raises(ValueError, match="tied layers"):
        tensor_parallel(FOUR, tied(embedding(8, 8), layer_norm(8)))
    block = tensor_parallel(FOUR, transformer_block(8, 4))
    with pytest.raises(ValueError, match="divided already"):
        tensor_parallel(FOUR, block)
    with pytest.raises(ValueError, match="divided already"):
        shard(FOUR, block)
    with pytest.raises(RuntimeError, match="no group 'four' of 4 processes is up"):
        apply(initialize(key(0), block), torch.zeros(2, 3, 8))


def test_what_the_loss_refuses() -> None:
    loss = partial(split_cross_entropy, group=ALONE)
    with pytest.raises(ValueError, match="of 7 classes each of 1 processes has 7"):
        loss(torch.zeros(2, 5), torch.tensor([0, 1]), classes=7)
    with pytest.raises(IndexError, match="a class index is 5"):
        loss(torch.zeros(2, 5), torch.tensor([0, 5]), classes=5)
    with pytest.raises(TypeError, match="class indices"):
        loss(torch.zeros(2, 5), torch.zeros(2, 5), classes=5)
    with pytest.raises(ValueError, match="class indices must have the shape"):
        loss(torch.zeros(2, 5), torch.tensor([0]), classes=5)
    with pytest.raises(ValueError, match="weight must be of shape"):
        loss(torch.zeros(2, 5), torch.tensor([0, 1]), classes=5, weight=torch.ones(2))


def outside(group: Group) -> str:
    model = initialize(key(0), split_embedding(group, embedding(5, 2)))
    with pytest.raises(Exception, match=r"out of range") as caught:
        apply(model, torch.tensor([1, 5]))
    return str(caught.value)


def test_a_token_that_is_none_is_an_error_in_all_processes() -> None:
    assert len(together(2, outside)) == 2
