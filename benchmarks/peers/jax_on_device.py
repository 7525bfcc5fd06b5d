"""JAX's side of `benchmarks.on_device`: a step that is compiled as a whole, with its state donated; AdamW of optax."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array

from benchmarks.device_cases import DECAY, RATE, Case

Params: TypeAlias = list[Array]
"""In the order of torch.nn's parameters."""


def prepare(case: Case, device: str) -> Callable[[], Array]:
    """A step."""
    if not case.is_mixed:
        jax.config.update("jax_default_matmul_precision", "highest")  # the default is TF32
    params = [jnp.array(value.numpy()) for value in case.values()]
    x, target = (jnp.array(each.numpy()) for each in case.batch())
    optimizer = optax.adamw(RATE, weight_decay=DECAY)
    state = params, optimizer.init(params)
    del params

    def loss_of(params: Params, x: Array, target: Array) -> Array:
        copies = [leaf.astype(case.dtype) for leaf in params]
        logits = _dense(case, copies, x) if case.sizes else _transformer(case, copies, x, fused=device == "cuda")
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits.astype("float32"), target))

    def step(state: tuple[Params, optax.OptState], x: Array, target: Array) -> tuple[tuple[Params, optax.OptState], Array]:
        params, memory = state
        loss, grads = jax.value_and_grad(loss_of)(params, x, target)
        updates, memory = optimizer.update(grads, memory, params)
        return (optax.apply_updates(params, updates), memory), loss

    call = jax.jit(step, donate_argnums=0)

    def run() -> Array:
        nonlocal state
        state, loss = call(state, x, target)
        return loss

    return run


def wait(loss: Array) -> None:
    """Return when a step is done: its loss is there when all of it is."""
    jax.block_until_ready(loss)


def peak() -> float:
    """The most bytes on the device at once; NaN where they are not counted."""
    memory = jax.devices()[0].memory_stats()
    return float(memory["peak_bytes_in_use"]) if memory else float("nan")


def _dense(case: Case, params: Params, x: Array) -> Array:
    own, x = iter(params), x.astype(case.dtype)
    for place in range(len(case.sizes) - 1):
        x = _linear(own, jax.nn.relu(x) if place else x)
    return x


def _transformer(case: Case, params: Params, tokens: Array, *, fused: bool) -> Array:
    own = iter(params)
    x = next(own)[tokens]
    for _ in range(case.blocks):
        x = x + _attention(case, own, _norm(own, x), fused=fused)
        x = x + _linear(own, jax.nn.gelu(_linear(own, _norm(own, x)), approximate=False))
    normed = _norm(own, x)
    return _linear(own, normed)


def _attention(case: Case, own: Iterator[Array], x: Array, *, fused: bool) -> Array:
    batch, length, features = x.shape
    parts = _linear(own, x).reshape(batch, length, 3, case.heads, features // case.heads)
    q, k, v = (parts[:, :, place] for place in range(3))
    with_cudnn = fused and case.is_mixed  # which takes 16 bits alone
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn" if with_cudnn else None)
    return _linear(own, mixed.reshape(batch, length, features))


def _linear(own: Iterator[Array], x: Array) -> Array:
    weight, bias = next(own), next(own)
    return x @ weight.T + bias


def _norm(own: Iterator[Array], x: Array) -> Array:
    weight, bias = next(own), next(own)
    wide = x.astype("float32")
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    rstd = jax.lax.rsqrt(jnp.mean((wide - mean) ** 2, axis=-1, keepdims=True) + 1e-5)
    return ((wide - mean) * rstd).astype(x.dtype) * weight + bias
