"""Mistakes in how models are composed, applied and differentiated."""

from typing import Final

from tests.bad_input import Row

ROWS: Final[tuple[Row, ...]] = (
    (
        "apply(model, torch.ones(4, 3))",
        ValueError,
        "Linear expects 2 features, but the input's shape is (4, 3): its last axis must be of size 2",
    ),
    (
        "apply(model, torch.ones(3))",
        ValueError,
        "Linear expects 2 features, but the input's shape is (3,): its last axis must be of size 2",
    ),
    (
        "apply(model, torch.ones(()))",
        ValueError,
        "Linear expects 2 features, but the input's shape is (): its last axis must be of size 2",
    ),
    ("apply(model, 1.0)", TypeError, "the input must be a tensor, not float: write torch.tensor(...)"),
    ("apply(model, None)", TypeError, "Linear takes an input that is a tensor, not None"),
    ('apply(model, "x")', TypeError, "the input must be a tensor, not str: write torch.tensor(...)"),
    ("apply(model, (x, x))", TypeError, "Linear takes an input that is a tensor, not (float32[4, 2], float32[4, 2])"),
    (
        "apply(model, x.to(torch.int64))",
        TypeError,
        "the input must be floating-point, not torch.int64: convert it with x.to(torch.float32)",
    ),
    (
        "apply(model, x.to(torch.float64))",
        TypeError,
        "Linear's weight is torch.float32, but the input is torch.float64: convert one of them, the input",
    ),
    (
        "apply(model, x.to(torch.bfloat16))",
        TypeError,
        "Linear's weight is torch.float32, but the input is torch.bfloat16: convert one of them, the input",
    ),
    (
        "apply(model, x.to(torch.complex64))",
        TypeError,
        "the input must be floating-point, not torch.complex64: convert it with x.to(torch.float32)",
    ),
    ("apply(model, x > 0)", TypeError, "the input must be floating-point, not torch.bool: convert it with x.to(torch.float32)"),
    ("apply(None, x)", TypeError, "the model is of type NoneType, not a layer or a tuple of layers: None"),
    ("apply((), x)", ValueError, "a model needs at least one layer, but this is an empty tuple"),
    ("apply([model], x)", TypeError, "the model is of type list, not a layer or a tuple of layers: write compose(*layers)"),
    ("apply(linear, x)", TypeError, "the model is the function linear, not a layer: write linear(...)"),
    ('apply("model", x)', TypeError, "the model is of type str, not a layer or a tuple of layers: 'model'"),
    ("apply(Linear, x)", TypeError, "the model is the class Linear, not a layer: write Linear(...)"),
    ("apply(state, x)", TypeError, "the model is of type TrainState, not a layer or a tuple of layers:"),
    (
        'apply({"a": model}, x)',
        TypeError,
        "the model is of type dict, not a layer or a tuple of layers: a model with named parts is a",
    ),
    (
        "apply(made(conv2d(3, 8, 3)), torch.ones(2, 8, 8, 3))",
        ValueError,
        "Conv2d expects 3 channels, but the input has 8 channels: its shape is (2, 8, 8, 3)",
    ),
    (
        "apply(made(conv2d(3, 8, 3)), torch.ones(2, 3, 2, 2))",
        ValueError,
        "Conv2d expects a height and width of at least 3, but the input has one of 2: its shape is (2, 3, 2,",
    ),
    (
        "apply(made(conv2d(3, 8, 3)), torch.ones(2, 3, 8))",
        ValueError,
        "Conv2d expects 3 channels, but the input has 2 channels: its shape is (2, 3, 8)",
    ),
    (
        "apply(made(conv2d(3, 8, 3)), images.to(torch.uint8))",
        TypeError,
        "the input must be floating-point, not torch.uint8: convert it with x.to(torch.float32)",
    ),
    (
        "apply(made(conv1d(3, 8, 3)), torch.ones(2, 8, 3))",
        ValueError,
        "Conv1d expects 3 channels, but the input has 8 channels: its shape is (2, 8, 3)",
    ),
    (
        "apply(made(conv3d(3, 8, 3)), images)",
        ValueError,
        "Conv3d expects 3 channels, but the input has 2 channels: its shape is (2, 3, 8, 8)",
    ),
    (
        "apply(made(conv_transpose2d(3, 8, 3)), torch.ones(2, 4, 8, 8))",
        ValueError,
        "ConvTranspose2d expects 3 channels, but the input has 4 channels: its shape is (2, 4, 8, 8)",
    ),
    (
        "apply(made(embedding(10, 4)), torch.ones(2, 5))",
        TypeError,
        "Embedding looks up tokens, integers of dtype int64 or int32, but the input is torch.float32:",
    ),
    (
        "apply(made(embedding(10, 4)), torch.full((2,), 10))",
        ValueError,
        "Embedding has a vocabulary of 10 tokens, 0 to 9, but the input holds token 10",
    ),
    (
        "apply(made(embedding(10, 4)), torch.full((2,), -1))",
        ValueError,
        "Embedding has a vocabulary of 10 tokens, 0 to 9, but the input holds token -1",
    ),
    (
        "apply(made(embedding(10, 4)), torch.ones(2, dtype=torch.bool))",
        TypeError,
        "Embedding looks up tokens, integers of dtype int64 or int32, but the input is torch.bool: convert",
    ),
    ("apply(made(embedding(10, 4)), [1, 2])", TypeError, "the input must be a tensor, not int: write torch.tensor(...)"),
    (
        "apply(made(learned_positions(3, 4)), sequence)",
        ValueError,
        "LearnedPositions knows 3 positions, but the input has 5 steps: make it longer, or cut the sequences",
    ),
    (
        "apply(made(learned_positions(8, 3)), sequence)",
        ValueError,
        "LearnedPositions expects an input of shape (..., steps, 3), but the input's is (2, 5, 4)",
    ),
    (
        "apply(made(batch_norm(3)), torch.ones(1, 3))",
        ValueError,
        "BatchNorm expects more than one number in each channel of a batch, but the input's shape is (1, 3):",
    ),
    (
        "apply(made(batch_norm(4)), images)",
        ValueError,
        "BatchNorm expects 4 channels, but the input's shape is (2, 3, 8, 8): its axis 1 must be of size 4",
    ),
    (
        "apply(made(batch_norm(3)), torch.ones(3))",
        ValueError,
        "BatchNorm expects an input of shape (B, channels, ...), but the input's shape is (3,)",
    ),
    (
        "apply(made(layer_norm(3)), x)",
        ValueError,
        "LayerNorm expects 3 features, but the input's shape is (4, 2): its last axis must be of size 3",
    ),
    (
        "apply(made(layer_norm((2, 3))), x)",
        ValueError,
        "LayerNorm expects features of shape (2, 3), but the input's shape is (4, 2): its last axes must be",
    ),
    (
        "apply(made(rms_norm(3)), x)",
        ValueError,
        "RMSNorm expects 3 features, but the input's shape is (4, 2): its last axis must be of size 3",
    ),
    (
        "apply(made(group_norm(2, 4)), images)",
        ValueError,
        "GroupNorm expects 4 channels, but the input's shape is (2, 3, 8, 8): its axis 1 must be of size 4",
    ),
    (
        "apply(made(instance_norm(3)), torch.ones(2, 3))",
        ValueError,
        "InstanceNorm expects channels of more than one number, but the input's shape is (2, 3): a number is",
    ),
    (
        "apply(made(instance_norm(3)), torch.ones(2, 3, 1, 1))",
        ValueError,
        "InstanceNorm expects channels of more than one number, but the input's shape is (2, 3, 1, 1): a",
    ),
    (
        "apply(made(lstm(4, 8)), torch.ones(2, 4))",
        ValueError,
        "LSTM expects an input of shape (B, T, F), but it is of shape (2, 4)",
    ),
    (
        "apply(made(lstm(4, 8)), torch.ones(2, 5, 3))",
        ValueError,
        "LSTM expects 4 features, but the input's shape is (2, 5, 3): its last axis must be of size 4",
    ),
    (
        "apply(made(lstm(4, 8)), tokens)",
        TypeError,
        "the input must be floating-point, not torch.int64: convert it with x.to(torch.float32)",
    ),
    (
        "apply(made(gru(4, 8)), torch.ones(2, 4))",
        ValueError,
        "GRU expects an input of shape (B, T, F), but it is of shape (2, 4)",
    ),
    (
        "apply(made(self_attention(8, 2)), sequence)",
        ValueError,
        "SelfAttention expects 8 features, but the input is of shape (2, 5, 4): its last axis must be of",
    ),
    (
        "apply(made(self_attention(8, 2)), torch.ones(2, 8))",
        ValueError,
        "SelfAttention expects sequences of shape (B, T, F), but the input is of shape (2, 8)",
    ),
    (
        "apply(made(self_attention(4, 2)), (sequence, sequence))",
        TypeError,
        "SelfAttention takes an input that is a tensor, not (float32[2, 5, 4], float32[2, 5, 4])",
    ),
    (
        "apply(made(cross_attention(4, 2)), sequence)",
        ValueError,
        "CrossAttention expects sequences of shape (B, T, F), but the input is of shape (5, 4)",
    ),
    (
        "apply(made(cross_attention(4, 2)), (sequence, torch.ones(3, 5, 4)))",
        ValueError,
        "CrossAttention expects as many sequences in x as in the memory, but x is of shape (2, 5, 4) and the",
    ),
    (
        "apply(made(cross_attention(4, 2)), (sequence, torch.ones(2, 5, 3)))",
        ValueError,
        "CrossAttention expects 4 features, but the memory is of shape (2, 5, 3): its last axis must be of",
    ),
    (
        "apply(made(transformer_block(8, 2)), sequence)",
        ValueError,
        "LayerNorm expects 8 features, but the input's shape is (2, 5, 4): its last axis must be of size 8",
    ),
    (
        "apply(made(decoder(1, decoder_block(4, 2), layer_norm(4))), sequence)",
        ValueError,
        "SelfAttention expects sequences of shape (B, T, F), but the input is of shape (5, 4)",
    ),
    ("apply(made(bilinear(2, 3, 4)), x)", TypeError, "Bilinear takes a pair of tensors, (x1, x2), not float32[4, 2]"),
    (
        "apply(made(bilinear(2, 3, 4)), (x, x))",
        ValueError,
        "Bilinear expects 2 and 3 features, but the shapes of the inputs are (4, 2) and (4, 2)",
    ),
    (
        "apply(made(bilinear(2, 2, 4)), (x, torch.ones(3, 2)))",
        ValueError,
        "Bilinear expects inputs that differ in the last axis alone, but the shapes of the inputs are (4, 2)",
    ),
    (
        "apply(MaxPool2d(2), x)",
        ValueError,
        "MaxPool2d takes an input of shape (B, C, H, W), or (C, H, W) without a batch, not (4, 2)",
    ),
    (
        "apply(MaxPool2d(9), images)",
        ValueError,
        "MaxPool2d(kernel_size=9, stride=9) finds no place for its window in an input of shape (2, 3, 8, 8):",
    ),
    (
        "apply(AveragePool2d(2), torch.ones(3, 8))",
        ValueError,
        "AveragePool2d takes an input of shape (B, C, H, W), or (C, H, W) without a batch, not (3, 8)",
    ),
    (
        "apply(AdaptiveAveragePool2d(1), x)",
        ValueError,
        "AdaptiveAveragePool2d takes an input of shape (B, C, H, W), or (C, H, W) without a batch, not (4,",
    ),
    (
        "apply(GlobalAveragePool(), x)",
        ValueError,
        "GlobalAveragePool takes an input of shape (B, C, ...) with at least one axis after the channels,",
    ),
    (
        "apply(GlobalMaxPool(), torch.ones(2, 3, 0))",
        ValueError,
        "GlobalMaxPool needs at least one element along each axis but that of the batch, but the input's",
    ),
    (
        "apply(Upsample(2), x)",
        ValueError,
        "Upsample(factor=2) takes an input of shape (B, C, *spatial) with one to three spatial axes, not (4,",
    ),
    (
        "apply(Upsample((2, 2)), torch.ones(2, 3, 8))",
        ValueError,
        "Upsample(factor=(2, 2)) takes an input of shape (B, C, *spatial) with 2 spatial axes, as many as it",
    ),
    (
        'apply(Pad((9,), mode="reflect"), torch.ones(2, 3, 8))',
        ValueError,
        "Pad(padding=(9,), mode='reflect') takes its elements from the input, of which an axis is too short:",
    ),
    (
        "apply(MaxPool2d(2, padding='same'), x)",
        ValueError,
        "MaxPool2d takes an input of shape (B, C, H, W), or (C, H, W) without a batch, not (4, 2)",
    ),
    (
        "apply(LPPool2d(9), images)",
        ValueError,
        "LPPool2d(kernel_size=9, stride=9) finds no place for its window in an input of shape (2, 3, 8, 8):",
    ),
    (
        "apply(Unfold(2), x)",
        ValueError,
        "Unfold takes an input of shape (B, C, H, W), or (C, H, W) without a batch, not (4, 2)",
    ),
    (
        "apply(Unfold(9), images)",
        ValueError,
        "Unfold(kernel_size=9) finds no place for its window in an input of shape (2, 3, 8, 8): it expects",
    ),
    (
        "apply(Fold(8, 2), images)",
        ValueError,
        "Fold takes an input of shape (B, C k^2, L), or (C k^2, L) without a batch, not (2, 3, 8, 8)",
    ),
    (
        "apply(Fold(8, 2), torch.ones(2, 12, 48))",
        ValueError,
        "Fold(output_size=8, kernel_size=2) expects 49 places of the window, but the input has 48 places of the",
    ),
    (
        "apply(Fold(8, 2), torch.ones(2, 11, 49))",
        ValueError,
        "Fold(output_size=8, kernel_size=2) expects a size that is a multiple of 4, but the input has one of 11:",
    ),
    (
        "apply(PixelShuffle(2), images)",
        ValueError,
        "PixelShuffle(factor=2) needs a number of channels that is a multiple of 4, but the input's shape is",
    ),
    (
        "apply(PixelUnshuffle(3), images)",
        ValueError,
        "PixelUnshuffle(factor=3) needs a height and a width that are multiples of 3, but the input's shape",
    ),
    (
        "apply(Flatten(3), x)",
        ValueError,
        "Flatten(start=3) needs an input that has this axis, but the input's shape is (4, 2): its number of",
    ),
    ("apply(Reshape((3,)), x)", ValueError, "Reshape((3,)) does not fit the input's shape (4, 2): an example has 2 elements"),
    (
        "apply(Softmax(2), x)",
        ValueError,
        "Softmax(axis=2) needs an input that has this axis, but the input's shape is (4, 2): choose an axis",
    ),
    (
        "apply(Softmax(-3), x)",
        ValueError,
        "Softmax(axis=-3) needs an input that has this axis, but the input's shape is (4, 2): choose an axis",
    ),
    (
        "apply(LogSoftmax(5), x)",
        ValueError,
        "LogSoftmax(axis=5) needs an input that has this axis, but the input's shape is (4, 2): choose an",
    ),
    (
        "apply(GLU(), torch.ones(2, 3))",
        ValueError,
        "GLU halves axis -1, whose size must be even, but the input's shape is (2, 3)",
    ),
    ("apply(Add(), x)", TypeError, "Add takes a pair of tensors, (x1, x2), not float32[4, 2]"),
    ("apply(Add(), (x, torch.ones(3, 2)))", ValueError, "Add takes two tensors of one shape, not of (4, 2) and (3, 2)"),
    (
        "apply(Add(), (x, x, x))",
        TypeError,
        "Add takes a pair of tensors, (x1, x2), not (float32[4, 2], float32[4, 2], float32[4, 2])",
    ),
    (
        "apply(Concatenate(), (x, torch.ones(3, 2)))",
        ValueError,
        "Concatenate(axis=-1) takes two tensors that have this axis, and differ in no other, not of the",
    ),
    (
        "apply(Concatenate(3), (x, x))",
        ValueError,
        "Concatenate(axis=3) takes two tensors that have this axis, and differ in no other, not of the",
    ),
    (
        "apply(parallel(ReLU(), Flatten(0)), x)",
        ValueError,
        "parallel adds the outputs of its branches, which must be of one shape, but they are (4, 2), (8,):",
    ),
    (
        "apply(made(both(linear(2, 3), linear(2, 4))), x)",
        TypeError,
        "both takes a pair of tensors, (x1, x2), not float32[4, 2]",
    ),
    (
        "apply(made(repeat(2, linear(3, 3))), x)",
        ValueError,
        "Linear expects 3 features, but the input's shape is (4, 2): its last axis must be of size 3",
    ),
    (
        "apply(made(tied(embedding(10, 4), ReLU())), x)",
        TypeError,
        "Embedding looks up tokens, integers of dtype int64 or int32, but the input is torch.float32:",
    ),
    (
        "apply(made(over_time(linear(2, 3))), x)",
        ValueError,
        "Linear expects 2 features, but the input's shape is (8,): its last axis must be of size 2",
    ),
    (
        "apply(made(over_time(linear(3, 3))), sequence)",
        ValueError,
        "Linear expects 3 features, but the input's shape is (10, 4): its last axis must be of size 3",
    ),
    (
        "apply(made(on_masked(linear(4, 4))), sequence)",
        TypeError,
        "the input must be Masked(values, mask), not float32[2, 5, 4]",
    ),
    (
        "apply(MeanOfPositions(), x)",
        ValueError,
        "MeanOfPositions expects an input of shape (B, T, F), but it is of shape (4, 2)",
    ),
    (
        "Masked(sequence, torch.ones(2, 5))",
        TypeError,
        "a mask is of dtype torch.bool, True where a position is real, not torch.float32",
    ),
    (
        "Masked(sequence, torch.ones(2, 4, dtype=torch.bool))",
        ValueError,
        "a mask is of shape (B, T), the first two axes of the values (2, 5, 4), not of shape (2, 4)",
    ),
    ("Masked(sequence, [[True]])", TypeError, "Masked's mask must be a tensor, not [[True]]"),
    (
        "apply(with_mask(made(lstm(4, 8)), torch.ones(2, 4, dtype=torch.bool)), sequence)",
        ValueError,
        "LSTM expects an input of shape (2, 4, F) by its mask, but it is of shape (2, 5, 4)",
    ),
    (
        "apply(with_mask(made(self_attention(4, 2)), torch.ones(3, 5, dtype=torch.bool)), sequence)",
        ValueError,
        "SelfAttention has a mask of shape (3, 5), which must be the first two axes of the input's shape (2,",
    ),
    (
        "apply(made(stateful(lstm(4, 8))), sequence)",
        TypeError,
        "the input of a stateful layer is (x, state), a tensor and a state, not float32[2, 5, 4]",
    ),
    (
        "apply(made(stateful(lstm(4, 8))), (sequence, 0))",
        TypeError,
        "the input must be a tensor, not int: write torch.tensor(...)",
    ),
    (
        "apply(Rotary(), torch.ones(2, 5, 3))",
        ValueError,
        "a rotation turns pairs of features: their number must be even, not 3",
    ),
    (
        "apply(made(mixed_precision(linear(3, 3))), x)",
        ValueError,
        "Linear expects 3 features, but the input's shape is (4, 2): its last axis must be of size 3",
    ),
    (
        "apply(made(weight_norm(linear(3, 3))), x)",
        ValueError,
        "Linear expects 3 features, but the input's shape is (4, 2): its last axis must be of size 3",
    ),
    (
        "apply(rekey(Dropout(0.5), keys), x)",
        ValueError,
        "one key is needed, but here are 2, as from split: iterate over them or pick one",
    ),
    (
        "apply(Dropout(0.5, key=key(0)), tokens)",
        TypeError,
        "the input must be floating-point, not torch.int64: convert it with x.to(torch.float32)",
    ),
    (
        "forward(x, model)",
        TypeError,
        "the model is of type Tensor, not a layer or a tuple of layers: float32[4, 2]; the model is the",
    ),
    (
        "forward(model, torch.ones(4, 3))",
        ValueError,
        "Linear expects 2 features, but the input's shape is (4, 3): its last axis must be of size 2",
    ),
)
