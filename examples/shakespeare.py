"""A model of a text, one character after the other: what comes next? Then it goes on writing by itself.

    python examples/shakespeare.py --text FILE

The last tenth of the text is for validation. Without --text, the model reads a short story that comes with the example, which
is too small to learn much from.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import attrs
import torch
from torch import Tensor
from typer import BadParameter, Option

import fundl
from fundl import Epoch, Evaluation, Model, random
from fundl.random import Key
from shared.options import (
    checkpoints_in,
    go_through,
    of_checkpoints,
    require_device,
    require_log,
    require_picture,
    require_positive,
    start,
)
from shared.pictures import TEST, TRAIN

if TYPE_CHECKING:
    from collections.abc import Sequence

STORY = Path(__file__).parent / "shared" / "lighthouse.txt"
VALIDATION_FRACTION = 0.1


# --- The text ------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Alphabet:
    """The characters of a text, each of which has a number."""

    characters: str

    def numbers(self, text: str) -> Tensor:
        """The numbers of the characters of a text (N,)."""
        places = {character: place for place, character in enumerate(self.characters)}
        return torch.tensor([places[character] for character in text])

    def text(self, numbers: Tensor) -> str:
        """The text of some numbers."""
        return "".join(self.characters[int(place)] for place in numbers)


@attrs.frozen(eq=False)
class Pieces:
    """Batches of pieces of a text, from anywhere in it: characters (B, T), and those that follow each of them (B, T)."""

    text: Tensor
    starts: Tensor  # (steps, B)
    length: int

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        steps = torch.arange(self.length + 1, device=self.text.device)
        for starts in self.starts:
            pieces = self.text[starts.unsqueeze(1) + steps]  # (B, T + 1)
            yield pieces[:, :-1], pieces[:, 1:]


def random_pieces(key: Key, text: Tensor, length: int, *, batch_size: int, steps: int) -> Pieces:
    """Pieces that a key draws."""
    starts = random.randint(key, (steps, batch_size), low=0, high=len(text) - length)
    return Pieces(text, starts, length)


def all_pieces(text: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """A text, piece after piece, without what is left over: characters (N, T), and those that follow each of them (N, T)."""
    count = (len(text) - 1) // length
    end = count * length
    return text[:end].reshape(count, length), text[1 : end + 1].reshape(count, length)


def loss(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of the characters, in nats, and its gradient: of scores (B, T, C) and characters (B, T)."""
    return fundl.cross_entropy(prediction, target, axis=-1)


# --- The models ----------------------------------------------------------------------------------------------------------


def transformer(characters: int, features: int, depth: int, heads: int, dropout: float) -> Model:
    """Blocks of attention, each position to those before it, and of a network applied to each position."""
    block = fundl.transformer_block(features, heads, causal=True, rotary=10_000.0, dropout=dropout)
    blocks = fundl.encoder(depth, block, fundl.layer_norm(features))
    return fundl.compose(fundl.embedding(characters, features), *blocks, fundl.linear(features, characters))


def lstm(characters: int, features: int, depth: int, dropout: float) -> Model:
    """Layers of LSTM, with dropout behind each."""
    layers = [part for _ in range(depth) for part in (fundl.lstm(features, features), fundl.Dropout(dropout))]
    return fundl.compose(fundl.embedding(characters, features), *layers, fundl.linear(features, characters))


def write(key: Key, model: Model, start: Tensor, count: int, *, length: int, temperature: float) -> Tensor:
    """Characters that a model writes behind a start (N,), each drawn from its prediction.

    Args:
        key: what they are drawn from.
        model: the scores of the next character, at each position.
        start: of the text, at least one character.
        count: how many to write.
        length: how many characters back the model sees.
        temperature: that scores are divided by: near 0 the likeliest character is written, at 1 it is drawn as predicted.
    """
    draws = random.uniform(key, (count, 1), dtype=torch.float64).to(start.device)
    text = start
    for draw in draws:
        scores = fundl.apply(model, text[-length:].unsqueeze(0))[0, -1]
        likelihoods = torch.softmax(scores.to(torch.float64) / temperature, 0).cumsum(0)
        following = torch.searchsorted(likelihoods, draw * likelihoods[-1]).clamp(max=len(scores) - 1)
        text = torch.cat((text, following))
    return text[len(start) :]


# --- A run ---------------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Run:
    """What came out of a run."""

    model: Model
    history: "Sequence[Epoch]"
    write_key: Key


def learn(
    seed: int,
    model: Model,
    texts: tuple[Tensor, Tensor],
    *,
    length: int,
    batch_size: int,
    learning_rate: float,
    epochs: int,
    steps: int,
    checkpoints: Path | None,
    log: Path | None,
    can_compile: bool,
    progress: bool,
) -> Run:
    """One run, which the seed determines to the last bit."""
    train, validation = texts
    device = train.device
    model_key, run_key, write_key = fundl.split(fundl.key(seed), 3)
    total = epochs * steps
    schedule = fundl.warmup_cosine_schedule(
        learning_rate, warmup_steps=max(1, min(100, total // 2)), steps=max(2, total), final=learning_rate / 10
    )
    optimizer = fundl.chain(fundl.clip_by_global_norm(1.0), fundl.adamw(schedule, weight_decay=0.1))
    state = fundl.train_state(run_key.to(device), fundl.initialize(model_key, model, device=device), optimizer)

    def validate(model: Model) -> Evaluation:
        return fundl.evaluate(loss, model, fundl.minibatches(None, all_pieces(validation, length), 64))

    with of_checkpoints(checkpoints):
        run = fundl.epochs(
            fundl.train_step(loss, optimizer),
            state,
            lambda key: random_pieces(key, train, length, batch_size=batch_size, steps=steps),
            count=epochs,
            evaluate=validate,
            checkpoints=checkpoints_in(checkpoints),
            compile="auto" if can_compile else False,
            progress=progress,
        )
    state, history = go_through(run, state, log)
    return Run(state.model, history, write_key)


def main(
    *,
    text: Annotated[Path | None, Option(help="A file of text to read, in UTF-8.", show_default="a short story")] = None,
    model: Annotated[Literal["transformer", "lstm"], Option(help="What reads it.")] = "transformer",
    features: Annotated[int, Option(min=1, help="Of each character, and of each layer.")] = 128,
    depth: Annotated[int, Option(min=1, help="Blocks of the transformer, or layers of the LSTM.")] = 4,
    heads: Annotated[int, Option(min=1, help="Of the transformer's attention; they share the features evenly.")] = 4,
    dropout: Annotated[float, Option(min=0, max=0.99, help="The rate at which features are dropped in training.")] = 0.0,
    length: Annotated[int, Option(min=1, help="How many characters a piece of the text has.")] = 128,
    batch_size: Annotated[int, Option(min=1, help="How many pieces make a step.")] = 8,
    learning_rate: Annotated[float, Option(help="Of AdamW, at its highest; it falls to a tenth along a cosine.")] = 0.002,
    epochs: Annotated[int, Option(min=1, help="How many epochs to learn.")] = 8,
    steps: Annotated[int, Option(min=1, help="How many steps make an epoch, after which to validate.")] = 500,
    prompt: Annotated[str, Option(help="What the model's own text begins with.")] = "\n",
    count: Annotated[int, Option(min=0, help="How many characters the model writes at the end.")] = 500,
    temperature: Annotated[float, Option(help="Near 0 it writes what is likeliest, above 1 it grows wild.")] = 0.8,
    seed: Annotated[int, Option(min=0, max=2**32, help="Decides all that is random: the same seed, the same bits.")] = 0,
    device: Annotated[str, Option(help="Where to compute: cpu, cuda, cuda:1.")] = "cpu",
    checkpoints: Annotated[
        Path | None, Option(help="Keep checkpoints in this folder, and go on from the newest that is there.")
    ] = None,
    log: Annotated[Path | None, Option(help="Write the numbers of each epoch into this file, as CSV.")] = None,
    plot: Annotated[Path | None, Option(help="Draw the learning curve into this file: .png, .pdf or .svg.")] = None,
    no_jit: Annotated[bool, Option("--no-jit", help="Never compile: very long runs are compiled otherwise.")] = False,
    quiet: Annotated[bool, Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Learn to predict the next character of a text, and write some."""
    require_positive(learning_rate)
    require_positive(temperature, "--temperature")
    require_device(device)
    require_picture(plot)
    require_log(log)
    require_shares(model, features, heads)
    content = content_of(STORY if text is None else text, length)
    alphabet = Alphabet("".join(sorted(set(content))))
    require_known(prompt, alphabet)
    numbers = alphabet.numbers(content).to(device)
    held_out = round(VALIDATION_FRACTION * len(numbers))
    sizes = len(alphabet.characters), features, depth
    try:
        run = learn(
            seed,
            transformer(*sizes, heads, dropout) if model == "transformer" else lstm(*sizes, dropout),
            (numbers[:-held_out], numbers[-held_out:]),
            length=length,
            batch_size=batch_size,
            learning_rate=learning_rate,
            epochs=epochs,
            steps=steps,
            checkpoints=checkpoints,
            log=log,
            can_compile=not no_jit,
            progress=not quiet,
        )
    except FloatingPointError as error:
        raise BadParameter(str(error), param_hint="--learning-rate") from error
    last = run.history[-1]
    assert last.test is not None
    print(f"{len(content):,} characters, {len(alphabet.characters)} different; {fundl.tree.count(run.model):,} parameters")
    print(f"train       loss {last.train.loss:.4f} nats per character, in the mean of the last epoch")
    print(f"validation  loss {last.test.loss:.4f} nats per character")
    if plot is not None:
        draw(run, plot)
    if count:
        start = alphabet.numbers(prompt).to(device)
        written = write(run.write_key, run.model, start, count, length=length, temperature=temperature)
        print(f"\n{prompt}{alphabet.text(written)}")


# --- Options that are more than a number ---------------------------------------------------------------------------------


def content_of(file: Path, length: int) -> str:
    """What is in a file, if that is a text that is long enough for pieces of a length."""
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadParameter(f"{file} cannot be read as a text: {error}", param_hint="--text") from error
    if round(VALIDATION_FRACTION * len(content)) <= length:
        raise BadParameter(
            f"{file} has {len(content):,} characters; a tenth of them, for validation, must be more than a piece of {length}."
            " Take a longer text, or a smaller --length",
            param_hint="--text",
        )
    return content


def require_known(prompt: str, alphabet: Alphabet) -> None:
    """Refuse a prompt that a model cannot read."""
    if not prompt:
        raise BadParameter("a model needs a character to begin with", param_hint="--prompt")
    if unknown := sorted(set(prompt) - set(alphabet.characters)):
        raise BadParameter(f"there is no {unknown[0]!r} in the text, and the model knows none", param_hint="--prompt")


def require_shares(model: str, features: int, heads: int) -> None:
    """Refuse heads that cannot share the features."""
    if model == "transformer" and features % (2 * heads):
        raise BadParameter(
            f"each of {heads} heads takes an even number of the features, and {features} cannot be shared so",
            param_hint="--heads",
        )


# --- The picture ---------------------------------------------------------------------------------------------------------


def draw(run: Run, file: Path) -> None:
    """Draw how the model learned."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # those who draw nothing need not wait for it, nor have it

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [epoch.step for epoch in run.history]
    axes.plot(steps, [epoch.train.loss for epoch in run.history], color=TRAIN, marker="o", label="train, mean of the epoch")
    axes.plot(steps, [epoch.test.loss for epoch in run.history if epoch.test], color=TEST, marker="o", label="validation")
    axes.set(title="Learning curve", xlabel="step", ylabel="loss [nats per character]")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    sys.exit(start(main))
