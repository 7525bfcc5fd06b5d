"""What torch is set to, where that decides what a function computes: a part of the cache key of a call."""

from typing import Final

import attrs
import torch

from fundl._compiling import cuda, torch_private

_AUTOCAST_DEVICES: Final = ("cpu", "cuda")
_CPU: Final = torch.device("cpu")


@attrs.frozen
class TorchSettings:
    """Settings of torch, or of this thread."""

    threads: int  # that operations use
    default_dtype: torch.dtype  # of tensors that are made without one
    default_device: torch.device  # likewise
    autocast: tuple[tuple[str, torch.dtype], ...]  # types of devices where it is on, each with its dtype
    deterministic: bool  # whether only deterministic algorithms may be used
    precision: cuda.Precision | None = None  # of products on a GPU; None if there is none in what is compiled

    def explain(self, old: "TorchSettings") -> str:
        """The first difference from other settings, in words."""
        for name, before, after in (
            ("torch.get_num_threads()", old.threads, self.threads),
            ("torch.get_default_dtype()", old.default_dtype, self.default_dtype),
            ("torch.get_default_device()", str(old.default_device), str(self.default_device)),
            ("torch.autocast", dict(old.autocast) or "off", dict(self.autocast) or "off"),
            ("torch.are_deterministic_algorithms_enabled()", old.deterministic, self.deterministic),
            ("the precision of products on a GPU (torch.set_float32_matmul_precision)", old.precision, self.precision),
        ):
            if before != after:
                return f"{name} was {before}, and is {after}"
        return "nothing is different"


def torch_settings(*, on_gpu: bool = False) -> TorchSettings:
    """What torch is set to now; what matters on a GPU alone is asked for only there."""
    autocast = [(device, torch.get_autocast_dtype(device)) for device in _AUTOCAST_DEVICES if torch.is_autocast_enabled(device)]
    return TorchSettings(
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_default_device() if torch_private.function_mode_count() else _CPU,
        tuple(autocast),
        torch.are_deterministic_algorithms_enabled(),
        cuda.precision() if on_gpu else None,
    )
