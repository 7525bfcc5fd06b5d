"""The contract of a layer: whoever says how to go forward says how to go back."""

from mypy.plugin import ClassDefContext


def require_backward(context: ClassDefContext) -> None:
    """Report a layer's class that has a `forward`, but neither `backward` nor both of its halves; it fails when it runs."""
    written = {name for base in context.cls.info.mro if base.fullname != "fundl.layer.Layer" for name in base.names}
    if "forward" in written and "backward" not in written and not {"backward_params", "backward_input"} <= written:
        context.api.fail(
            f"{context.cls.name} has a forward, but no backward: write backward, or both its halves, backward_params and"
            " backward_input",
            context.reason,
        )
