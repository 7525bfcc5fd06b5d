"""The sample optimizers of the catalogue, each from a paper, and the formulas of their transforms: see `optimizer_samples`."""

from typing import Final

from fundl import cosine_schedule, is_matrix, lamb, lars, scale_by_trust_ratio
from fundl.optim.chain import AnyTransform
from fundl.optim.trust_ratio import _ScaleByTrustRatio
from tests.optimizer_memory import Flat, Memory, formula

CATALOGUE: Final[dict[str, AnyTransform]] = {
    "scale_by_trust_ratio": scale_by_trust_ratio(),
    "scale_by_trust_ratio: matrices": scale_by_trust_ratio(coefficient=0.5, epsilon=0.1, where=is_matrix),
    "lamb": lamb(0.1),
    "lamb: all options": lamb(cosine_schedule(0.1, 10), beta1=0.8, beta2=0.9, weight_decay=0.3, where=is_matrix),
    "lars": lars(0.1),
    "lars: all options": lars(
        cosine_schedule(0.1, 10), momentum=0.8, nesterov=True, coefficient=0.5, weight_decay=0.3, where=is_matrix
    ),
}


@formula.register
def _(trust: _ScaleByTrustRatio, grads: Flat, memory: Memory, params: Flat) -> Flat:
    results = []
    for g, p, path in zip(grads, params, memory.paths, strict=True):
        length, size = (g**2).sum().sqrt(), (p**2).sum().sqrt()
        on = trust.where is None or trust.where(path, p)
        results.append(g * (trust.coefficient * size / (length + trust.epsilon)) if on and length != 0 and size != 0 else g)
    return results
