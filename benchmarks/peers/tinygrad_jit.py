"""tinygrad, whose TinyJit replays the kernels of a whole step."""

from collections.abc import Mapping

from tinygrad import Context, Tensor, TinyJit
from tinygrad.nn.optim import SGD, Adam, Optimizer

from benchmarks.cases import Case
from benchmarks.peers import Run


def prepare(case: Case) -> Mapping[str, Run]:
    """One setting."""
    parameters = [Tensor(leaf).realize() for leaf in case.parameters()]
    layers = [*zip(parameters[::2], parameters[1::2], strict=True)]
    optimizer = _optimizer_of(case, parameters)
    data = [(Tensor(x).realize(), Tensor(target).realize()) for x, target in zip(*case.batches(), strict=True)]

    def step(x: Tensor, target: Tensor) -> Tensor:
        for weight, bias in layers[:-1]:
            x = x.linear(weight.transpose(), bias).relu()
        weight, bias = layers[-1]
        prediction = x.linear(weight.transpose(), bias)
        loss = (prediction - target).square().mean() if case.mean_squared else prediction.cross_entropy(target)
        optimizer.zero_grad()
        loss.backward()
        return loss.realize(*optimizer.schedule_step())  # all at once: the loss is of the parameters before the step

    jitted = TinyJit(step)

    def run(calls: int) -> float:
        loss = Tensor([0.0])
        with Context(TRAINING=1):
            for _ in range(calls):
                for x, target in data:
                    loss = jitted(x, target)
        return float(loss.item())

    return {"": run}


def _optimizer_of(case: Case, parameters: list[Tensor]) -> Optimizer:
    return SGD(parameters, lr=case.rate) if case.optimizer == "sgd" else Adam(parameters, lr=case.rate)
