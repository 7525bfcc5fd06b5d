"""Compiled functions: what they return, when they are compiled again, and what they refuse.

Compiling takes seconds. What is not about compiling itself runs traced graphs as they are: the fixture `interpreted`.
"""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

import fundl
from fundl import (
    DonatedError,
    Dropout,
    LastPosition,
    Linear,
    ReLU,
    RetraceError,
    TraceError,
    adam,
    apply,
    assert_trees_close,
    compose,
    initialize,
    jit,
    key,
    linear,
    lstm,
    minibatches,
    mse,
    random,
    scan,
    sgd,
    train_state,
    train_step,
    tree,
    value_and_grad,
    vjp,
)
from fundl._common import kernels
from fundl._compiling import cache, inductor, library, loops, lowering, torch_private
from fundl.tree import Record
from tests.samples import normal


@attrs.frozen(eq=False)
class Pair(Record):
    first: Tensor
    second: Tensor | None
    size: int


@attrs.frozen(eq=False)
class Only(Record):
    value: Tensor


# --- Results ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interpreted")
def test_any_tree_goes_in_and_comes_out() -> None:
    def function(parts: dict[str, list[Pair]], pair: tuple[Tensor, None]) -> dict[str, object]:
        first = parts["a"][0]
        return {"b": [first.first * 2, None], "a": (Pair(pair[0] + 1, None, 3), first), "relu": ReLU()}

    parts, pair = {"a": [Pair(normal(2), normal(3), 4)]}, (normal(5), None)
    compiled = jit(function)
    for _ in range(3):
        result, expected = compiled(parts, pair), function(parts, pair)
        assert repr(result) == repr(expected)
        assert tree.equal(result, expected)
        assert list(result) == list(expected)
    assert len(compiled.traces) == 1


@pytest.mark.usefixtures("interpreted")
def test_what_is_handed_through_is_the_same_tensor_and_views_are_copies() -> None:
    outside = normal(2)

    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        z = x + y
        return y, x.t(), z, z.t(), z, outside

    x, y = normal(2, 2), normal(2, 2)
    for _ in range(2):
        results = jit(function)(x, y)
        assert results[0] is y
        assert results[2] is results[4]
        assert results[5] is outside
        assert len({result.untyped_storage().data_ptr() for result in (x, *results)}) == 6
        assert tree.equal(results, function(x, y))


@pytest.mark.usefixtures("interpreted")
def test_strides_views_and_the_same_tensor_twice_are_right() -> None:
    compiled = jit(lambda x, y: (x @ y.t(), x + y))
    base = normal(4, 4)
    wide = normal(1, 4).expand(4, 4)
    for x, y in [
        (base, base),
        (base, base + 1),
        (base, base),
        (base, base.t()),
        (base.t(), base),
        (wide, base),
        (wide, wide),
        (base[:2, ::2], base[2:, 1::2]),
    ]:
        for _ in range(2):
            assert tree.equal(compiled(x, y), (x @ y.t(), x + y))


@pytest.mark.usefixtures("interpreted")
def test_writing_to_own_tensors_is_pure() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.clone()
        y[0] = 0
        y.view(-1)[1:] += x.view(-1)[1:]
        return y

    x = normal(2, 3)
    assert tree.equal(jit(function)(x), function(x))


@pytest.mark.usefixtures("interpreted")
def test_keys_and_dropout_draw_as_eager_does() -> None:
    model = initialize(key(0), compose(linear(2, 8), Dropout(0.5), linear(8, 2)))
    optimizer = adam(0.1)
    step = train_step(mse, optimizer)
    compiled, state = jit(step), train_state(key(1), model, optimizer)
    expected = state
    for number in range(3):
        batch = random.normal(key(number), (4, 2)), random.normal(key(number + 10), (4, 2))
        state, report = compiled(state, batch)
        expected, expected_report = step(expected, batch)
        assert_trees_close((state, report), (expected, expected_report), rtol=1e-6, atol=1e-7)
    assert len(compiled.traces) == 1


# --- Tracing again ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interpreted")
def test_a_ragged_last_batch_is_compiled_once_more_and_the_reason_is_told() -> None:
    compiled = jit(lambda model, batch: vjp(model, *batch))
    model = initialize(key(0), linear(2, 3))
    for _ in range(3):
        for rows in (4, 4, 1):
            batch = normal(rows, 2).float(), normal(rows, 3).float()
            assert tree.equal(compiled(model, batch), vjp(model, *batch))
    first, second = compiled.traces
    assert first.reason == "it is the first call"
    assert second.reason == "batch[0] was float32[4, 2], and is float32[1, 2] (and 1 more tensors differ)"
    assert "traced 2 times" in repr(compiled)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (Pair(torch.ones(2), None, 3), Pair(torch.ones(2), None, 4), "x.size was 3, and is 4"),
        (Pair(torch.ones(2), None, 3), Pair(torch.ones(2), torch.ones(2), 3), "x.second was None, and is a tensor"),
        ((torch.ones(2),), [torch.ones(2)], "x was a tuple of 1, and is a list of 1"),
        ((torch.ones(2),), (torch.ones(2),) * 2, "x was a tuple of 1, and is a tuple of 2"),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, "x was a dict with the keys ['a'], and is a dict with the keys ['b']"),
        ({"a": (torch.ones(2),)}, {"a": (None,)}, "x['a'][0] was a tensor, and is None"),
        (torch.ones(2), torch.ones(2).double(), "x was float32[2], and is float64[2]"),
        (torch.ones(2, 3), torch.ones(3, 2).t(), "x was float32[2, 3], and is float32[2, 3] with strides [1, 2]"),
        (Pair(torch.ones(2), None, 3), (), "x was a Pair, and is a tuple of 0"),
    ],
)
def test_the_reason_names_the_place(first: object, second: object, reason: str) -> None:
    def function(x: object) -> object:
        return tree.map(torch.neg, x)

    compiled = jit(function)
    for argument in (first, second, first, second):
        assert tree.equal(compiled(argument), function(argument))
    assert [trace.reason for trace in compiled.traces] == ["it is the first call", reason]
    strict = jit(function, max_traces=1)
    strict(first)
    with pytest.raises(RetraceError, match="may not be traced again") as caught:
        strict(second)
    assert reason in str(caught.value)


@pytest.mark.usefixtures("interpreted")
def test_static_arguments_are_part_of_what_is_compiled() -> None:
    def function(loss: Callable[[Tensor], Tensor], x: Tensor, power: int = 2) -> Tensor:
        return loss(x) ** power

    compiled, x = jit(function, static=("loss", "power")), normal(3)
    for _ in range(2):
        assert torch.equal(compiled(torch.sum, x), torch.sum(x) ** 2)
        assert torch.equal(compiled(torch.sum, x, power=3), torch.sum(x) ** 3)
        assert torch.equal(compiled(torch.mean, x, 3), torch.mean(x) ** 3)
    assert len(compiled.traces) == 3
    layer, x, y = Linear(torch.ones(1, 2), None), torch.ones(1, 2), torch.ones(1, 1)
    assert tree.equal(jit(value_and_grad, static="loss")(mse, layer, x, y), value_and_grad(mse, layer, x, y))


def test_what_is_no_tree_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^rate is a float, 0\.1: compiled functions go from trees to trees"):
        jit(lambda x, rate: x * rate)(torch.ones(2), 0.1)
    with pytest.raises(TypeError, match=r"^the result\['a'\] is a set"):
        jit(lambda x: {"a": {x.shape}})(torch.ones(2))
    with pytest.raises(ValueError, match="static='loss' is not a parameter of"):
        jit(lambda x: x, static="loss")


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("set_to", "reason"),
    [
        (lambda: threads(3), r"torch\.get_num_threads\(\) was \d, and is 3"),
        (lambda: default_dtype(torch.float64), r"torch\.get_default_dtype\(\) was torch\.float32, and is torch\.float64"),
        (lambda: torch.device("meta"), r"torch\.get_default_device\(\) was cpu, and is meta"),
        (lambda: torch.autocast("cpu", torch.bfloat16), r"torch\.autocast was off, and is {'cpu': torch\.bfloat16}"),
        (deterministic, r"torch\.are_deterministic_algorithms_enabled\(\) was False, and is True"),
    ],
)
def test_what_torch_is_set_to_is_a_reason(set_to: Callable[[], contextlib.AbstractContextManager[None]], reason: str) -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ x, torch.ones(2)

    compiled, x = jit(function), torch.full((2, 2), 0.3)
    for _ in range(2):
        for setting in (contextlib.nullcontext, set_to):
            with setting():
                results, expected = compiled(x), function(x)
                assert [(part.dtype, part.device) for part in results] == [(part.dtype, part.device) for part in expected]
                assert torch.equal(results[0], expected[0])
    assert len(compiled.traces) == 2
    assert re.fullmatch(reason, compiled.traces[1].reason)
    # All that an argument holds is donated: there is no tensor that a guard could look at.
    state, step = Only(torch.ones(2, 2)), jit(lambda state: Only(state.value @ state.value), donate="state")
    for _ in range(2):
        state = step(state)
    if "autocast" in reason:
        with set_to(), pytest.raises(TypeError, match="no part of what"):
            step(state)
    else:
        with set_to():
            state = step(state)
        assert len(step.traces) == 2


@pytest.mark.usefixtures("interpreted")
def test_a_mode_that_watches_sees_each_function() -> None:
    seen: list[object] = []

    class Watch(TorchFunctionMode):
        @override
        def __torch_function__(  # type: ignore[explicit-any]  # it sees any function
            self, func: Callable[..., object], _types: object, args: tuple[object, ...] = (), kwargs: object = None
        ) -> object:
            seen.append(func)
            return func(*args)

    compiled = jit(torch.neg)
    compiled(torch.ones(2))
    x = torch.ones(2)
    with Watch():
        assert torch.equal(compiled(x), -x)
    assert torch.neg in seen
    assert len(compiled.traces) == 1


# --- Around other things ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interpreted")
def test_a_compiled_function_inside_another_is_a_part_of_it() -> None:
    inner = jit(lambda x: x * 2)
    outer = jit(lambda x: inner(x) + 1)
    assert torch.equal(outer(torch.ones(2)), torch.full((2,), 3.0))
    assert (len(inner.traces), len(outer.traces)) == (0, 1)
    assert torch.equal(torch.func.vmap(inner)(torch.ones(2)), torch.full((2,), 2.0))
    assert inner(torch.empty(2, device="meta")).is_meta
    assert len(inner.traces) == 0
    assert torch.equal(inner(torch.ones(2)), torch.full((2,), 2.0))
    assert torch.equal(outer(torch.ones(2)), torch.full((2,), 3.0))


@pytest.mark.usefixtures("interpreted")
def test_grad_modes_agree_and_no_tape_is_recorded() -> None:
    compiled, x = jit(lambda x: x * 2), torch.ones(2, requires_grad=True)
    results = [compiled(x)]
    with torch.no_grad():
        results.append(compiled(x))
    with torch.inference_mode():
        results.append(compiled(x))
        results.append(compiled(torch.ones(2)))
    assert all(torch.equal(result, torch.full((2,), 2.0)) and not result.requires_grad for result in results)
    assert len(compiled.traces) == 1


@pytest.mark.usefixtures("interpreted")
def test_threads_may_call_at_once() -> None:
    compiled = jit(lambda x: x * 2)
    results: list[bool] = []

    def call() -> None:
        results.extend(torch.equal(compiled(torch.ones(n)), torch.full((n,), 2.0)) for n in (1, 2, 3))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 24
    assert len(compiled.traces) == 3


# --- Donation -----------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Run(Record):
    params: tuple[Pair, ...]
    moments: tuple[Tensor, Tensor]
    note: str


def advance(run: Run, x: Tensor) -> tuple[Run, tuple[Tensor, Tensor]]:
    """Each part from others, so that the order of writing matters; the rows change places."""
    (pair, other), (first, second) = run.params, run.moments
    assert pair.second is not None
    next_pair = Pair(pair.second + x, pair.first * 2 - x, pair.size)
    return Run((next_pair, other), (second, first + second), run.note), (pair.first, second)


def new_run() -> Run:
    return Run((Pair(normal(3), normal(3), 1), Pair(normal(2), None, 2)), (normal(4), normal(4) + 1), "run")


@pytest.mark.usefixtures("interpreted")
def test_a_donated_run_goes_as_one_that_is_not() -> None:
    compiled, run = jit(advance, donate="run"), new_run()
    expected = tree.map(torch.clone, run)
    objects = set()
    memory = {leaf.data_ptr() for leaf in tree.leaves(run)}
    for number in range(6):
        run, reported = compiled(run, torch.full((3,), float(number)))
        expected, expected_report = advance(expected, torch.full((3,), float(number)))
        assert tree.equal((run, reported), (expected, expected_report))
        assert {leaf.data_ptr() for leaf in tree.leaves(run)} == memory
        assert not {leaf.data_ptr() for leaf in reported} & memory
        objects.add(id(run.params))
    assert len(compiled.traces) == len(objects) == 1  # from the second step on, the parts go from run to run as they are
    expected_next = advance(expected, torch.ones(3))
    assert tree.equal(compiled(x=torch.ones(3), run=run), expected_next)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_what_was_donated_is_not_to_be_used_again(steps: int) -> None:
    compiled, x = jit(advance, donate="run"), torch.ones(3)
    run = new_run()
    for _ in range(steps):
        run, _ = compiled(run, x)
    after, _ = compiled(run, x)
    for use in (
        lambda: run.params[0].first + 1,
        lambda: float(run.moments[0].sum()),
        lambda: tree.map(torch.neg, run),
        lambda: compiled(run, x),
        lambda: jit(advance)(run, x),
        lambda: torch.stack(run.moments),
    ):
        with pytest.raises(DonatedError, match="was donated to a compiled function or a step, which wrote its result over it"):
            use()
    again, _ = compiled(after, x)
    assert all(bool(leaf.isfinite().all()) for leaf in tree.leaves(again))


@pytest.mark.usefixtures("interpreted")
def test_who_held_a_part_of_what_was_donated_is_told() -> None:
    compiled, x, expected = jit(advance, donate="run"), torch.ones(3), new_run()
    run = tree.map(torch.clone, expected)
    holds: tuple[Callable[[Run], object], ...] = (
        lambda run: run.params,
        lambda run: run.params[0],
        lambda run: run.params[0].first,
        lambda run: run.moments,
        lambda _run: None,
        lambda run: [run.moments[1]],
    )
    for hold in holds * 2:
        held = hold(run)
        run, expected = compiled(run, x)[0], advance(expected, x)[0]
        assert tree.equal(run, expected)
        if held is not None:
            with pytest.raises(DonatedError):
                tree.map(torch.neg, held)


@pytest.mark.usefixtures("interpreted")
def test_a_tree_that_shares_memory_is_not_written_over() -> None:
    compiled, x, base = jit(advance, donate="run"), torch.ones(3), normal(8)
    one = base[:3].clone()
    for run, y in [
        (Run((Pair(one, one, 1), Pair(normal(2), None, 2)), (normal(4), normal(4)), "run"), x),
        (Run((Pair(base[:3], base[1:4], 1), Pair(normal(2), None, 2)), (normal(4), normal(4)), "run"), x),
        (Run((Pair(normal(1).expand(3), normal(3), 1), Pair(normal(2), None, 2)), (normal(4), normal(4)), "run"), x),
        (Run((Pair(one, normal(3), 1), Pair(normal(2), None, 2)), (normal(4), normal(4)), "run"), one),
    ]:
        expected, before = advance(run, y), tree.map(torch.clone, run)
        assert tree.equal(compiled(run, y), expected)
        assert tree.equal(run, before)


@pytest.mark.usefixtures("interpreted")
def test_what_is_not_donated_can_be_returned_as_it_is() -> None:
    compiled, run, x = jit(lambda run, x: (advance(run, x)[0], x), donate="run"), new_run(), torch.ones(3)
    for _ in range(3):
        run, same = compiled(run, x)
        assert same is x


@pytest.mark.usefixtures("interpreted")
def test_bare_tensors_and_tuples_can_be_donated() -> None:
    compiled = jit(lambda pair, x: (pair[1] + x, pair[0]), donate="pair")
    pair = before = (torch.zeros(2), torch.ones(2))
    for _ in range(3):
        pair = compiled(pair, torch.ones(2))
    assert tree.equal(pair, (torch.full((2,), 3.0), torch.full((2,), 1.0)))
    for tensor in before:
        assert repr(tensor) == "<a tensor that was donated>"
        with pytest.raises(DonatedError):
            tensor + 1
        with pytest.raises(DonatedError, match=r"^x: this tensor was donated"):
            compiled(pair, tensor)
    with pytest.raises(TypeError, match=r"no part of what .* returns is a tree like this argument"):
        jit(lambda x: x.sum(), donate="x")(torch.ones(2))
    for wrong in (True, 0, ("x", 1)):  # as other libraries count arguments
        with pytest.raises(
            TypeError, match=rf'names arguments of the function, such as donate="state", not {re.escape(repr(wrong))}'
        ):
            jit(lambda x: x, donate=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="donate='y' is not a parameter of"):
        jit(lambda x: x, donate="y")


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("records", [True, False])
def test_several_arguments_can_be_donated(records: bool) -> None:
    def make(value: float) -> object:
        return Only(torch.full((2,), value)) if records else (torch.full((2,), value), torch.full((3,), value))

    def function(a: object, x: Tensor, b: object, empty: object) -> tuple[Tensor, object, object, object]:
        total = tree.leaves(a)[0] + x
        return total, tree.map(lambda p, q: p - q, b, a), tree.map(lambda p, q: p + 2 * q, a, b), empty

    compiled = jit(function, donate=("b", "a", "empty"))
    a, b = make(1), make(2)
    expected_a, expected_b = make(1), make(2)
    memory = {leaf.data_ptr() for leaf in tree.leaves((a, b))}
    for _ in range(4):
        before = a
        total, a, b, nothing = compiled(a, torch.ones(2), b, ())
        expected, expected_a, expected_b, _ = function(expected_a, torch.ones(2), expected_b, ())
        assert tree.equal((total, a, b, nothing), (expected, expected_a, expected_b, ()))
        assert {leaf.data_ptr() for leaf in tree.leaves((a, b))} == memory
        with pytest.raises(DonatedError):
            tree.map(torch.neg, before)
    assert len(compiled.traces) == 1
    held = tree.leaves(b)[0]
    compiled(a, torch.ones(2), b, ())
    with pytest.raises(DonatedError):
        held + 1
    with pytest.raises(TypeError, match=r"^donate='b': no part of what"):
        jit(lambda a, b: (a + b, 1), donate=("a", "b"))(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="'x' is in static and in donate"):
        jit(lambda x: x, static="x", donate="x")


# --- Scan ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interpreted_loop")
def test_a_scan_is_a_loop() -> None:
    scanned, run = scan(advance), new_run()
    before = tree.map(torch.clone, run)
    for steps in (1, 5):
        xs, expected, reports = normal(steps, 3), run, []
        for x in xs:
            expected, report = advance(expected, x)
            reports.append(report)
        after, stacked = scanned(run, xs)
        assert tree.equal(after, expected)
        assert tree.equal(stacked, tuple(torch.stack(column) for column in zip(*reports, strict=True)))
        assert tree.equal(run, before)
    assert [trace.reason for trace in scanned.traces] == ["it is the first call"]
    meta = tree.move_to(run, "meta")
    assert scanned(meta, torch.empty(4, 3, device="meta"))[1][0].shape == (4, 3)
    steps_and_messages: list[tuple[Callable[[Tensor, Tensor], object], str]] = [
        (
            lambda x, y: ((x, y), x),
            "a step must return a state like the one that it is given: state was a tensor, and is a tuple",
        ),
        (lambda x, y: (x.sum() + y.sum(), x), r"a step must return a state like .*: state is float32\[2\] before it"),
        (lambda x, y: x + y, r"a step returns a pair, the next state and a report, not float32\[2\]"),
    ]
    for step, message in steps_and_messages:
        with pytest.raises(TypeError, match=message):
            scan(step)(torch.ones(2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="the data is empty"):
        scanned(run, torch.ones(0, 3))
    with pytest.raises(ValueError, match="must have the same number of rows"):
        scan(lambda x, y: (x + y[0] + y[1], x))(torch.ones(2), (torch.ones(3, 2), torch.ones(4, 2)))


@pytest.mark.usefixtures("interpreted_loop")
def test_a_scan_tells_why_it_was_traced_again() -> None:
    scanned = scan(lambda x, y: (x + y, x), max_traces=2)
    scanned(torch.ones(2), torch.ones(3, 2))
    scanned(torch.ones(2, 1).expand(2, 2)[0], torch.ones(5, 2))
    scanned(torch.ones(2), torch.ones(2, 3).t())
    scanned(torch.ones(2), torch.ones(3, 1))
    reasons = [trace.reason for trace in scanned.traces]
    assert reasons == ["it is the first call", "a batch of batches was float32[2], and is float32[1]"]
    with pytest.raises(
        RetraceError, match=r"a scan of .* was traced 2 times, .* but state was float32\[2\], and is float64\[2\]"
    ):
        scanned(torch.ones(2).double(), torch.ones(3, 2))


@pytest.mark.usefixtures("interpreted_loop")
def test_a_scan_takes_minibatches() -> None:
    model, optimizer = initialize(key(0), linear(2, 3)), adam(0.1)
    step, state = train_step(mse, optimizer), train_state(key(1), model, optimizer)
    for rows, size in ((20, 10), (7, 10), (5, 1)):
        data = random.normal(key(2), (rows, 2)), random.normal(key(3), (rows, 3))
        for order in (key(4), None):
            batches = minibatches(order, data, size)
            scanned = scan(step)
            after, reports = scanned(state, batches)
            expected, losses = state, list[Tensor]()
            for batch in batches:
                expected, report = step(expected, batch)
                losses.append(report.loss)
            assert_trees_close(after, expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(reports.loss, torch.stack(losses))
            assert len(scanned.traces) == 1
    total, means = scan(lambda total, x: (total + x.sum(), x.mean()))(torch.zeros(()), minibatches(None, torch.arange(5.0), 2))
    assert torch.equal(total, torch.tensor(10.0))
    assert torch.equal(means, torch.tensor([0.5, 2.5, 4.0]))
    with pytest.raises(ValueError, match=r"the last batch is smaller .* drop_last=True"):  # predictions are in the report
        scan(step)(state, minibatches(key(0), (torch.ones(25, 2), torch.ones(25, 3)), 10))
    with pytest.raises(ValueError, match=r"the last batch is smaller .* drop_last=True"):
        scan(lambda total, x: (total + x.sum(), x))(torch.zeros(()), minibatches(None, torch.ones(5), 2))


# --- What a graph cannot hold -------------------------------------------------------------------------------------------


def refusal(function: Callable[..., object], *arguments: object) -> str:  # type: ignore[explicit-any]  # of any arguments
    with pytest.raises(TraceError) as caught:
        jit(function)(*arguments)
    return str(caught.value)


def test_a_decision_by_a_value_names_the_line() -> None:
    def branch(x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x

    def number(x: Tensor) -> Tensor:
        return x * float(x[0])

    def select(x: Tensor) -> Tensor:
        return x[x > 0]

    for function, line in [(branch, "if x.sum() > 0:"), (number, "return x * float(x[0])"), (select, "return x[x > 0]")]:
        message = refusal(function, torch.ones(2))
        assert "asks for the value of a tensor" in message
        assert f"{__file__}:" in message
        assert f"(`{line}`)" in message


def test_a_kept_tensor_names_the_line() -> None:
    kept: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        kept.append(x + 1)
        return x * 2

    assert "kept.append(x + 1)" in refusal(function, torch.ones(2))
    kept.clear()

    def keeps_argument(x: Tensor) -> Tensor:
        kept.append(x)
        return x * 2

    assert "was kept behind the back of a compiled function: an argument" in refusal(keeps_argument, torch.ones(2))


def test_writing_to_what_others_see_names_the_line() -> None:
    outside = torch.zeros(2)

    def writes_argument(x: Tensor) -> Tensor:
        return x[0].add_(1)

    def writes_outside(x: Tensor) -> Tensor:
        return outside.add_(x)

    assert "writes into an argument" in refusal(writes_argument, torch.ones(2))
    assert "return outside.add_(x)" in refusal(writes_outside, torch.ones(2))
    assert torch.equal(outside, torch.zeros(2))


def test_hidden_random_numbers_name_the_line() -> None:
    message = refusal(lambda x: x + torch.rand(2), torch.ones(2))
    assert "torch.rand draws random numbers from a hidden state" in message
    assert "fundl.random" in message


def test_what_compiled_code_refuses_is_told_as_the_function_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(inputs: list[Tensor]) -> list[Tensor]:
        raise RuntimeError(f"index out of bounds: 0 <= tmp3 < 5L, and a trace of C++, given {len(inputs)} tensors")

    def step(table: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        return table + 1, table[row]

    monkeypatch.setattr(cache, "compiled", lambda _graph, _examples: (refuse, Path("nowhere"), False))
    monkeypatch.setattr(
        cache, "compiled_loop", lambda _graph, _examples, plan: (loops.python_loop(refuse, plan), Path("nowhere"), False)
    )
    compiled, donating, scanned = jit(step), jit(step, donate="table"), scan(step)
    table, good, bad = torch.ones(5, 2), torch.tensor([[1, 2]]), torch.tensor([[1, 9]])
    for _ in range(2):
        with pytest.raises(IndexError, match="index 9 is out of bounds for dimension 0 with size 5"):
            compiled(table, bad[0])
        with pytest.raises(IndexError, match="index 9 is out of bounds") as caught:
            donating(table, bad[0])
        assert caught.value.__notes__ == ["table may be written over in part: go on from a copy"]
        with pytest.raises(IndexError, match="index 9 is out of bounds"):
            scanned(table, bad)
        with pytest.raises(RuntimeError, match="tmp3"):  # of which the function itself knows nothing
            compiled(table, good[0])
        with pytest.raises(RuntimeError, match="tmp3"):
            scanned(table, good)


@pytest.mark.usefixtures("interpreted")
def test_an_error_of_the_function_is_its_own() -> None:
    with pytest.raises(ValueError, match="features"):
        jit(fundl.apply)(Linear(torch.ones(1, 2), None), torch.ones(4, 3))


# --- Compiling ----------------------------------------------------------------------------------------------------------


def test_compiled_code_computes_the_same_and_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path))
    model, optimizer = initialize(key(0), compose(linear(2, 3), ReLU(), linear(3, 2))), adam(0.1)
    step = train_step(mse, optimizer)
    compiled, first = jit(step, donate="state"), train_state(key(1), model, optimizer)
    state, expected = tree.map(torch.clone, first), first
    batches = random.normal(key(2), (3, 2, 2)), random.normal(key(3), (3, 2, 2))
    reports = []
    for batch in zip(*batches, strict=True):
        state, report = compiled(state, batch)
        expected, expected_report = step(expected, batch)
        reports.append((report, expected_report))
        assert_trees_close(state, expected, rtol=1e-5, atol=1e-6)
    for report, expected_report in reports:  # they have memory of their own
        assert_trees_close(report, expected_report, rtol=1e-5, atol=1e-6)
    again = jit(step, donate="state")
    again(tree.map(torch.clone, first), (batches[0][0], batches[1][0]))
    assert [compiled.traces[0].cached, again.traces[0].cached] == [False, True]

    scanned, stacked = scan(step)(first, batches)
    assert_trees_close(scanned, expected, rtol=1e-5, atol=1e-6)
    assert_trees_close(stacked.loss, torch.stack([report.loss for report, _ in reports]), rtol=1e-5, atol=1e-6)
    assert len([*tmp_path.glob(f"libraries/*/{library.FILE}")]) == 2


def test_without_a_compiler_functions_run_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path))
    torch_private.require_known((*torch_private.NAMES, *inductor.NAMES, *lowering.NAMES))
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        compiled = jit(lambda x: x * 3)
        with pytest.warns(RuntimeWarning, match=r"is not compiled, and runs as it is: .* Compiling needs a compiler for C\+\+"):
            assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 3.0))
        assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 3.0))


def test_a_graph_that_cannot_be_compiled_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("deep inside\nand more")

    monkeypatch.setenv("FUNDL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(inductor, "_compile_graph", refuse)
    compiled, scanned = jit(torch.neg), scan(lambda x, y: (x + y, x))
    with pytest.warns(RuntimeWarning, match=r"neg is not compiled, and runs as it is: .* \(AssertionError: deep inside\)$"):
        assert torch.equal(compiled(torch.ones(2)), -torch.ones(2))
    with pytest.warns(RuntimeWarning, match=r"^a scan of .* is not compiled, and runs as it is: "):
        scanned(torch.ones(2), torch.ones(3, 2))
    assert torch.equal(compiled(torch.ones(2)), -torch.ones(2))
    assert torch.equal(scanned(torch.ones(2), torch.ones(3, 2))[0], torch.full((2,), 4.0))
    assert [trace.compiled for trace in (*compiled.traces, *scanned.traces)] == [False, False]


def test_one_dnns_lstm_stays_whole() -> None:
    """A graph calls its kernel, forward and backward, so that it is small, and gives the kernel's own bits."""
    model = initialize(key(0), lstm(3, 4, depth=2, bidirectional=True))
    x, grad = random.normal(key(1), (2, 50, 3)), random.normal(key(2), (2, 50, 8))
    compiled = jit(vjp)
    for actual, expected in zip(tree.leaves(compiled(model, x, grad)), tree.leaves(vjp(model, x, grad)), strict=True):
        assert torch.equal(actual, expected)
    assert compiled.traces[0].compiled


def test_a_loop_over_a_graph_with_whole_kernels() -> None:
    model = initialize(key(0), compose(lstm(3, 4, bias=False), LastPosition(), linear(4, 2)))
    optimizer = sgd(0.1)
    step, state = train_step(mse, optimizer), train_state(key(1), model, optimizer)
    batches = random.normal(key(2), (3, 5, 10, 3)), random.normal(key(3), (3, 5, 2))
    after, reports = scan(step)(state, batches)
    for number in range(3):
        state, report = step(state, (batches[0][number], batches[1][number]))
        torch.testing.assert_close(reports.loss[number], report.loss)
    assert_trees_close(after.model, state.model, rtol=1e-5, atol=1e-6)


def test_what_is_written_on_the_way_is_read_afterwards() -> None:
    """Operations consist of others that write; torch's compiler forgot that to read the result means to wait for them."""

    def function(rows: Tensor, h: Tensor, grad: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        product = (rows.t().unsqueeze(2) * h.unsqueeze(0)).sum(1)
        embedding = kernels.embedding_backward(grad, tokens, 10, -1, False)  # adds to rows of zeros
        return embedding + product, product, kernels.pad_circular(h.unsqueeze(0), (1, 2))  # writes into an empty tensor

    tokens = random.randint(key(3), (6,), low=0, high=10)
    inputs = random.normal(key(0), (6, 10)), random.normal(key(1), (6, 4)), random.normal(key(2), (6, 4)), tokens
    compiled = jit(function)
    assert_trees_close(compiled(*inputs), function(*inputs), rtol=1e-5, atol=1e-6)
    assert compiled.traces[0].compiled


def test_large_products_have_the_same_bits() -> None:
    """What `jit` says of them; of LSTMs the test above."""
    model, x, grad = initialize(key(0), linear(512, 256)), random.normal(key(1), (128, 512)), random.normal(key(2), (128, 256))
    grads, grad_x = jit(vjp)(model, x, grad)
    expected, expected_x = vjp(model, x, grad)
    assert torch.equal(jit(apply)(model, x), apply(model, x))
    assert torch.equal(grads.weight, expected.weight)
    assert torch.equal(grad_x, expected_x)
