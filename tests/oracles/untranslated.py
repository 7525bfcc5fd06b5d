"""Operators of torch.nn.functional that nothing of fundl's is a counterpart of, with the reason."""

from collections.abc import Mapping, Sequence
from typing import Final

UNTRANSLATED: Final[Mapping[str, Sequence[str]]] = {
    "a layer gives one tensor, and takes no places that maxima are from": (
        "max_unpool1d",
        "max_unpool1d grad",
        "max_unpool2d",
        "max_unpool2d grad",
        "max_unpool3d",
        "max_unpool3d grad",
    ),
    "no layer adds keys that are in no sequence": ("multi_head_attention_forward",),
    "no layer draws windows, or drops a channel to what keeps its mean": (
        "fractional_max_pool2d",
        "fractional_max_pool3d",
        "feature_alpha_dropout with_train",
        "feature_alpha_dropout without_train",
    ),
    "no layer gives lengths, distances or angles": ("normalize", "cosine_similarity", "pairwise_distance", "pdist"),
    "no layer samples images at places, or bags of rows": ("grid_sample", "embedding_bag"),
    "no layer of this kind": ("local_response_norm", "channel_shuffle"),
    "it gives integers, and has no gradient": ("one_hot",),
    "no layer is of complex numbers": ("silu complex",),
}
