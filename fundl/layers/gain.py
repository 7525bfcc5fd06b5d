"""The gain of an activation: what the weights before it are multiplied by, so that signals neither die nor explode."""

from fundl.layer import AnyLayer
from fundl.layers._refusals import require_layer


def gain_of(activation: AnyLayer) -> float:
    """The usual gain of an initialiser for the layer before an activation.

    It is sqrt(2) for ReLU and sqrt(2 / (1 + negative_slope^2)) for LeakyReLU, which keep the mean square of a centred
    normal signal; 5/3 for Tanh and 3/4 for SELU, found by experiment; and 1 for Sigmoid, Identity and Linear. For a
    self-normalising SELU network take `lecun_normal` instead, a gain of 1. Each class says its own, as `Layer.usual_gain`.

    Args:
        activation: the layer that follows.

    Raises:
        ValueError: no gain is known for the activation.
        TypeError: it is no layer.

    Source: He, Zhang, Ren and Sun, "Delving deep into rectifiers", 2015.

    >>> from fundl import LeakyReLU, gain_of, linear, xavier_uniform
    >>> layer = linear(2, 25, weight_init=xavier_uniform(gain=gain_of(LeakyReLU(0.1))))
    >>> gain_of(LeakyReLU(1.0))
    1.0
    """
    require_layer("activation", activation)
    gain = activation.usual_gain
    if gain is None:
        known = "ReLU, Tanh and all layers whose class says its usual_gain"
        raise ValueError(f"gains are known of {known}, not of {activation!r}: give the initialiser a number, gain=1.0, say")
    return gain
