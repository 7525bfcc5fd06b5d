"""Convolutions: which sizes their types tell."""

from typing import reveal_type

import torch

from fundl import Conv2d, MaxPool2d, conv1d, conv2d, conv3d, conv_transpose2d, vjp

# R: fundl.layers.convolution.Conv2d[Literal[3], Literal[8], Literal[5], Literal[1], Literal[0], Literal[1]]
reveal_type(conv2d(3, 8, 5))
# R: fundl.layers.convolution.Conv1d[Literal[4], Literal[8], Literal[5], Literal[1], Literal['same'], Literal[3]]
reveal_type(conv1d(4, 8, kernel_size=5, dilation=3, padding="same", groups=4))
# R: fundl.layers.convolution.Conv3d[Literal[3], Literal[8], tuple[Literal[1], Literal[2], Literal[3]], Literal[1], Literal[0], Literal[1]]
reveal_type(conv3d(3, 8, (1, 2, 3)))
# R: fundl.layers.convolution.Conv2d[Any, Any, Any, Literal[2], Literal[0], Literal[1]]
reveal_type(Conv2d(torch.ones(4, 3, 2, 2), None, stride=2))
# R: fundl.layers.transposed_convolution.ConvTranspose2d[Literal[3], Literal[8], Literal[2], Literal[2], Literal[0], Literal[1], Literal[1]]
reveal_type(conv_transpose2d(3, 8, 2, stride=2, output_padding=1))
# R: fundl.layers.transposed_convolution.ConvTranspose2d[Literal[3], Literal[8], Literal[5], Literal[2], Literal['same'], Literal[1], Literal[0]]
reveal_type(conv_transpose2d(3, 8, 5, stride=2, padding="same"))
# R: fundl.layers.pooling.MaxPool2d[Literal[3], Literal[2], Literal['same'], Literal[1], Literal[False]]
reveal_type(MaxPool2d(3, stride=2, padding="same"))

grads, _ = vjp(conv2d(3, 8, 5), torch.ones(1, 3, 8, 8), torch.ones(1, 8, 4, 4))
# R: fundl.layers.convolution.Conv2d[Literal[3], Literal[8], Literal[5], Literal[1], Literal[0], Literal[1]]
reveal_type(grads)

conv2d(3, 8, (5, 5, 5))  # E: Argument 3 to "conv2d" has incompatible type "tuple[int, int, int]"
conv2d(3, 8, 5, padding="full")  # E: Argument "padding" to "conv2d" has incompatible type "Literal['full']"
conv_transpose2d(3, 8, 5, padding="full")  # E: Argument "padding" to "conv_transpose2d" has incompatible type "Literal['full']"
