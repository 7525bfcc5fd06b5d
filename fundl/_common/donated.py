"""What is said to who uses something that was donated: see `fundl.jit`. Trees say it too."""


class DonatedError(RuntimeError):
    """Something was used after it was donated to a compiled function."""


def refusal(kind: str) -> str:
    """What is said to who uses something that was donated."""
    return (
        f"this {kind} was donated to a compiled function, which wrote its result over it: go on with the result, keep a copy"
        " (tree.map(torch.clone, ...)) from before the call, or compile without donate"
    )
