"""The optimizers: transforms of gradients, which compose, and schedules of learning rates."""

from fundl.optim.accumulate import Accumulate, AccumulateState, accumulate
from fundl.optim.adagrad import AdagradChainState, AdagradState, adagrad, scale_by_adagrad
from fundl.optim.adam import AdamChainState, AdamState, adam, adamw, scale_by_adam
from fundl.optim.chain import AnyTransform, chain
from fundl.optim.clipping import clip_by_global_norm, clip_by_value
from fundl.optim.decay import DecayState, Predicate, add_decayed_weights, is_matrix
from fundl.optim.ema import Average, Ema, ema
from fundl.optim.flat import Tensors
from fundl.optim.hyperparameters import Rate
from fundl.optim.lion import LionChainState, LionState, lion, scale_by_lion
from fundl.optim.loss_scale import DynamicLossScale, LossScaleState, dynamic_loss_scale, scale_loss
from fundl.optim.rms import RMSPropState, RMSState, rmsprop, scale_by_rms
from fundl.optim.scaling import RateState, scale, scale_by_learning_rate
from fundl.optim.schedules import (
    Schedule,
    constant_schedule,
    cosine_schedule,
    exponential_schedule,
    inverse_time_schedule,
    join_schedules,
    linear_schedule,
    one_cycle_schedule,
    step_schedule,
    warmup_cosine_schedule,
)
from fundl.optim.sgd import SGDState, TraceState, momentum, sgd, trace
from fundl.optim.transform import State, Transform, apply_updates

__all__ = [
    "Accumulate",
    "AccumulateState",
    "AdagradChainState",
    "AdagradState",
    "AdamChainState",
    "AdamState",
    "AnyTransform",
    "Average",
    "DecayState",
    "DynamicLossScale",
    "Ema",
    "LionChainState",
    "LionState",
    "LossScaleState",
    "Predicate",
    "RMSPropState",
    "RMSState",
    "Rate",
    "RateState",
    "SGDState",
    "Schedule",
    "State",
    "Tensors",
    "TraceState",
    "Transform",
    "accumulate",
    "adagrad",
    "adam",
    "adamw",
    "add_decayed_weights",
    "apply_updates",
    "chain",
    "clip_by_global_norm",
    "clip_by_value",
    "constant_schedule",
    "cosine_schedule",
    "dynamic_loss_scale",
    "ema",
    "exponential_schedule",
    "inverse_time_schedule",
    "is_matrix",
    "join_schedules",
    "linear_schedule",
    "lion",
    "momentum",
    "one_cycle_schedule",
    "rmsprop",
    "scale",
    "scale_by_adagrad",
    "scale_by_adam",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_rms",
    "scale_loss",
    "sgd",
    "step_schedule",
    "trace",
    "warmup_cosine_schedule",
]
