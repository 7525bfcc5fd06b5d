"""A model of language that learns from a text, or is read from a folder of Hugging Face's, GPT-2 or Llama; then it writes.

    python examples/gpt.py --text FILE --save FOLDER
    python examples/gpt.py --folder FOLDER --prompt "The sea"

Without --folder, a small Llama learns from the bytes of a text; --save writes it as transformers reads it. With --folder, the
model that is there is read, and goes on learning if there is a --text, too. A folder with a tokenizer.json is of a model of its
tokens, which takes the package tokenizers; any other must be of a model of bytes.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Protocol

import attrs
import torch
from torch import Tensor
from typer import BadParameter, Option

import fundl
from fundl import Epoch, Evaluation, Model, language
from fundl.interop import hugging_face
from fundl.interop.hugging_face import GPT2, Llama
from shakespeare import STORY, VALIDATION_FRACTION, all_pieces, random_pieces
from shared.options import checkpoints_in, go_through, of_checkpoints, require_device, require_log, require_positive, start

# --- Tokens --------------------------------------------------------------------------------------------------------------


class Tokens(Protocol):
    """What makes tokens of a text, and texts of tokens."""

    def numbers(self, text: str) -> Tensor:
        """The tokens of a text (N,)."""
        ...

    def text(self, tokens: Tensor) -> str:
        """The text of some tokens."""
        ...


class Bytes:
    """The bytes of a text in UTF-8: 256 tokens."""

    def numbers(self, text: str) -> Tensor:
        """The tokens of a text (N,)."""
        return torch.tensor([*text.encode()])

    def text(self, tokens: Tensor) -> str:
        """The text of some tokens; what is no text is marked."""
        return bytes(int(token) for token in tokens).decode(errors="replace")


class Words:
    """The tokens of a tokenizer.json."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415  # those who have no such file need not have it

        self._tokenizer = Tokenizer.from_file(str(file))

    def numbers(self, text: str) -> Tensor:
        """The tokens of a text (N,)."""
        return torch.tensor(self._tokenizer.encode(text).ids)

    def text(self, tokens: Tensor) -> str:
        """The text of some tokens."""
        return self._tokenizer.decode([int(token) for token in tokens])


def tokens_in(folder: Path, sizes: GPT2 | Llama) -> Tokens:
    """The tokens of the model in a folder."""
    file = folder / "tokenizer.json"
    if not file.exists():
        if sizes.vocabulary != 256:
            raise BadParameter(
                f"{folder} has a model of {sizes.vocabulary:,} tokens, but no tokenizer.json that tells them",
                param_hint="--folder",
            )
        return Bytes()
    if importlib.util.find_spec("tokenizers") is None:
        raise BadParameter(f"{file} takes a package to read: pip install tokenizers", param_hint="--folder")
    return Words(file)


# --- Learning ------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Plan:
    """How a model learns."""

    length: int
    batch_size: int
    learning_rate: float
    epochs: int
    steps: int


def learned(
    seed: int,
    model: Model,
    tokens: Tensor,
    plan: Plan,
    *,
    checkpoints: Path | None,
    log: Path | None,
    can_compile: bool,
    progress: bool,
) -> tuple[Model, Epoch]:
    """The model after a run, which the seed determines to the last bit, and its last epoch."""
    held_out = max(round(VALIDATION_FRACTION * len(tokens)), plan.length + 1)
    train, validation = tokens[:-held_out], tokens[-held_out:]
    total = plan.epochs * plan.steps
    schedule = fundl.warmup_cosine_schedule(
        plan.learning_rate, warmup_steps=max(1, min(100, total // 2)), steps=max(2, total), final=plan.learning_rate / 10
    )
    optimizer = fundl.chain(fundl.clip_by_global_norm(1.0), fundl.adamw(schedule, beta2=0.95, weight_decay=0.1))
    # logits are left to the loss: of GPT-2's 50,257 tokens they would be most of the memory of a step
    state = fundl.train_state(fundl.key(seed, device=tokens.device), fundl.deferred(model), optimizer)

    def validate(model: fundl.Deferred) -> Evaluation:
        return fundl.evaluate(
            fundl.chunked_cross_entropy, model, fundl.minibatches(None, all_pieces(validation, plan.length), plan.batch_size)
        )

    with of_checkpoints(checkpoints):
        run = fundl.epochs(
            fundl.train_step(fundl.chunked_cross_entropy, optimizer),
            state,
            lambda key: random_pieces(key, train, plan.length, batch_size=plan.batch_size, steps=plan.steps),
            count=plan.epochs,
            evaluate=validate,
            checkpoints=checkpoints_in(checkpoints),
            compile="auto" if can_compile else False,
            progress=progress,
        )
    state, history = go_through(run, state, log)
    return state.model.layers[0], history[-1]


# --- The program ---------------------------------------------------------------------------------------------------------


def main(
    *,
    folder: Annotated[Path | None, Option(help="Read the model that is in this folder of Hugging Face's.")] = None,
    text: Annotated[Path | None, Option(help="A file of text to learn from, in UTF-8.", show_default="a short story")] = None,
    save: Annotated[Path | None, Option(help="Write the model into this folder, as transformers reads it.")] = None,
    features: Annotated[int, Option(min=1, help="Of each token, in a model that begins anew.")] = 128,
    depth: Annotated[int, Option(min=1, help="Blocks, likewise.")] = 4,
    heads: Annotated[int, Option(min=1, help="Of attention, likewise; they share the features evenly.")] = 4,
    length: Annotated[int, Option(min=2, help="How many tokens the model reads at most: a piece of the text to learn.")] = 256,
    batch_size: Annotated[int, Option(min=1, help="How many pieces make a step.")] = 8,
    dropout: Annotated[float, Option(min=0, max=0.99, help="The rate at which features are dropped in training.")] = 0.0,
    learning_rate: Annotated[float, Option(help="Of AdamW, at its highest; it falls to a tenth along a cosine.")] = 0.002,
    epochs: Annotated[int, Option(min=0, help="How many epochs to learn.")] = 8,
    steps: Annotated[int, Option(min=1, help="How many steps make an epoch, after which to validate.")] = 200,
    prompt: Annotated[str, Option(help="What the model's own text begins with.")] = "\n",
    count: Annotated[int, Option(min=0, help="How many tokens the model writes at the end.")] = 200,
    temperature: Annotated[float, Option(min=0, help="At 0 it writes what is likeliest, above 1 it grows wild.")] = 0.8,
    top_k: Annotated[int | None, Option(min=1, help="Draw from so many of the likeliest tokens.", show_default="all")] = None,
    top_p: Annotated[
        float | None, Option(help="Draw from the likeliest tokens that have this likelihood together.", show_default="all")
    ] = None,
    seed: Annotated[int, Option(min=0, max=2**32, help="Decides all that is random: the same seed, the same bits.")] = 0,
    device: Annotated[str, Option(help="Where to compute: cpu, cuda, cuda:1.")] = "cpu",
    checkpoints: Annotated[
        Path | None, Option(help="Keep checkpoints in this folder, and go on from the newest that is there.")
    ] = None,
    log: Annotated[Path | None, Option(help="Write the numbers of each epoch into this file, as CSV.")] = None,
    no_jit: Annotated[bool, Option("--no-jit", help="Never compile: what runs very often is compiled otherwise.")] = False,
    quiet: Annotated[bool, Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Learn to predict the next token of a text, or read a model that has, and write some."""
    require_positive(learning_rate)
    require_device(device)
    require_log(log)
    if top_p is not None and not 0 < top_p <= 1:
        raise BadParameter(f"a likelihood is above 0 and at most 1, not {top_p}", param_hint="--top-p")
    if folder is None:
        model, sizes, tokens = begun(begun_sizes(features, depth, heads), seed, dropout, device)
    else:
        model, sizes, tokens = read(folder, dropout, device)
    beginning = tokens.numbers(prompt).to(device)
    require_room(sizes, len(beginning), count)
    last = None
    longest = min(length, sizes.positions) if isinstance(sizes, GPT2) else length
    if (folder is None or text is not None) and epochs:
        numbers = numbers_of(STORY if text is None else text, tokens, longest).to(device)
        plan = Plan(longest, batch_size, learning_rate, epochs, steps)
        try:
            model, last = learned(
                seed, model, numbers, plan, checkpoints=checkpoints, log=log, can_compile=not no_jit, progress=not quiet
            )
        except FloatingPointError as error:
            raise BadParameter(str(error), param_hint="--learning-rate") from error
    print(f"{fundl.tree.count(model):,} parameters, {sizes.blocks} blocks, {sizes.vocabulary:,} tokens")
    if last is not None and last.test is not None:
        print(f"train       loss {last.train.loss:.4f} nats per token, in the mean of the last epoch")
        print(f"validation  loss {last.test.loss:.4f} nats per token")
    if save is not None:
        hugging_face.save(save, model, sizes)
    if count:
        written = language.generate(
            fundl.fold_in(fundl.key(seed), 1),
            model,
            beginning,
            count,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            compile="auto" if not no_jit else False,
        )
        print(f"\n{prompt}{tokens.text(written)}")


# --- Options that are more than a number ---------------------------------------------------------------------------------


def begun_sizes(features: int, depth: int, heads: int) -> Llama:
    """The sizes of a model of bytes that begins anew."""
    if features % (2 * heads):
        raise BadParameter(
            f"each of {heads} heads takes an even number of the features, and {features} cannot be shared so",
            param_hint="--heads",
        )
    hidden = 8 * features // 3  # three matrices of which are as large as two of 4 times the features
    return Llama(vocabulary=256, features=features, hidden=hidden, blocks=depth, heads=heads, is_tied=True)


def begun(sizes: Llama, seed: int, dropout: float, device: str) -> tuple[Model, GPT2 | Llama, Tokens]:
    """A model of bytes that begins anew, its sizes and its tokens."""
    return fundl.initialize(fundl.key(seed), sizes.model(dropout=dropout), device=device), sizes, Bytes()


def read(folder: Path, dropout: float, device: str) -> tuple[Model, GPT2 | Llama, Tokens]:
    """The model in a folder, in float32, its sizes and its tokens."""
    try:
        model, sizes = hugging_face.load(folder, dropout=dropout, dtype=torch.float32, device=device)
    except (FileNotFoundError, ValueError) as error:
        raise BadParameter(str(error), param_hint="--folder") from error
    return model, sizes, tokens_in(folder, sizes)


def numbers_of(file: Path, tokens: Tokens, length: int) -> Tensor:
    """The tokens of a file, if that is a text that is long enough for pieces of a length."""
    try:
        numbers = tokens.numbers(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadParameter(f"{file} cannot be read as a text: {error}", param_hint="--text") from error
    if len(numbers) < 4 * (length + 1):
        raise BadParameter(
            f"{file} has {len(numbers):,} tokens, and must have four times as many as a piece of {length}: take a longer text,"
            " or a smaller --length",
            param_hint="--text",
        )
    return numbers


def require_room(sizes: GPT2 | Llama, given: int, count: int) -> None:
    """Refuse to begin with nothing, or to write more than a model has positions for."""
    if not given:
        raise BadParameter("a model needs a token to begin with", param_hint="--prompt")
    if isinstance(sizes, GPT2) and given + count > sizes.positions:
        raise BadParameter(
            f"the model knows {sizes.positions:,} positions, and the prompt has {given:,} of them: write"
            f" {max(sizes.positions - given, 0):,} tokens at most",
            param_hint="--count",
        )


if __name__ == "__main__":
    sys.exit(start(main))
