"""Attention: options at their limits, the kernel against the formula, and against torch.nn."""

import math

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fundl import (
    Attend,
    Masked,
    SelfAttention,
    apply,
    assert_trees_close,
    attention,
    check_vjp,
    cross_attention,
    forward,
    initialize,
    key,
    on_masked,
    rekey,
    self_attention,
    tree,
    uniform_fan_in,
    vjp,
    xavier_uniform,
)
from fundl.layers._attending import Attended, Attention, Pairs, alibi_slopes
from fundl.layers.positional import turning
from tests.samples import normal, with_values
from tests.samples.attention import SLOPES
from tests.samples.attention import attention as reference
from tests.samples.masked import MASK

# --- The kernel and the formula ----------------------------------------------------------------------------------------


def by_kernel(how: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Attended:
    attended = how.forward(q, k, v, mask, None)
    assert (attended.logsumexp is not None) == (q.shape[2] > 0 and k.shape[2] > 0)
    return attended


def by_formula(how: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Attended:
    """The same with dropout that drops nothing: the formula, written out."""
    attended = how._replace(dropout=1e-30).forward(q, k, v, mask, key(0))
    assert attended.probabilities is not None
    return attended


def test_the_kernel_and_the_formula_agree() -> None:
    def check(sizes: tuple[int, int, int, int, int, int], causal: bool, masked: bool, seed: int) -> None:
        batch, few, groups, steps, others, size = sizes
        others = steps if causal else others
        generator = torch.Generator().manual_seed(seed)
        q = torch.randn(batch, few * groups, steps, size, dtype=torch.float64, generator=generator)
        k, v = torch.randn(2, batch, few, others, size, dtype=torch.float64, generator=generator)
        mask = torch.rand(batch, others, generator=generator) < 0.6 if masked else None
        grad = torch.randn(q.shape, dtype=torch.float64, generator=generator)
        how = Attention(causal, 0.0)
        fused, plain = by_kernel(how, q, k, v, mask), by_formula(how, q, k, v, mask)
        assert_trees_close(fused.output, plain.output, rtol=1e-10, atol=1e-10)
        assert_trees_close(fused.output, reference(q, k, v, causal=causal, mask=mask), rtol=1e-10, atol=1e-10)
        grads = how.backward(fused, mask, grad), how.backward(plain, mask, grad)
        assert_trees_close(*grads, rtol=1e-9, atol=1e-9)

    sizes = st.tuples(*(st.integers(low, high) for low, high in ((0, 3), (1, 3), (1, 3), (0, 40), (0, 40), (1, 9))))
    run = given(sizes, st.booleans(), st.booleans(), st.integers(0, 99))(check)
    settings(deadline=None, derandomize=True, max_examples=60)(run)()


def test_a_query_that_sees_nothing_gets_zero_and_gives_no_gradient() -> None:
    q, k, v = normal(3, 5, 2, 4, 8)
    for causal in (False, True):
        how = Attention(causal, 0.0)
        for attended in (by_kernel(how, q, k, v, MASK), by_formula(how, q, k, v, MASK)):
            blind = ~MASK.cumsum(1).bool() if causal else ~MASK.any(1, keepdim=True).expand(5, 4)
            seen = attended.output.transpose(1, 2)
            assert blind.any()
            assert not seen[blind].any()
            assert seen[~blind].all()
            grads = how.backward(attended, MASK, torch.ones_like(q))
            assert all(bool(grad.isfinite().all()) for grad in grads)
            assert not grads[0].transpose(1, 2)[blind].any()
            assert not grads[2].transpose(1, 2)[~MASK].any()


def test_what_is_done_to_scores_agrees_with_the_formula() -> None:
    """The kernel with what is added to its scores, the formula, and a reference that is neither; queries fewer than keys."""

    def check(steps: int, earlier: int, options: tuple[bool, int | None, bool, bool, bool], seed: int) -> None:
        causal, window, alibi, scaled, hides = options
        generator = torch.Generator().manual_seed(seed)
        q = torch.randn(2, 6, steps, 4, dtype=torch.float64, generator=generator)
        k, v = torch.randn(2, 2, 3, steps + earlier, 4, dtype=torch.float64, generator=generator)
        visible = torch.rand(1, 6, steps, steps + earlier, generator=generator) < 0.5 if hides else None
        grad = torch.randn(q.shape, dtype=torch.float64, generator=generator)
        how = Attention(causal, 0.0, window, None, alibi, 0.3 if scaled else None)
        fused, plain = how.forward(q, k, v, None, None, pairs=Pairs(visible)), with_a_bias(how, q, k, v, visible)
        assert (fused.logsumexp is None, plain.logsumexp is None) == (steps == 0, True)
        slopes = SLOPES[6] if alibi else None
        expected = reference(
            q, k, v, causal=causal, window=window, visible=visible, slopes=slopes, scale=0.3 if scaled else None
        )
        assert_trees_close(fused.output, expected, rtol=1e-10, atol=1e-10)
        assert_trees_close(plain.output, expected, rtol=1e-10, atol=1e-10)
        grads = how.backward(fused, None, grad, pairs=Pairs(visible))
        others = how.backward(plain, None, grad, pairs=Pairs(visible, torch.zeros(1, 1, dtype=torch.float64)))
        assert_trees_close(grads, others, rtol=1e-9, atol=1e-9)

    def with_a_bias(how: Attention, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Attended:
        return how.forward(q, k, v, None, None, pairs=Pairs(visible, torch.zeros(1, 1, dtype=torch.float64)))

    options = st.tuples(st.booleans(), st.one_of(st.none(), st.integers(1, 9)), st.booleans(), st.booleans(), st.booleans())
    run = given(st.integers(0, 20), st.integers(0, 20), options, st.integers(0, 99))(check)
    settings(deadline=None, derandomize=True, max_examples=60)(run)()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_long_sequences_in_every_dtype(dtype: torch.dtype) -> None:
    q, k, v, grad = normal(4, 2, 3, 150, 16)
    how = Attention(causal=True, dropout=0.0)
    attended = by_kernel(how, q.to(dtype), k.to(dtype), v.to(dtype), None)
    expected = by_formula(how, q, k, v, None)
    actual = attended.output, *how.backward(attended, None, grad.to(dtype))
    right = expected.output, *how.backward(expected, None, grad)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert_trees_close(tree.cast_to(actual, torch.float64), right, rtol=tolerance, atol=tolerance)


def test_queries_are_at_the_last_keys() -> None:
    """What the last positions see of all is what they see where the others have no queries."""
    q, k, v = normal(3, 2, 3, 7, 4)
    options = ({"causal": True}, {"causal": True, "window": 3}, {"alibi": True}, {"causal": True, "soft_cap": 0.5})
    for option in options:
        whole, last = (apply(Attend(**option), (part, k, v)) for part in (q, q[:, :, 5:]))
        assert_trees_close(last, whole[:, :, 5:], rtol=1e-12, atol=1e-12)


def test_many_heads_fall_by_the_slopes_of_the_paper() -> None:
    assert torch.equal(alibi_slopes(8, None), 0.5 ** torch.arange(1, 9))
    for heads, slopes in SLOPES.items():
        assert alibi_slopes(heads, None).tolist() == list(slopes)
    assert torch.equal(alibi_slopes(12, None), torch.cat((0.5 ** torch.arange(1, 9), 0.5 ** torch.arange(0.5, 4.5))))


def test_slow_rotations_are_stretched() -> None:
    """Pairs that turn often in the length of before stay; those that turn less than once are slower by the factor."""
    plain, stretched = (
        initialize(key(0), self_attention(8, 1, rotary=1e4, stretch=stretch, dtype=torch.float64))
        for stretch in (None, (4.0, 1.0, 1.0 + 1e-9, 64.0))
    )
    x = normal(2, 5, 8)
    check_vjp(stretched, x)
    turn = turning(5, 8, base=1e4, dtype=torch.float64, device=None, stretch=stretched.stretch)
    speeds = turn.cos[1, :4].acos()  # of one step
    expected = torch.tensor([1.0, 0.1, 0.01 / 4, 0.001 / 4], dtype=torch.float64)  # 0.1 turns 1.02 times
    assert_trees_close(speeds, expected, rtol=1e-6, atol=1e-12)
    assert not torch.allclose(apply(plain, x), apply(stretched, x))


def test_the_function_is_the_layer() -> None:
    q, k, v = normal(3, 2, 3, 7, 4)
    bias, visible = normal(3, 1, 7), normal(7, 7) > 0
    layer = Attend(bias=bias, visible=visible, causal=True, window=5, soft_cap=2.0, alibi=True, scale=0.2)
    actual = attention(q, k, v, bias=bias, visible=visible, causal=True, window=5, soft_cap=2.0, alibi=True, scale=0.2)
    assert torch.equal(actual, apply(layer, (q, k, v)))
    assert torch.equal(attention(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v))


def test_inputs_in_any_layout() -> None:
    q, k, v = normal(3, 2, 3, 7, 4)
    x = (q, k, v)
    odd = (q.mT.contiguous().mT, k[:, :1].expand(2, 3, 7, 4), torch.stack((v, v), -1)[..., 0])
    same = (q, k[:, :1].expand(2, 3, 7, 4).contiguous(), v)
    grad = normal(2, 3, 4, 7).mT
    assert_trees_close(vjp(Attend(), odd, grad), vjp(Attend(), same, grad.contiguous()), rtol=1e-12, atol=1e-12)
    assert torch.equal(
        apply(Attend(), x), apply(Attend(), tree.map(lambda part: part.transpose(0, 1).clone().transpose(0, 1), x))
    )


def test_attention_is_given_what_fits() -> None:
    q, k, v = normal(3, 2, 3, 7, 4)
    with pytest.raises(
        ValueError, match=r"queries \(B, H, T, d\), and keys and values both \(B, K, S, d\), not .* \(3, 7, 4\)"
    ):
        attention(q, k, v[0])
    with pytest.raises(ValueError, match="the heads of keys and values must divide those of queries"):
        attention(q, k[:, :2], v[:, :2])
    with pytest.raises(TypeError, match=r"must be of one dtype, but they are torch.float32, torch.float64"):
        attention(q.float(), k, v)
    with pytest.raises(TypeError, match=r"attention takes three tensors, \(queries, keys, values\), not \(float64"):
        apply(Attend(), (q, k))
    with pytest.raises(TypeError, match=r"Attend's visible is of dtype torch.bool, True where a query may see a key, not"):
        attention(q, k, v, visible=torch.ones(7, 7))
    with pytest.raises(ValueError, match=r"Attend's visible must be of a shape that .* \(2, 3, 7, 7\) here, not \(7, 6\)"):
        attention(q, k, v, visible=torch.ones(7, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"Attend's bias must be of a shape that .* \(2, 3, 7, 7\) here, not \(2, 7, 7\)"):
        attention(q, k, v, bias=torch.ones(2, 7, 7))
    with pytest.raises(ValueError, match=r"Attend's mask must be of shape \(B, S\), \(2, 7\) .* is given as visible"):
        attention(q, k, v, mask=torch.ones(7, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"Attend's window is how many positions a query sees, at least 1, .* not 0"):
        attention(q, k, v, window=0)
    with pytest.raises(ValueError, match=r"Attend's soft_cap must be a finite number above 0, or None for no cap, not 0.0"):
        attention(q, k, v, soft_cap=0.0)
    with pytest.raises(ValueError, match=r"SelfAttention's scale must be a finite number, or None for 1 / sqrt\(d\), not inf"):
        self_attention(8, 2, scale=math.inf)
    with pytest.raises(ValueError, match=r"low below high, not \(4.0, 2.0, 1.0, 16.0\)"):
        self_attention(8, 2, rotary=100.0, stretch=(4.0, 2.0, 1.0, 16.0))
    with pytest.raises(ValueError, match="SelfAttention's stretch is of its rotary angles: give their base as well"):
        self_attention(8, 2, stretch=(4.0, 1.0, 2.0, 16.0))
    with pytest.raises(ValueError, match="relative must be at least 1, not 0"):
        self_attention(8, 2, relative=0)


# --- Layers ------------------------------------------------------------------------------------------------------------


def test_equals_torch_nn() -> None:
    for causal in (False, True):
        theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
        layer = SelfAttention(
            weight=theirs.in_proj_weight.detach(),
            bias=theirs.in_proj_bias.detach() + 0.1,
            output_weight=theirs.out_proj.weight.detach(),
            output_bias=theirs.out_proj.bias.detach() + 0.1,
            heads=3,
            causal=causal,
        )
        with torch.no_grad():
            theirs.in_proj_bias.add_(0.1)
            theirs.out_proj.bias.add_(0.1)
        x, mask = normal(4, 6, 12).requires_grad_(), torch.arange(6) < torch.tensor([[6], [3], [1], [5]])
        later = torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else None
        y, _ = theirs(x, x, x, key_padding_mask=~mask, attn_mask=later, need_weights=False)
        grad = normal(4, 6, 12) + 1
        y.backward(grad)
        assert_trees_close(apply(on_masked(layer), Masked(x, mask)).values, y.detach(), rtol=1e-12, atol=1e-12)
        grads, grad_x = vjp(on_masked(layer), Masked(x, mask), Masked(grad, mask))
        own = grads.layers[0]
        actual = own.weight, own.bias, own.output_weight, own.output_bias, grad_x.values
        expected = (
            theirs.in_proj_weight.grad,
            theirs.in_proj_bias.grad,
            theirs.out_proj.weight.grad,
            theirs.out_proj.bias.grad,
            x.grad,
        )
        assert_trees_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_causal_attention_does_not_see_what_comes_later() -> None:
    layer = with_values(self_attention(8, 2, causal=True, rotary=10.0))
    x = normal(2, 6, 8)
    changed = torch.cat((x[:, :4], -x[:, 4:]), 1)
    assert_trees_close(apply(layer, x)[:, :4], apply(layer, changed)[:, :4], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(apply(layer, x)[:, 4:], apply(layer, changed)[:, 4:])


def test_padding_is_not_seen() -> None:
    layer = on_masked(with_values(self_attention(8, 2)))
    x = normal(5, 4, 8)
    other = torch.where(MASK.unsqueeze(-1), x, 100.0)
    ours, theirs = (apply(layer, Masked(values, MASK)).values[MASK] for values in (x, other))
    assert_trees_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_attention_is_turned_with_its_positions() -> None:
    layer = with_values(self_attention(8, 2, rotary=10.0))
    x = normal(2, 5, 8)
    assert not torch.allclose(apply(layer, x.flip(1)).flip(1), apply(layer, x))
    still = with_values(self_attention(8, 2))
    assert_trees_close(apply(still, x.flip(1)).flip(1), apply(still, x), rtol=1e-12, atol=1e-12)


def test_a_sequence_of_no_positions() -> None:
    layer = with_values(self_attention(6, 2, causal=True))
    grads, grad_x = vjp(layer, normal(3, 0, 6), normal(3, 0, 6))
    assert grad_x.shape == (3, 0, 6)
    assert not grads.weight.any()
    cross = with_values(cross_attention(6, 2))
    y, _ = forward(cross, (normal(3, 2, 6), normal(3, 0, 6)))
    assert cross.output_bias is not None
    assert_trees_close(y, cross.output_bias.expand(3, 2, 6), rtol=0.0, atol=0.0)


def test_dropout_draws_from_the_key_that_rekey_gives() -> None:
    layer = with_values(self_attention(6, 2, dropout=0.5))
    x = normal(2, 4, 6)
    first, again, other = (apply(rekey(layer, key(seed)), x) for seed in (0, 0, 1))
    assert tree.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, apply(layer, x))
    assert apply(rekey(with_values(self_attention(6, 2)), key(0)), x).shape == x.shape


def test_queries_keys_and_values_are_drawn_each_by_itself() -> None:
    layer = initialize(key(0), self_attention(64, 8, key_value_heads=2))
    assert layer.weight.shape == (64 + 2 * 16, 64)
    for rows, part in zip((64, 16, 16), layer.weight.split_with_sizes((64, 16, 16)), strict=True):
        bound = math.sqrt(6 / (64 + rows))
        assert 0.95 * bound < float(part.abs().max()) <= bound
    cross = initialize(key(0), cross_attention(64, 8, memory_features=32, weight_init=uniform_fan_in()))
    assert 0.95 / math.sqrt(32) < float(cross.weight.abs().max()) <= 1 / math.sqrt(32)
    assert 0.95 / 8 < float(cross.query_weight.abs().max()) <= 1 / 8
    biased = initialize(key(0), self_attention(64, 8, bias_init=xavier_uniform()))
    assert biased.bias is not None
    assert 0.9 * math.sqrt(6 / 128) < float(biased.bias.abs().max()) <= math.sqrt(6 / 128)


# --- What is refused ---------------------------------------------------------------------------------------------------


def test_options_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"features must be at least 1, not 0"):
        self_attention(0, 1)
    with pytest.raises(ValueError, match=r"memory_features must be at least 1, not 0"):
        cross_attention(8, 1, memory_features=0)
    with pytest.raises(ValueError, match=r"heads must be at least 1, not 0"):
        self_attention(8, 0)
    with pytest.raises(ValueError, match=r"the heads must divide the features, but 8 features do not go into 3 heads"):
        cross_attention(8, 3)
    for few in (0, 3, 8):
        with pytest.raises(ValueError, match=rf"key_value_heads must divide the heads evenly, but 4 heads cannot share {few}"):
            self_attention(8, 4, key_value_heads=few)
    with pytest.raises(ValueError, match=r"SelfAttention's dropout is the probability .* not including, 1, not 1.0"):
        self_attention(8, 4, dropout=1.0)
    with pytest.raises(ValueError, match=r"CrossAttention's dropout is the probability .* not including, 1, not -0.1"):
        cross_attention(8, 4, dropout=-0.1)
    with pytest.raises(ValueError, match=r"a rotation turns pairs of features: their number must be even, not 3"):
        self_attention(6, 2, rotary=100.0)
    with pytest.raises(ValueError, match=r"base must be a finite number above 1, not 1.0"):
        self_attention(8, 2, rotary=1.0)


def test_inputs_that_do_not_fit() -> None:
    layer = with_values(self_attention(8, 2))
    with pytest.raises(ValueError, match=r"SelfAttention expects sequences of shape \(B, T, F\), .* of shape \(5, 8\)"):
        layer.forward(normal(5, 8))
    with pytest.raises(ValueError, match=r"SelfAttention expects 8 features, but the input is of shape \(5, 4, 6\)"):
        layer.forward(normal(5, 4, 6))
    with pytest.raises(TypeError, match=r"SelfAttention's parameters are torch.float64, but the input is torch.float32"):
        apply(layer, normal(5, 4, 8).float())
    with pytest.raises(ValueError, match=r"SelfAttention has a mask of shape \(5, 4\), .* the input's shape \(5, 3, 8\)"):
        apply(attrs.evolve(layer, mask=MASK), normal(5, 3, 8))


def test_memories_that_do_not_fit() -> None:
    layer = with_values(cross_attention(8, 2, memory_features=6))
    with pytest.raises(ValueError, match=r"CrossAttention expects sequences of shape \(B, T, F\), .* of shape \(5, 8\)"):
        apply(layer, (normal(5, 8), normal(5, 4, 6)))
    with pytest.raises(ValueError, match=r"CrossAttention's memory expects sequences of shape \(B, T, F\), .* \(5, 6\)"):
        apply(layer, (normal(5, 4, 8), normal(5, 6)))
    with pytest.raises(ValueError, match=r"as many sequences .* x is of shape \(5, 4, 8\) and the memory of shape \(3,"):
        apply(layer, (normal(5, 4, 8), normal(3, 4, 6)))
    with pytest.raises(ValueError, match=r"CrossAttention expects 6 features, but the memory is of shape \(5, 4, 8\)"):
        apply(layer, (normal(5, 4, 8), normal(5, 4, 8)))
    with pytest.raises(TypeError, match=r"CrossAttention's parameters are torch.float64, but the input is torch.float32"):
        apply(layer, (normal(5, 4, 8), normal(5, 4, 6).float()))
    with pytest.raises(ValueError, match=r"CrossAttention's memory has a mask of shape \(5, 4\), .* shape \(5, 3, 6\)"):
        apply(attrs.evolve(layer, memory_mask=MASK), (normal(5, 4, 8), normal(5, 3, 6)))
