"""The error for using what was donated to a compiled function, see `fundl.jit`: of a tensor, or of a record."""


class DonatedError(RuntimeError):
    """Something was used after it was donated to a compiled function."""


def refusal(kind: str) -> str:
    """The message of the error, for a tensor or a record."""
    return (
        f"this {kind} was donated to a compiled function, which wrote its result over it: go on with the result, keep a copy"
        " (tree.map(torch.clone, ...)) from before the call, or compile without donate"
    )
