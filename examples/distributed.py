"""The transformer of shakespeare.py, trained by many processes, each of which reads its part of every batch.

    torchrun --nproc-per-node 2 examples/distributed.py --text FILE

Run by ``python examples/distributed.py``, it is one process, and gives the same numbers up to rounding. With --checkpoints, a
run that was stopped goes on from where it was; ``torchrun --max-restarts 3`` starts it again by itself when a process dies.
With --sharded, each process keeps its rows alone of the parameters and of what the optimizer remembers; the numbers stay.
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

from torch import Tensor
from typer import Option

import fundl
from fundl import Evaluation, Model, distributed
from fundl.distributed import Group
from shakespeare import STORY, VALIDATION_FRACTION, Alphabet, all_pieces, content_of, loss, require_shares, transformer
from shared.options import checkpoints_in, go_through, of_checkpoints, require_positive, start


def sharded(group: Group, characters: int, *, features: int, depth: int, heads: int, dropout: float) -> Model:
    """The same transformer, of whose parameters each process has a part: one block is whole at a time."""
    block = fundl.transformer_block(features, heads, causal=True, rotary=10_000.0, dropout=dropout)
    return fundl.compose(
        distributed.shard(group, fundl.embedding(characters, features)),
        *fundl.encoder(depth, distributed.shard(group, *block), distributed.shard(group, fundl.layer_norm(features))),
        distributed.shard(group, fundl.linear(features, characters)),
    )


def learn(
    group: Group,
    seed: int,
    model: Model,
    texts: tuple[Tensor, Tensor],
    *,
    length: int,
    batch_size: int,
    learning_rate: float,
    epochs: int,
    checkpoints: Path | None,
    can_compile: bool,
    progress: bool,
) -> tuple[Model, fundl.Epoch]:
    """One run of all processes of a group: each of them gets the model, the same to the last bit, and the last epoch."""
    train, validation = (all_pieces(text, length) for text in texts)
    device = train[0].device
    model_key, run_key = fundl.split(fundl.key(seed))
    optimizer = fundl.chain(fundl.clip_by_global_norm(1.0), fundl.adamw(learning_rate, weight_decay=0.1))
    state = fundl.train_state(run_key.to(device), fundl.initialize(model_key, model, device=device), optimizer)

    def validate(model: Model) -> Evaluation:
        return fundl.evaluate(loss, model, fundl.minibatches(None, validation, 64, part=group), over=group)

    with of_checkpoints(checkpoints):
        run = fundl.epochs(
            fundl.train_step(loss, optimizer, over=group),
            state,
            lambda key: fundl.minibatches(key, train, batch_size, part=group),
            count=epochs,
            evaluate=validate,
            checkpoints=checkpoints_in(checkpoints),
            compile="auto" if can_compile else False,
            over=group,
            progress=progress,
        )
    state, history = go_through(run, state, None)
    return state.model, history[-1]


def main(
    *,
    text: Annotated[Path | None, Option(help="A file of text to read, in UTF-8.", show_default="a short story")] = None,
    features: Annotated[int, Option(min=1, help="Of each character, and of each layer.")] = 128,
    depth: Annotated[int, Option(min=1, help="Blocks of the transformer.")] = 4,
    heads: Annotated[int, Option(min=1, help="Of its attention; they share the features evenly.")] = 4,
    dropout: Annotated[float, Option(min=0, max=0.99, help="The rate at which features are dropped in training.")] = 0.1,
    length: Annotated[int, Option(min=1, help="How many characters a piece of the text has.")] = 64,
    batch_size: Annotated[int, Option(min=1, help="How many pieces make a step, of all processes together.")] = 8,
    learning_rate: Annotated[float, Option(help="Of AdamW.")] = 0.002,
    epochs: Annotated[int, Option(min=1, help="How often to go through the text.")] = 8,
    seed: Annotated[int, Option(min=0, max=2**32, help="Decides all that is random: the same seed, the same numbers.")] = 0,
    device: Annotated[
        Literal["cpu"] | None, Option(help="Where to compute; by default each process on a GPU, if there are any.")
    ] = None,
    checkpoints: Annotated[
        Path | None, Option(help="Keep checkpoints in this folder, and go on from the newest that is there.")
    ] = None,
    shard: Annotated[bool, Option("--sharded", help="Keep in each process its part of the parameters alone.")] = False,
    no_jit: Annotated[bool, Option("--no-jit", help="Never compile: very long runs are compiled otherwise.")] = False,
    quiet: Annotated[bool, Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Learn to predict the next character of a text, with many processes."""
    require_positive(learning_rate)
    require_shares("transformer", features, heads)
    content = content_of(STORY if text is None else text, length)
    group, place = distributed.start(device=device)
    alphabet = Alphabet("".join(sorted(set(content))))
    numbers = alphabet.numbers(content).to(place)
    held_out = round(VALIDATION_FRACTION * len(numbers))
    count = len(alphabet.characters)
    if shard:
        model = sharded(group, count, features=features, depth=depth, heads=heads, dropout=dropout)
    else:
        model = transformer(count, features, depth, heads, dropout)
    model, last = learn(
        group,
        seed,
        model,
        (numbers[:-held_out], numbers[-held_out:]),
        length=length,
        batch_size=batch_size,
        learning_rate=learning_rate,
        epochs=epochs,
        checkpoints=checkpoints,
        can_compile=not no_jit,
        progress=not quiet,
    )
    if group.rank == 0:
        assert last.test is not None
        print(f"{len(content):,} characters; {fundl.tree.count(model):,} parameters; processes: {group.size}")
        print(f"train       loss {last.train.loss:.4f} nats per character, in the mean of the last epoch")
        print(f"validation  loss {last.test.loss:.4f} nats per character")


if __name__ == "__main__":
    sys.exit(start(main))
