"""Layers and losses that are made of functions and modules, which torch differentiates."""

import functools
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fundl import (
    Dropout,
    FunctionLayer,
    Tanh,
    adam,
    apply,
    backward,
    check_vjp,
    compose,
    cross_entropy,
    evaluate,
    forward,
    from_function,
    huber,
    initialize,
    jit,
    key,
    layer_from_function,
    linear,
    mse,
    sgd,
    train_state,
    train_step,
    tree,
    value_and_grad,
    vjp,
    weighed_by,
    weight_of,
)
from fundl.interop import torch_nn
from tests.loss_base import Sample as LossSample
from tests.loss_samples import SAMPLES as LOSSES
from tests.samples import normal
from tests.samples.functions import Network, bumps, network

Params = dict[str, Tensor]

X, TARGET = normal(5, 3), torch.tensor([0, 2, 1, 0, 2])
PLACES = {"places": normal(4, 3), "heights": normal(4)}


@from_function
def focal(prediction: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    cost = F.cross_entropy(prediction, target, reduction="none")
    return ((1 - torch.exp(-cost)) ** gamma * cost).mean()


# --- Losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_a_function_of_torch_becomes_the_loss_that_is_written_by_hand(name: str) -> None:
    row: LossSample = LOSSES[name]
    made = from_function(functools.partial(row.reference, reduction="mean"))
    value, grad = made(row.prediction, row.target)
    expected, by_hand = row.loss(row.prediction, row.target)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, by_hand)
    assert not value.requires_grad
    assert not grad.requires_grad


def test_options_and_partials() -> None:
    plain = focal(X, TARGET, 0.0)
    torch.testing.assert_close(plain, cross_entropy(X, TARGET))
    torch.testing.assert_close(functools.partial(focal, gamma=0.0)(X, TARGET), plain)
    assert not torch.equal(focal(X, TARGET)[0], plain[0])


def test_a_step_eager_and_compiled() -> None:
    model, optimizer = initialize(key(0), compose(linear(3, 8), Tanh(), linear(8, 3))), adam(0.1)
    x = X.to(torch.float32)
    step = train_step(focal, optimizer)
    state = again = train_state(key(1), model, optimizer)
    compiled = jit(step)
    for _ in range(3):
        state, report = step(state, (x, TARGET))
        again, other = compiled(again, (x, TARGET))
        torch.testing.assert_close(report.loss, other.loss)
    assert evaluate(focal, state.model, [(x, TARGET)]).loss < float(value_and_grad(focal, model, x, TARGET)[0])


def test_predictions_that_are_trees() -> None:
    def of_pair(prediction: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        first, second = prediction
        return (first * second - target).square().sum()

    first, second, target = normal(4), normal(4).cos(), normal(4).sin()
    _, (grad_first, grad_second) = from_function(of_pair)((first, second), target)
    torch.testing.assert_close(grad_first, 2 * (first * second - target) * second)
    torch.testing.assert_close(grad_second, 2 * (first * second - target) * first)


def test_what_the_mean_divides_by_is_said_by_the_function() -> None:
    @weighed_by(lambda _, target: (target >= 0).sum())
    def of_known(prediction: Tensor, target: Tensor) -> Tensor:
        return torch.where(target >= 0, (prediction - target).square(), 0.0).sum() / (target >= 0).sum()

    target = torch.tensor([1.0, -1.0, 2.0])
    assert int(torch.as_tensor(weight_of(from_function(of_known), torch.zeros(3), target))) == 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_no_mode_matters(mode: Callable[[], torch.no_grad]) -> None:
    expected = focal(X, TARGET)
    layer = layer_from_function(bumps, PLACES)
    gradients = vjp(layer, X, normal(5, 4))
    with mode():
        assert tree.equal(focal(X.clone().requires_grad_(), TARGET), expected)
        assert tree.equal(vjp(layer, X.clone(), normal(5, 4)), gradients)


def test_a_loss_is_pickled_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(focal)) is focal


def two(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return (prediction - target).square().sum(), 2 * (prediction - target)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (two, r"two gives two things, \(float64\[\], float64\[3\]\): if they are its value and its gradient, it is a loss"),
        (lambda prediction, _: prediction, r"gives a tensor of shape \(3,\), but a loss is one number: return its mean\(\)"),
        (lambda _, _target: 3.0, "must give the loss' value, a tensor without axes, not 3.0"),
        (lambda prediction, _: (prediction > 0).sum(), "must give a floating-point number, not one of torch.int64"),
    ],
)
def test_functions_that_are_no_losses(function: Callable[[Tensor, Tensor], Tensor], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        from_function(function)(torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))


def test_what_needs_no_from_function() -> None:
    for loss in (mse, functools.partial(mse, reduction="sum")):
        with pytest.raises(TypeError, match="mse is a loss by itself, whose gradient is written by hand: take it without"):
            from_function(loss)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match=r"from_function takes a function of a prediction and a target that .*, not Tanh\(\)"):
        from_function(Tanh())  # type: ignore[arg-type]  # what is tested


def test_predictions_without_a_gradient() -> None:
    with pytest.raises(TypeError, match=r"focal: the prediction must be floating-point, not int64\[3\]"):
        focal(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3]))


def test_reverse_mode_over_it_is_refused() -> None:
    with pytest.raises(RuntimeError, match="which record no tape"):
        torch.func.grad(lambda x: focal(x, TARGET)[0])(X)


def test_a_loss_of_ours_inside_is_refused() -> None:
    """It would find zeros, since they record no tape."""
    with pytest.raises(RuntimeError, match="which record no tape"):
        from_function(lambda prediction, target: huber(prediction, target)[0])(X, X.sin())


# --- Layers ------------------------------------------------------------------------------------------------------------


def test_the_gradient_has_the_type_of_the_layer() -> None:
    model = compose(layer_from_function(bumps, PLACES), Tanh())
    grads, _ = vjp(model, X, normal(5, 4))
    assert grads[0].params["heights"].shape == (4,)
    assert grads[0].function is bumps
    assert tree.flatten(grads)[1] == tree.flatten(model)[1]


def test_parameters_of_any_tree() -> None:
    check_vjp(layer_from_function(lambda p, x: p * x, normal(3)), X)
    check_vjp(layer_from_function(lambda p, x: x @ p[0] + p[1][0], (normal(3, 2), [normal(2)])), X)
    check_vjp(layer_from_function(lambda _, x: x.cumsum(-1), None), X)
    check_vjp(layer_from_function(lambda p, x: {"a": x * p, "b": (x + p, None)}, normal(3)), X)


def test_an_output_that_is_a_parameter_is_on_no_tape() -> None:
    parameter = normal(3).requires_grad_()
    layer: FunctionLayer[Tensor, Tensor, Tensor] = layer_from_function(lambda p, _: p, parameter)
    y, residuals = forward(layer, X)
    grads, grad_x = backward(layer, residuals, torch.ones(3, dtype=torch.float64))
    assert not y.requires_grad
    assert torch.equal(grads.params, torch.ones(3, dtype=torch.float64))
    assert torch.equal(grad_x, torch.zeros_like(X))


def test_integers_among_parameters_are_not_trained() -> None:
    def chosen(p: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        return p[0][p[1]] * x

    layer = layer_from_function(chosen, (normal(5), torch.tensor([2, 0, 0])))
    grads, _ = vjp(layer, X, torch.ones_like(X))
    assert torch.equal(grads.params[1], torch.zeros(3, dtype=torch.int64))
    assert float(grads.params[0][1]) == 0
    torch.testing.assert_close(grads.params[0][0], X[:, 1:].sum())


MODULE, TAPED, FIXED = nn.Linear(3, 2), torch.ones(3, requires_grad=True), torch.ones(3)


def uses_a_module(_: None, x: Tensor) -> Tensor:
    y: Tensor = MODULE(x)
    return y


def test_what_a_function_would_not_train() -> None:
    local = nn.Linear(3, 2)
    for function in (uses_a_module, lambda _, x: local(x)):
        with pytest.raises(
            TypeError, match=r"a module of torch.nn, whose parameters would not be trained: write fundl.interop"
        ):
            layer_from_function(function, None)
    with pytest.raises(TypeError, match=r"uses TAPED, a tensor with requires_grad, which would not be trained: give it in"):
        layer_from_function(lambda _, x: x * TAPED, None)
    layer_from_function(lambda _, x: x * FIXED, None)


def test_what_is_no_function_of_parameters() -> None:
    with pytest.raises(
        TypeError, match=r"takes a function, not the module Linear of torch.nn: write fundl.*as_layer\(module\)"
    ):
        layer_from_function(MODULE, None)
    with pytest.raises(TypeError, match=r"takes a function of both, not Tanh\(\)"):
        layer_from_function(Tanh(), None)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(
        TypeError, match=r"the parameters of bumps must be a tensor, or a tuple, dict or record of tensors, not"
    ):
        layer_from_function(bumps, {"places": normal(4, 3), "heights": 2.0})  # type: ignore[arg-type]  # what is tested
    layer: FunctionLayer[None, Tensor, object] = layer_from_function(lambda _, x: x.tolist(), None)
    with pytest.raises(TypeError, match=r"must give a tensor, or a tuple, dict or record of tensors, not \[\[") as caught:
        apply(layer, X)
    assert "in model" in caught.value.__notes__[0]


# --- Modules -----------------------------------------------------------------------------------------------------------


def test_a_module_in_evaluation() -> None:
    module = Network().double()
    module(normal(8, 3, 4))  # in training, which moves its statistics
    layer = torch_nn.as_layer(module)
    assert module.training
    x = normal(5, 3, 4)
    with torch.no_grad():
        assert torch.equal(apply(layer, x), module.eval()(x))
    assert [*layer.params.buffers] == ["scale", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]


def test_its_gradient_is_that_of_autograd() -> None:
    module, x = Network().double().eval(), normal(5, 3, 4)
    grads, _ = vjp(torch_nn.as_layer(module), x, normal(5, 2))
    module(x).backward(normal(5, 2))
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            torch.testing.assert_close(grads.params.parameters[name], parameter.grad)
    assert torch.equal(grads.params.buffers["scale"], module.scale)


def test_it_is_trained_and_goes_back() -> None:
    module, optimizer = Network(), sgd(0.1)
    state = train_state(key(0), compose(torch_nn.as_layer(module), Dropout(0.1)), optimizer)
    step, x = train_step(mse, optimizer), normal(5, 3, 4).float()
    before = state.model[0]
    losses = []
    for _ in range(20):
        state, report = step(state, (x, torch.zeros(5, 2)))
        losses.append(float(report.loss))
    assert losses[-1] < losses[0]
    layer = state.model[0]
    assert tree.equal(layer.params.buffers, before.params.buffers)
    module.load_state_dict({**layer.params.parameters, **layer.params.buffers}, strict=False)
    torch.testing.assert_close(apply(layer, x), module.eval()(x).detach())


class Siamese(nn.Module):
    """Two inputs, tied parts, and a pair of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    @override
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x).tanh(), self.second(y)


def test_several_inputs_and_tied_parameters() -> None:
    module = Siamese().double()
    layer = torch_nn.as_layer(module)
    assert [*layer.params.parameters] == ["first.weight"]
    pair = X, X.cos()
    check_vjp(layer, pair)
    y, _ = layer.forward(pair)  # type: ignore[arg-type]  # a checker takes one tensor
    expected = module(*pair)
    assert torch.equal(y[0], expected[0])
    assert torch.equal(y[1], expected[1])


def test_two_layers_of_one_module_are_of_one_structure() -> None:
    module = Network()
    one, other = torch_nn.as_layer(module), torch_nn.as_layer(module)
    assert tree.flatten(one)[1] == tree.flatten(other)[1]
    module.norm.eps = 0.1
    assert tree.flatten(one)[1] != tree.flatten(torch_nn.as_layer(module))[1]


def test_what_it_changes_in_place_is_within() -> None:
    x = normal(4, 3)
    before = x.clone()
    torch.testing.assert_close(apply(torch_nn.as_layer(nn.Sequential(nn.ReLU(inplace=True))), x), x.relu())
    assert torch.equal(x, before)


class Counts(nn.Module):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


class Draws(nn.Module):
    @override
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(3)


class Overwrites(nn.Module):
    @override
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Counts(), r"Counts writes over buffers\['count'\], in evaluation too, but a layer changes nothing that it is given"),
        (Draws(), "Draws draws random numbers from torch's hidden state, in evaluation too"),
        (Overwrites(), "Overwrites writes over x, in evaluation too"),
    ],
)
def test_modules_that_are_no_functions(module: nn.Module, message: str) -> None:
    layer, x = torch_nn.as_layer(module), normal(4, 3)
    given = tree.map(torch.clone, (layer, x))
    random_state = torch.get_rng_state()
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode(), pytest.raises(torch_nn.ConversionError, match=message):
            apply(layer, x)
    assert tree.equal((layer, x), given)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_what_is_no_module_with_values() -> None:
    with pytest.raises(torch_nn.ConversionError, match="weight of the module has no values yet: call the module on an input"):
        torch_nn.as_layer(nn.LazyLinear(3))
    with pytest.raises(TypeError, match=r"takes a module of torch.nn, not <class .*>: write as_layer\(Network\(...\)\)"):
        torch_nn.as_layer(Network)  # type: ignore[arg-type]  # what is tested


def test_many_threads() -> None:
    layer, other, x = network(), tree.map(lambda leaf: leaf * 2, network()), normal(5, 3, 4)
    expected = [apply(one, x) for one in (layer, other)]
    right: list[bool] = []

    def work(number: int) -> None:
        right.extend([torch.equal(apply((layer, other)[number % 2], x), expected[number % 2]) for _ in range(10)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 40
