"""JAX: networks of equinox, optimizers of optax; a step compiled as a whole with its state donated, an epoch by `lax.scan`."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from benchmarks.cases import CLASSES, DROPPED, FEATURES, HEADS, MOMENTUM, TOKENS, WEIGHT_DECAY, WIDTH, Case
from benchmarks.peers import Run

State: TypeAlias = "tuple[_Network, optax.OptState, Array | None]"
"""The last is a key, for the network that draws."""


def prepare(case: Case) -> Mapping[str, Run]:
    """One setting."""
    return {"": _update(case) if case.network == "parameters" else _training(case)}


def _training(case: Case) -> Run:
    network, optimizer, loss_function = _network_of(case), _optimizer_of(case), _loss_of(case)
    state: State = network, optimizer.init(network), _KEY if case.network == "dropout" else None
    x, target = case.batches()
    xs, targets = jnp.array(x), jnp.array(target)

    def loss_of_batch(network: "_Network", keys: Array | None, x: Array, target: Array) -> Array:
        if isinstance(network, _Dropping):
            assert keys is not None
            return loss_function(jax.vmap(network)(x, keys), target)
        return loss_function(jax.vmap(network)(x), target)

    def step(state: State, batch: tuple[Array, Array]) -> tuple[State, Array]:
        network, memory, key = state
        keys = None if key is None else jax.random.split(key, case.batch + 1)
        rest = None if keys is None else keys[1:]
        loss, grads = jax.value_and_grad(loss_of_batch)(network, rest, *batch)
        updates, memory = optimizer.update(grads, memory, network)
        return (optax.apply_updates(network, updates), memory, None if keys is None else keys[0]), loss

    def epoch(state: State, batches: tuple[Array, Array]) -> tuple[State, Array]:
        state, losses = lax.scan(step, state, batches)
        return state, losses[-1]

    call = jax.jit(epoch if case.epoch else step, donate_argnums=0)
    data = (xs, targets) if case.epoch else (xs[0], targets[0])

    def run(calls: int) -> float:
        nonlocal state
        loss = jnp.zeros(())
        for _ in range(calls):
            state, loss = call(state, data)
        jax.block_until_ready(state)
        return float(loss)

    return run


def _update(case: Case) -> Run:
    params = [jnp.array(leaf) for leaf in case.parameters()]
    grads = [jnp.array(leaf) for leaf in case.gradients()]
    optimizer = _optimizer_of(case)
    state = params, optimizer.init(params)
    del params

    def update(state: tuple[list[Array], optax.OptState], grads: list[Array]) -> tuple[list[Array], optax.OptState]:
        params, memory = state
        updates, memory = optimizer.update(grads, memory, params)
        return optax.apply_updates(params, updates), memory

    call = jax.jit(update, donate_argnums=0)

    def run(calls: int) -> float:
        nonlocal state
        for _ in range(calls):
            state = call(state, grads)
        jax.block_until_ready(state)
        return float(state[0][0][0, 0])

    return run


def _optimizer_of(case: Case) -> optax.GradientTransformation:
    match case.optimizer:
        case "sgd":
            return optax.sgd(case.rate)
        case "momentum":
            return optax.sgd(case.rate, momentum=MOMENTUM)
        case "adam":
            return optax.adam(case.rate)
        case "adamw":
            return optax.adamw(case.rate, weight_decay=WEIGHT_DECAY)


def _loss_of(case: Case) -> Callable[[Array, Array], Array]:
    return _mse if case.mean_squared else _cross_entropy


def _mse(prediction: Array, target: Array) -> Array:
    return jnp.mean((prediction - target) ** 2)


def _cross_entropy(prediction: Array, target: Array) -> Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(prediction, target))


# --- The networks --------------------------------------------------------------------------------------------------------
# Each is of one example; `vmap` makes it one of a batch. Their leaves are in the order of torch.nn's parameters.


def _network_of(case: Case) -> "_Network":
    """The network with the first parameters."""
    network = _empty_network(case)
    leaves, structure = jax.tree.flatten(network)
    values = zip(leaves, case.parameters(), strict=True)
    return jax.tree.unflatten(structure, [jnp.array(value).reshape(leaf.shape) for leaf, value in values])


def _empty_network(case: Case) -> "_Network":
    match case.network:
        case "convolutional":
            return _Convolutional()
        case "lstm":
            return _LSTM()
        case "transformer":
            return _Transformer(case)
        case "deep":
            return _Deep(case)
        case "dropout":
            return _Dropping(case.sizes)
        case _:
            return _Dense(case.sizes)


_KEY = jax.random.key(0)  # of values that are replaced


def _linear(inputs: int, outputs: int) -> eqx.nn.Linear:
    return eqx.nn.Linear(inputs, outputs, key=_KEY)


class _Dense(eqx.Module):
    layers: list[eqx.nn.Linear]

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.layers = [_linear(*pair) for pair in pairwise(sizes)]

    def __call__(self, x: Array) -> Array:
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class _Dropping(eqx.Module):
    """With a dropout after each activation; equinox's own has numbers among its leaves."""

    layers: list[eqx.nn.Linear]

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.layers = [_linear(*pair) for pair in pairwise(sizes)]

    def __call__(self, x: Array, key: Array) -> Array:
        for layer, own in zip(self.layers[:-1], jax.random.split(key, len(self.layers) - 1), strict=True):
            x = jax.nn.relu(layer(x))
            kept = jax.random.bernoulli(own, 1 - DROPPED, x.shape)
            x = jnp.where(kept, x * (1 / (1 - DROPPED)), 0.0)
        return self.layers[-1](x)


class _Hidden(eqx.Module):
    linear: eqx.nn.Linear

    def __init__(self) -> None:
        self.linear = _linear(WIDTH, WIDTH)

    def __call__(self, x: Array) -> Array:
        return jax.nn.relu(self.linear(x))


B = TypeVar("B", bound=Callable[[Array], Array])


def _blocks(case: Case, make: Callable[[], B]) -> B | list[B]:
    """Blocks one by one, or as one with its arrays stacked."""
    return eqx.filter_vmap(make, axis_size=case.repeated)() if case.repeat else [make() for _ in range(case.repeated)]


def _through(blocks: B | list[B], x: Array) -> Array:
    """What blocks make of an input; those that are one are gone through by a loop, whose body is compiled once."""
    if not isinstance(blocks, list):
        return lax.scan(lambda x, block: (block(x), None), x, blocks)[0]
    for block in blocks:
        x = block(x)
    return x


class _Deep(eqx.Module):
    blocks: _Hidden | list[_Hidden]
    last: eqx.nn.Linear

    def __init__(self, case: Case) -> None:
        self.blocks, self.last = _blocks(case, _Hidden), _linear(WIDTH, CLASSES)

    def __call__(self, x: Array) -> Array:
        return self.last(_through(self.blocks, x))


class _Convolutional(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    hidden: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self) -> None:
        self.first = eqx.nn.Conv2d(1, 32, 3, padding=1, key=_KEY)
        self.second = eqx.nn.Conv2d(32, 64, 3, padding=1, key=_KEY)
        self.hidden = _linear(64 * 7 * 7, 128)
        self.last = _linear(128, CLASSES)

    def __call__(self, x: Array) -> Array:
        pool = eqx.nn.MaxPool2d(2, 2)
        x = pool(jax.nn.relu(self.first(x)))
        x = pool(jax.nn.relu(self.second(x)))
        return self.last(jax.nn.relu(self.hidden(x.reshape(-1))))


class _LSTM(eqx.Module):
    """With two biases, as torch.nn's has, where equinox's own cell has one; the inputs' products are found all at once."""

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array
    bias_hh: Array
    last: eqx.nn.Linear

    def __init__(self) -> None:
        self.weight_ih, self.weight_hh = jnp.zeros((512, 64)), jnp.zeros((512, 128))
        self.bias_ih, self.bias_hh = jnp.zeros(512), jnp.zeros(512)
        self.last = _linear(128, CLASSES)

    def __call__(self, x: Array) -> Array:
        def step(state: tuple[Array, Array], gates_of_x: Array) -> tuple[tuple[Array, Array], Array]:
            hidden, cell = state
            i, f, g, o = jnp.split(gates_of_x + self.weight_hh @ hidden, 4)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        gates = x @ self.weight_ih.T + (self.bias_ih + self.bias_hh)
        _, hidden = lax.scan(step, (jnp.zeros(128), jnp.zeros(128)), gates)
        return self.last(jnp.mean(hidden, 0))


class _Block(eqx.Module):
    attention_norm: eqx.nn.LayerNorm
    projection: eqx.nn.Linear
    output: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(self) -> None:
        self.attention_norm, self.norm = eqx.nn.LayerNorm(FEATURES), eqx.nn.LayerNorm(FEATURES)
        self.projection, self.output = _linear(FEATURES, 3 * FEATURES), _linear(FEATURES, FEATURES)
        self.first, self.second = _linear(FEATURES, 4 * FEATURES), _linear(4 * FEATURES, FEATURES)

    def __call__(self, x: Array) -> Array:
        projected = jax.vmap(self.projection)(jax.vmap(self.attention_norm)(x))
        q, k, v = (part.reshape(-1, HEADS, FEATURES // HEADS) for part in jnp.split(projected, 3, axis=-1))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(-1, FEATURES)
        x = x + jax.vmap(self.output)(mixed)
        hidden = jax.nn.gelu(jax.vmap(self.first)(jax.vmap(self.norm)(x)), approximate=False)
        return x + jax.vmap(self.second)(hidden)


class _Transformer(eqx.Module):
    embedding: eqx.nn.Embedding
    blocks: _Block | list[_Block]
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self, case: Case) -> None:
        self.embedding = eqx.nn.Embedding(TOKENS, FEATURES, key=_KEY)
        self.blocks = _blocks(case, _Block)
        self.norm, self.last = eqx.nn.LayerNorm(FEATURES), _linear(FEATURES, TOKENS)

    def __call__(self, tokens: Array) -> Array:
        x = _through(self.blocks, jax.vmap(self.embedding)(tokens))
        return jax.vmap(self.last)(jax.vmap(self.norm)(x))


_Network: TypeAlias = _Dense | _Dropping | _Deep | _Convolutional | _LSTM | _Transformer
