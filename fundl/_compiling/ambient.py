"""What torch is set to, where that decides what a function computes: it is a part of the kind of a call."""

import attrs
import torch

from fundl._compiling import torch_private

_AUTOCAST_DEVICES = ("cpu", "cuda")


@attrs.frozen
class Ambient:
    """Settings of torch, or of this thread.

    Args:
        threads: the number of threads that operations use.
        default_dtype: of tensors that are made.
        default_device: likewise.
        autocast: the dtype that operations cast to, by the type of device; for those where they do.
        deterministic: whether only deterministic algorithms may be used.
    """

    threads: int
    default_dtype: torch.dtype
    default_device: torch.device
    autocast: tuple[tuple[str, torch.dtype], ...]
    deterministic: bool

    @property
    def is_usual(self) -> bool:
        """Whether there is neither a default device nor autocast: what is quickly asked for tells all the rest."""
        return not self.autocast and not torch_private.function_mode_count()

    def explain(self, old: "Ambient") -> str:
        """Where it differs from another one."""
        for name, before, after in (
            ("torch.get_num_threads()", old.threads, self.threads),
            ("torch.get_default_dtype()", old.default_dtype, self.default_dtype),
            ("torch.get_default_device()", str(old.default_device), str(self.default_device)),
            ("torch.autocast", dict(old.autocast) or "off", dict(self.autocast) or "off"),
            ("torch.are_deterministic_algorithms_enabled()", old.deterministic, self.deterministic),
        ):
            if before != after:
                return f"{name} was {before}, and is {after}"
        return "nothing is different"


def ambient() -> Ambient:
    """What torch is set to now."""
    autocast = [(device, torch.get_autocast_dtype(device)) for device in _AUTOCAST_DEVICES if torch.is_autocast_enabled(device)]
    return Ambient(
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_default_device() if torch_private.function_mode_count() else _CPU,
        tuple(autocast),
        torch.are_deterministic_algorithms_enabled(),
    )


_CPU = torch.device("cpu")
