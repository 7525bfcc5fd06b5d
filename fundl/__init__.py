"""Deep learning as pure functions on PyTorch tensors."""

from fundl import random, shapes, tree
from fundl.layer import Layer, Model
from fundl.layers.activation import ReLU, Tanh
from fundl.layers.linear import Linear, linear
from fundl.model import apply, backward, backward_params, compose, forward, output_shape, value_and_grad, vjp
from fundl.shapes import Shape
