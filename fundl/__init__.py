"""Deep learning as pure functions on PyTorch tensors.

    >>> from fundl import ReLU, adam, compose, cross_entropy, disk, fit, initialize, key, linear, minibatches
    >>> from fundl import train_state, train_step
    >>> model, optimizer, data = compose(linear(2, 25), ReLU(), linear(25, 2)), adam(0.01), disk(key(2), 1000)
    >>> state = train_state(key(1), initialize(key(0), model), optimizer)
    >>> step = train_step(cross_entropy, optimizer)
    >>> state, history = fit(step, state, lambda key: minibatches(key, data, 10), epochs=2, progress=False)

Everything that a user needs is here, in one flat namespace; what works on trees, draws random numbers, runs many models at
once or computes shapes is read with the name of its module. `help(fundl.linear)` tells of one name, `help(fundl.tree)` of a
module, and these are where to begin:

    a model             Layer, Model, compose, initialize, apply, vjp, value_and_grad, summary
    its layers          linear, conv2d, embedding, self_attention, lstm, layer_norm, ReLU, Dropout, residual, repeat, ...
    a loss, a metric    Loss, mse, cross_entropy; Metric, accuracy
    an optimizer        Transform, sgd, adam, adamw, chain, clip_by_global_norm, partition, cosine_schedule, ...
    a run               train_state, train_step, fit, epochs, evaluate, Checkpoints, minibatches
    made fast           jit, scan, mixed_precision, fundl.ensemble
    kept                save, load, load_model
    looked after        check_vjp, check_finite, assert_trees_close
    many devices        fundl.distributed
    a text              fundl.language: prefill, step, generate
    the rest            fundl.tree, fundl.random, fundl.shapes, fundl.interop.torch_nn
"""

# fmt: off

import types
import typing

from fundl import (
    distributed as distributed, ensemble as ensemble, language as language, random as random, shapes as shapes, tree as tree,
)
from fundl._common import aliases, suggestions

# Models: layers, and tuples of them, applied and differentiated.
from fundl.layer import Layer as Layer, Loss as Loss, Model as Model, zero_gradient as zero_gradient
from fundl.model import (
    apply as apply, backward as backward, backward_input as backward_input, backward_params as backward_params,
    compose as compose, forward as forward, output_shape as output_shape, value_and_grad as value_and_grad, vjp as vjp,
)
from fundl.shapes import Shape as Shape
from fundl.model_summary import Summary as Summary, summary as summary

# Layers with parameters.
from fundl.layers.linear import Linear as Linear, linear as linear
from fundl.layers.bilinear import Bilinear as Bilinear, bilinear as bilinear
from fundl.layers.convolution import (
    Conv1d as Conv1d, Conv2d as Conv2d, Conv3d as Conv3d, conv1d as conv1d, conv2d as conv2d, conv3d as conv3d,
)
from fundl.layers.transposed_convolution import (
    ConvTranspose1d as ConvTranspose1d, ConvTranspose2d as ConvTranspose2d, ConvTranspose3d as ConvTranspose3d,
    conv_transpose1d as conv_transpose1d, conv_transpose2d as conv_transpose2d, conv_transpose3d as conv_transpose3d,
)
from fundl.layers.embedding import Embedding as Embedding, embedding as embedding
from fundl.layers.positional import (
    LearnedPositions as LearnedPositions, Rotary as Rotary, Rotation as Rotation, SinusoidalPositions as SinusoidalPositions,
    learned_positions as learned_positions, rotation as rotation,
)
from fundl.layers.attention import SelfAttention as SelfAttention, self_attention as self_attention
from fundl.layers.cross_attention import CrossAttention as CrossAttention, cross_attention as cross_attention
from fundl.layers.feed_forward import GLU as GLU, feed_forward as feed_forward, gated_feed_forward as gated_feed_forward
from fundl.layers.transformer import (
    Decoder as Decoder, DecoderBlock as DecoderBlock, decoder as decoder, decoder_block as decoder_block, encoder as encoder,
    transformer_block as transformer_block,
)
from fundl.layers.recurrent.layers import GRU as GRU, LSTM as LSTM, RNN as RNN, gru as gru, lstm as lstm, rnn as rnn
from fundl.layers.recurrent.recurrence import Recurrence as Recurrence
from fundl.layers.recurrent.cells import (
    GRUCell as GRUCell, LSTMCell as LSTMCell, RNNCell as RNNCell, gru_cell as gru_cell, lstm_cell as lstm_cell,
    rnn_cell as rnn_cell,
)
from fundl.layers.recurrent.stateful import LSTMState as LSTMState, Stateful as Stateful, stateful as stateful
from fundl.layers.batch_norm import BatchNorm as BatchNorm, batch_norm as batch_norm
from fundl.layers.batch_statistics import (
    calibrate as calibrate, track as track, with_statistics as with_statistics, without_statistics as without_statistics,
)
from fundl.layers.normalization import (
    LayerNorm as LayerNorm, RMSNorm as RMSNorm, layer_norm as layer_norm, rms_norm as rms_norm,
)
from fundl.layers.group_norm import (
    GroupNorm as GroupNorm, InstanceNorm as InstanceNorm, group_norm as group_norm, instance_norm as instance_norm,
)
from fundl.layers.weight_norm import (
    WeightNorm as WeightNorm, WeightStandardization as WeightStandardization, weight_norm as weight_norm,
    weight_standardization as weight_standardization,
)
from fundl.layers.prelu import PReLU as PReLU, prelu as prelu
from fundl.layers.per_feature import Bias as Bias, Gain as Gain, bias as bias, gain as gain
from fundl.layers.einsum import Einsum as Einsum, einsum as einsum
from fundl.layers.perceptron import mlp as mlp
from fundl.layers.spectral_norm import SpectralNorm as SpectralNorm, refine as refine, spectral_norm as spectral_norm
from fundl.layers.low_rank import LowRank as LowRank, low_rank as low_rank
from fundl.layers.adapted import Adapted as Adapted, Change as Change, adapted as adapted

# Layers without.
from fundl.layers.attend import Attend as Attend, attention as attention
from fundl.layers.activation import (
    CELU as CELU, ELU as ELU, SELU as SELU, Hardtanh as Hardtanh, LeakyReLU as LeakyReLU, ReLU as ReLU, Sigmoid as Sigmoid,
    Softplus as Softplus, Tanh as Tanh,
)
from fundl.layers.self_gated import GELU as GELU, Hardswish as Hardswish, Mish as Mish, SiLU as SiLU
from fundl.layers.shrinking import (
    Hardshrink as Hardshrink, Softshrink as Softshrink, Tanhshrink as Tanhshrink, Threshold as Threshold,
)
from fundl.layers.sigmoids import Hardsigmoid as Hardsigmoid, LogSigmoid as LogSigmoid, Softsign as Softsign
from fundl.layers.softmax import LogSoftmax as LogSoftmax, Softmax as Softmax, Softmin as Softmin
from fundl.layers.maxout import Maxout as Maxout
from fundl.layers.dropout import Dropout as Dropout, rekey as rekey
from fundl.layers.structured_dropout import ChannelDropout as ChannelDropout, DropPath as DropPath
from fundl.layers.noise import AlphaDropout as AlphaDropout, GaussianNoise as GaussianNoise
from fundl.layers.pooling import (
    AveragePool1d as AveragePool1d, AveragePool2d as AveragePool2d, AveragePool3d as AveragePool3d, MaxPool1d as MaxPool1d,
    MaxPool2d as MaxPool2d, MaxPool3d as MaxPool3d,
)
from fundl.layers.lp_pooling import LPPool1d as LPPool1d, LPPool2d as LPPool2d, LPPool3d as LPPool3d
from fundl.layers.adaptive_pooling import (
    AdaptiveAveragePool1d as AdaptiveAveragePool1d, AdaptiveAveragePool2d as AdaptiveAveragePool2d,
    AdaptiveAveragePool3d as AdaptiveAveragePool3d, AdaptiveMaxPool1d as AdaptiveMaxPool1d,
    AdaptiveMaxPool2d as AdaptiveMaxPool2d, AdaptiveMaxPool3d as AdaptiveMaxPool3d,
)
from fundl.layers.global_pooling import GlobalAveragePool as GlobalAveragePool, GlobalMaxPool as GlobalMaxPool
from fundl.layers.patches import (
    ClassToken as ClassToken, FirstPosition as FirstPosition, ToSequence as ToSequence, class_token as class_token,
)
from fundl.layers.resampling import Pad as Pad, Upsample as Upsample
from fundl.layers.folding import Fold as Fold, Unfold as Unfold
from fundl.layers.pixel_shuffle import PixelShuffle as PixelShuffle, PixelUnshuffle as PixelUnshuffle

# Layers made of layers.
from fundl.layers.structure import (
    Checkpoint as Checkpoint, Flatten as Flatten, Identity as Identity, Parallel as Parallel, Reshape as Reshape,
    Residual as Residual, checkpoint as checkpoint, parallel as parallel, residual as residual,
)
from fundl.layers.pairs import (
    Add as Add, Both as Both, Concatenate as Concatenate, Duplicate as Duplicate, Multiply as Multiply, Pipe as Pipe,
    both as both, pipe as pipe,
)
from fundl.layers.fork import Fork as Fork, fork as fork
from fundl.layers.repeated import Repeat as Repeat, repeat as repeat
from fundl.layers.tied import Tied as Tied, tied as tied
from fundl.layers.deferred import Deferred as Deferred, DeferredLogits as DeferredLogits, deferred as deferred
from fundl.layers.shared import Shared as Shared, shared as shared
from fundl.layers.frozen import Frozen as Frozen, frozen as frozen, thaw as thaw
from fundl.layers.mixed_precision import MixedPrecision as MixedPrecision, mixed_precision as mixed_precision
from fundl.layers.over_time import OverTime as OverTime, over_time as over_time
from fundl.layers.masked import (
    FromMasked as FromMasked, LastPosition as LastPosition, Masked as Masked, MeanOfPositions as MeanOfPositions,
    OnMasked as OnMasked, OnMaskedPair as OnMaskedPair, from_masked as from_masked, on_masked as on_masked,
    on_masked_pair as on_masked_pair, with_mask as with_mask,
)
from fundl.layers.gain import gain_of as gain_of

# Derivatives that torch finds: of a function of one's own, as a layer or a loss; and of what layers do, once more.
from fundl.derivatives.function_layer import FunctionLayer as FunctionLayer, layer_from_function as layer_from_function
from fundl.derivatives.function_loss import from_function as from_function
from fundl.derivatives.directional import hvp as hvp, jvp as jvp, linearize as linearize
from fundl.derivatives.per_example import (
    per_example_grads as per_example_grads, per_example_norms as per_example_norms,
)
from fundl.derivatives.jacobians import (
    jacobian as jacobian, jacobian_input as jacobian_input, jacobian_params as jacobian_params,
)

# Parameters from a key.
from fundl.initializers import (
    Dependent as Dependent, Initializer as Initializer, constant as constant,
    kaiming_normal as kaiming_normal, kaiming_uniform as kaiming_uniform, lecun_normal as lecun_normal,
    lecun_uniform as lecun_uniform, normal as normal, ones as ones, orthogonal as orthogonal,
    truncated_normal as truncated_normal, uniform_fan_in as uniform_fan_in, xavier_normal as xavier_normal,
    xavier_uniform as xavier_uniform, zeros as zeros,
)
from fundl.initialization import initialize as initialize
from fundl.fan import Fans as Fans, OwnFans as OwnFans, fans as fans

# Losses, and how good a model is.
from fundl.losses.reduction import Reduction as Reduction
from fundl.losses.regression import huber as huber, log_cosh as log_cosh, mae as mae, mse as mse, pinball as pinball
from fundl.losses.classification import cross_entropy as cross_entropy, nll as nll
from fundl.losses.chunked import chunked_cross_entropy as chunked_cross_entropy
from fundl.losses.probability import (
    binary_cross_entropy as binary_cross_entropy, binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
    kl_divergence as kl_divergence,
)
from fundl.losses.likelihood import gaussian_nll as gaussian_nll, poisson_nll as poisson_nll
from fundl.losses.margins import (
    hinge as hinge, hinge_embedding as hinge_embedding, margin_ranking as margin_ranking,
    multi_class_margin as multi_class_margin, multi_label_margin as multi_label_margin, soft_margin as soft_margin,
    squared_hinge as squared_hinge,
)
from fundl.losses.embeddings import contrastive as contrastive, cosine_embedding as cosine_embedding, triplet as triplet
from fundl.losses.imbalance import binary_focal as binary_focal, dice as dice, focal as focal
from fundl.losses.ctc import ctc as ctc
from fundl.losses.one_by_one import unreduced as unreduced, weighted as weighted
from fundl.weights import weighed_by as weighed_by, weight_of as weight_of
from fundl.metrics.metric import Metric as Metric, metric_of_rows as metric_of_rows, metric_of_sums as metric_of_sums
from fundl.metrics.decisions import accuracy as accuracy, confusion_matrix as confusion_matrix
from fundl.metrics.retrieval import auroc as auroc, f1 as f1, precision as precision, recall as recall
from fundl.metrics.retrieval import top_k_accuracy as top_k_accuracy
from fundl.metrics.errors import mean_absolute_error as mean_absolute_error, r2 as r2
from fundl.metrics.errors import root_mean_squared_error as root_mean_squared_error
from fundl.metrics.language import perplexity as perplexity

# Optimizers: transforms of gradients, which compose, and schedules.
from fundl.optim.transform import State as State, Transform as Transform, apply_updates as apply_updates
from fundl.optim.flat import Tensors as Tensors
from fundl.optim.chain import AnyTransform as AnyTransform, chain as chain
from fundl.optim.rate import Rate as Rate
from fundl.optim.sgd import SGDState as SGDState, TraceState as TraceState, momentum as momentum, sgd as sgd, trace as trace
from fundl.optim.adam import (
    AdamChainState as AdamChainState, AdamState as AdamState, adam as adam, adamw as adamw, scale_by_adam as scale_by_adam,
)
from fundl.optim.lion import (
    LionChainState as LionChainState, LionState as LionState, lion as lion, scale_by_lion as scale_by_lion,
)
from fundl.optim.adagrad import (
    AdagradChainState as AdagradChainState, AdagradState as AdagradState, adagrad as adagrad,
    scale_by_adagrad as scale_by_adagrad,
)
from fundl.optim.rms import RMSPropState as RMSPropState, RMSState as RMSState, rmsprop as rmsprop, scale_by_rms as scale_by_rms
from fundl.optim.decay import (
    DecayState as DecayState, Predicate as Predicate, add_decayed_weights as add_decayed_weights, is_matrix as is_matrix,
)
from fundl.optim.radam import (
    RAdamChainState as RAdamChainState, RAdamState as RAdamState, radam as radam, scale_by_radam as scale_by_radam,
)
from fundl.optim.nadam import (
    NAdamChainState as NAdamChainState, NAdamState as NAdamState, nadam as nadam, scale_by_nadam as scale_by_nadam,
)
from fundl.optim.adamax import (
    AdamaxChainState as AdamaxChainState, AdamaxState as AdamaxState, adamax as adamax, scale_by_adamax as scale_by_adamax,
)
from fundl.optim.adadelta import (
    AdadeltaChainState as AdadeltaChainState, AdadeltaState as AdadeltaState, adadelta as adadelta,
    scale_by_adadelta as scale_by_adadelta,
)
from fundl.optim.adafactor import (
    AdafactorChainState as AdafactorChainState, AdafactorState as AdafactorState, adafactor as adafactor,
    scale_by_adafactor as scale_by_adafactor,
)
from fundl.optim.muon import (
    MuonChainState as MuonChainState, MuonState as MuonState, muon as muon, scale_by_muon as scale_by_muon,
)
from fundl.optim.trust_ratio import (
    LambState as LambState, LarsState as LarsState, TrustRatioState as TrustRatioState, lamb as lamb, lars as lars,
    scale_by_trust_ratio as scale_by_trust_ratio,
)
from fundl.optim._blocks import BlocksState as BlocksState
from fundl.optim.clipping import (
    clip_adaptively as clip_adaptively, clip_by_global_norm as clip_by_global_norm, clip_by_norm as clip_by_norm,
    clip_by_value as clip_by_value,
)
from fundl.optim.centralize import centralize as centralize
from fundl.optim.noise import NoiseState as NoiseState, add_noise as add_noise
from fundl.optim.lookahead import Lookahead as Lookahead, LookaheadState as LookaheadState, lookahead as lookahead
from fundl.optim.scaling import RateState as RateState, scale as scale, scale_by_learning_rate as scale_by_learning_rate
from fundl.optim.ema import EmaState as EmaState, ema as ema
from fundl.optim.schedule_free import (
    ScheduleFreeAdamWState as ScheduleFreeAdamWState, ScheduleFreeState as ScheduleFreeState, schedule_free as schedule_free,
    schedule_free_adamw as schedule_free_adamw,
)
from fundl.optim.search import Search as Search
from fundl.optim.sam import sam as sam
from fundl.optim.lbfgs import LbfgsState as LbfgsState, lbfgs as lbfgs
from fundl.optim.accumulate import Accumulate as Accumulate, AccumulateState as AccumulateState, accumulate as accumulate
from fundl.optim.loss_scale import (
    DynamicLossScale as DynamicLossScale, LossScaleState as LossScaleState, dynamic_loss_scale as dynamic_loss_scale,
    scale_loss as scale_loss,
)
from fundl.optim.adjustable import (
    Adjustable as Adjustable, AdjustableState as AdjustableState, adjustable as adjustable, hyperparameters as hyperparameters,
    with_hyperparameters as with_hyperparameters,
)
from fundl.optim.scheduled import Scheduled as Scheduled, ScheduledState as ScheduledState, scheduled as scheduled
from fundl.optim.partition import Partition as Partition, PartitionState as PartitionState, partition as partition
from fundl.optim.skip_nonfinite import (
    SkipNonfinite as SkipNonfinite, SkipState as SkipState, skip_nonfinite as skip_nonfinite, skipped_steps as skipped_steps,
)
from fundl.optim.plateau import reduce_on_plateau as reduce_on_plateau
from fundl.optim.schedules import (
    Schedule as Schedule, constant_schedule as constant_schedule, cosine_schedule as cosine_schedule,
    exponential_schedule as exponential_schedule, inverse_time_schedule as inverse_time_schedule,
    linear_schedule as linear_schedule, polynomial_schedule as polynomial_schedule, step_schedule as step_schedule,
)
from fundl.optim.cycles import (
    cyclic_schedule as cyclic_schedule, one_cycle_schedule as one_cycle_schedule,
    warm_restarts_schedule as warm_restarts_schedule,
)
from fundl.optim.joined_schedules import (
    interpolated_schedule as interpolated_schedule, join_schedules as join_schedules,
    multiply_schedules as multiply_schedules, piecewise_schedule as piecewise_schedule,
    warmup_cosine_schedule as warmup_cosine_schedule,
)

# Training: a state, a step, and a run.
from fundl.training.step import (
    Report as Report, Step as Step, TrainState as TrainState, train_state as train_state, train_step as train_step,
)
from fundl.training.averages import averaged as averaged
from fundl.training.evaluation import evaluate as evaluate
from fundl.training.batches import Batches as Batches
from fundl.training.history import Epoch as Epoch, Evaluation as Evaluation
from fundl.training.judging import is_best as is_best, is_stalled as is_stalled, table as table
from fundl.training.logs import TensorBoard as TensorBoard, write_csv as write_csv, write_picture as write_picture
from fundl.training.interruption import Interrupted as Interrupted, last_good as last_good
from fundl.training.checkpoints import Checkpoints as Checkpoints
from fundl.training.epochs import Milestone as Milestone, epochs as epochs
from fundl.training.fitting import fit as fit
from fundl.training.finishing import finish as finish

# Data.
from fundl.data import (
    Minibatches as Minibatches, disk as disk, generator as generator, mean_and_std as mean_and_std,
    minibatches as minibatches, one_hot as one_hot, standardize as standardize, train_test_split as train_test_split,
)
from fundl.idx import read_idx as read_idx

# A function, or a whole training step, compiled.
from fundl._compiling.function import Compiled as Compiled, jit as jit
from fundl._compiling.scan import Scanned as Scanned, scan as scan
from fundl._compiling.programs import RetraceError as RetraceError, Trace as Trace
from fundl._compiling.tracing import TraceError as TraceError
from fundl._common.donated import DonatedError as DonatedError

# Trees, keys, files, checks.
from fundl.tree import BUFFER as BUFFER, Record as Record
from fundl.random import Key as Key, fold_in as fold_in, key as key, split as split
from fundl.saving import (
    Saver as Saver, Unmatched as Unmatched, load as load, load_metadata as load_metadata, load_model as load_model,
    save as save, saved_as as saved_as,
)
from fundl.memory import keep_freed_memory as keep_freed_memory
from fundl.checking import check_finite as check_finite
from fundl.testing import assert_trees_close as assert_trees_close, check_vjp as check_vjp

__version__ = "0.1.0"

if not typing.TYPE_CHECKING:  # a checker takes what is imported as itself, and knows that there is no more

    _modules = {name for name, value in globals().items() if isinstance(value, types.ModuleType)}
    __all__ = sorted(
        name
        for name in globals()
        if not name.startswith("_")
        and (name not in _modules or name in {"distributed", "ensemble", "language", "random", "shapes", "tree"})
    )
    _aliases = {name: globals().pop(name) for name in __all__ if aliases.is_alias(globals()[name])}

    def __getattr__(name):
        if name in _aliases:
            return globals().setdefault(name, aliases.documented(name, _aliases[name]))
        ours = suggestions.ours_for(name)
        raise AttributeError(f"module 'fundl' has no attribute {name!r}{f': write {ours}' if ours else ''}", name=name)

    def __dir__():
        return [*__all__, "__version__"]
