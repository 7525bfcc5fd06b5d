"""Many processes, each with a device of its own, that compute as one.

Each process runs the same program; `start` has them meet, and gives the group of all. What is said between them are pure
functions of trees, which a compiled function can have inside. A step of training over a group gives the same numbers as
one process that has the whole batch:

    from fundl import distributed

    group, device = distributed.start()
    model = initialize(key(0), compose(linear(784, 512), ReLU(), linear(512, 10)), device=device)
    optimizer = adamw(1e-3)
    state = train_state(key(1, device=device), model, optimizer)
    step = train_step(cross_entropy, optimizer, over=group)
    state, history = fit(step, state, lambda key: minibatches(key, data, 256, part=group), epochs=10, over=group)

and is started, with 8 processes, by ``torchrun --nproc-per-node 8 train.py``.
"""

import types
import typing

from fundl.collectives import (
    all_gather as all_gather,
    all_max as all_max,
    all_sum as all_sum,
    broadcast as broadcast,
    receive as receive,
    send as send,
    Receiving as Receiving,
    Sending as Sending,
    require_same as require_same,
    scatter_sum as scatter_sum,
)
from fundl.distributed.moments import ShardedState as ShardedState, ShardMoments as ShardMoments, shard_moments as shard_moments
from fundl.distributed.pipeline import pipeline_step as pipeline_step
from fundl.distributed.staged_evaluation import pipeline_evaluate as pipeline_evaluate
from fundl.distributed.planning import Plan as Plan, Scheme as Scheme, plan as plan
from fundl.distributed.schedules import (
    Schedule as Schedule,
    Task as Task,
    Timeline as Timeline,
    one_forward_one_backward as one_forward_one_backward,
    simulate as simulate,
    zero_bubble as zero_bubble,
)
from fundl.distributed.staging import Elsewhere as Elsewhere, stages as stages, unstage as unstage
from fundl.distributed.sharding import Sharded as Sharded, shard as shard, unshard as unshard
from fundl.distributed.split_losses import split_cross_entropy as split_cross_entropy
from fundl.distributed.tensor_layers import Joined as Joined, Spread as Spread
from fundl.distributed.splitting import (
    TensorParallel as TensorParallel,
    split_attention as split_attention,
    split_embedding as split_embedding,
    split_feed_forward as split_feed_forward,
    split_output as split_output,
    tensor_parallel as tensor_parallel,
)
from fundl.distributed.tied_parts import SplitTied as SplitTied, split_tied as split_tied
from fundl.groups import Group as Group, grid as grid, group_of as group_of, start as start

if not typing.TYPE_CHECKING:  # a checker takes what is imported as itself
    __all__ = sorted(
        name for name, value in globals().items() if not name.startswith("_") and not isinstance(value, types.ModuleType)
    )

    def __dir__():
        return __all__
