"""Tokens that a model writes: fundl, eager and compiled, beside transformers with its cache, for the same GPT-2.

    python -m benchmarks.writing
    python -m benchmarks.writing --features 384 --blocks 6 --count 64

Both sides have the same weights and take the likeliest token, so that they write the same; where transformers is not installed,
its place is taken by fundl without a cache. A ratio is the median over the turns of a side's seconds over those of fundl's
compiled side: above 1, that is quicker. What is measured is a whole text, its prompt included.
"""

import importlib
import importlib.util
import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.turns import Side, machine, seconds
from fundl import apply, initialize, key, language, random
from fundl.interop import hugging_face
from fundl.interop.hugging_face.gpt2 import GPT2Model


def main(
    *,
    features: Annotated[int, typer.Option(min=1, help="Of each token.")] = 128,
    blocks: Annotated[int, typer.Option(min=1, help="How many.")] = 4,
    heads: Annotated[int, typer.Option(min=1, help="Of each attention.")] = 4,
    vocabulary: Annotated[int, typer.Option(min=1, help="How many tokens there are.")] = 256,
    prompt: Annotated[int, typer.Option(min=1, help="How many tokens are there at first.")] = 16,
    count: Annotated[int, typer.Option(min=1, help="How many are written.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="How often the sides take turns.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
) -> None:
    """Print milliseconds for each token, and ratios."""
    torch.set_num_threads(threads)
    sizes = hugging_face.GPT2(vocabulary, prompt + count, features, blocks, heads)
    model = initialize(key(0), sizes.model())
    text = random.randint(key(1), (1, prompt), low=0, high=vocabulary)
    sides: dict[str, Side] = {
        "fundl, compiled": lambda: language.generate(key(2), model, text, count, temperature=0, compile=True),
        "fundl, eager": lambda: language.generate(key(2), model, text, count, temperature=0, compile=False),
        **others(model, sizes, text, count),
    }
    written = [run() for run in sides.values()]  # compiles, too
    same = all(isinstance(one, Tensor) and torch.equal(one, written[0]) for one in written if one is not None)  # type: ignore[arg-type]  # a tensor is
    turns = [[seconds(run) for run in sides.values()] for _ in range(rounds)]
    print(f"{machine()}; {threads} thread(s); all write the same: {same}")
    for place, name in enumerate(sides):
        ratio = statistics.median(turn[place] / turn[0] for turn in turns)
        print(f"{name:24} {1000 * statistics.median(turn[place] for turn in turns) / count:8.3f} ms a token, ratio {ratio:.2f}")


def others(model: GPT2Model, sizes: hugging_face.GPT2, text: Tensor, count: int) -> dict[str, Side]:
    """The sides beside fundl's own."""
    if importlib.util.find_spec("transformers") is None:
        return {"fundl, without a cache": lambda: again(model, text, count)}
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        hugging_face.save(Path(folder), model, sizes)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "use_cache": True, "pad_token_id": 0}

    def write() -> Tensor:
        with torch.inference_mode():
            tokens: Tensor = theirs.generate(text, attention_mask=torch.ones_like(text), **options)
        return tokens[:, text.shape[1] :].clone()

    return {"transformers": write}


def again(model: GPT2Model, text: Tensor, count: int) -> Tensor:
    """The likeliest tokens, with all of the text run for each."""
    for _ in range(count):
        text = torch.cat((text, apply(model, text)[:, -1:].argmax(-1)), 1)
    return text[:, -count:]


if __name__ == "__main__":
    typer.run(main)
