"""The error for using what was donated, to a compiled function (`fundl.jit`) or a step (`fundl.train_step`)."""

from fundl._common.listed import Listed


class DonatedError(RuntimeError, metaclass=Listed):
    """Something was used after it was donated to a compiled function or a step."""


DonatedError.__module__ = "fundl"  # where users find it: tracebacks say so


def refusal(kind: str) -> str:
    """The message of the error, for a tensor or a record."""
    return (
        f"this {kind} was donated to a compiled function or a step, which wrote its result over it: go on with the result, keep"
        " a copy (tree.map(torch.clone, ...)) from before the call, or do without donate"
    )
