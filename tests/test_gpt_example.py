"""The example of a model of language: it learns, is written and read again, writes, and says what is wrong with an option."""

import re
from pathlib import Path

from fundl import initialize, key
from fundl.interop import hugging_face
from tests.scripts import run, words_of

FEW = ["--epochs", "2", "--steps", "3", "--features", "8", "--depth", "2", "--heads", "2", "--length", "16", "--quiet"]
"""Options for a run that takes no time."""


def test_a_model_learns_is_kept_and_writes(tmp_path: Path) -> None:
    folder = str(tmp_path / "model")
    first = run("gpt", *FEW, "--save", folder, "--prompt", "The ", "--count", "20", "--top-k", "9")
    assert first.returncode == 0, first.stderr
    numbers = r"\d+\.\d{4} nats per token"
    told = rf"3,608 parameters, 2 blocks, 256 tokens\ntrain       loss {numbers}, .*\nvalidation  loss {numbers}\n"
    assert re.match(told, first.stdout), first.stdout
    again = run("gpt", "--folder", folder, "--prompt", "The ", "--count", "20", "--top-k", "9")
    assert again.stdout.partition("\n\nThe ")[2] == first.stdout.partition("\n\nThe ")[2] != ""
    further = ["--epochs", "1", "--steps", "2", "--length", "16", "--quiet", "--count", "0", "--dropout", "0.1"]
    text = tmp_path / "text"
    text.write_text("to be or not to be; " * 30)
    code, words = words_of("gpt", "--folder", folder, "--text", str(text), *further)
    assert code == 0
    assert words[:2] == ["3,608", "parameters,"]
    assert words[-4:] == [words[-4], "nats", "per", "token"]


def test_wrong_options_are_explained(tmp_path: Path) -> None:
    sizes = hugging_face.GPT2(vocabulary=9, positions=8, features=4, blocks=1, heads=1)
    hugging_face.save(tmp_path / "other", initialize(key(0), sizes.model()), sizes)
    sizes = hugging_face.GPT2(vocabulary=256, positions=8, features=4, blocks=1, heads=1)
    hugging_face.save(tmp_path / "bytes", initialize(key(0), sizes.model()), sizes)
    short = tmp_path / "short"
    short.write_text("to be or not to be")
    for options, message in (
        (["--learning-rate", "-1"], "--learning-rate: a learning rate is a number above 0, not -1.0"),
        (["--learning-rate", "1e38", *FEW], "--learning-rate: the model is no longer finite after step"),
        (["--heads", "3"], "--heads: each of 3 heads takes an even number of the features, and 128 cannot be shared so"),
        (["--prompt", ""], "--prompt: a model needs a token to begin with"),
        (["--top-p", "1.5"], "--top-p: a likelihood is above 0 and at most 1, not 1.5"),
        (
            ["--folder", str(tmp_path / "bytes"), "--count", "70"],
            "--count: the model knows 8 positions, and the prompt has 1 of them: write 7 tokens at most",
        ),
        (["--text", "no/such/file"], "--text: no/such/file cannot be read as a text: "),
        (["--text", str(short)], "has 18 tokens, and must have four times as many as a piece of 256"),
        (["--folder", str(tmp_path)], "has no config.json, which says what model it is"),
        (["--folder", str(tmp_path / "other")], "has a model of 9 tokens, but no tokenizer.json that tells them"),
    ):
        code, words = words_of("gpt", *options)
        assert code == 2
        assert message.replace(" ", "") in "".join(words)  # a long path is broken at any place
