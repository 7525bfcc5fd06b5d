"""How many of PyTorch's samples of its operators of torch.nn.functional fundl can express: `python -m tests.oracles`.

The samples are counted, and those that are listed with a reason taken off. That the lists are exact is what the tests here
hold, in the PyTorch that constraints.txt names.
"""

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Final

from tests.oracles import test_operator_losses, test_operators
from tests.oracles.database import operators, samples_of
from tests.oracles.listing import is_counted
from tests.oracles.test_operator_losses import LINEAR, LOSSES
from tests.oracles.translations import TRANSLATIONS
from tests.oracles.untranslated import UNTRANSLATED

BEFORE: Final = 3849
"""How many of the same samples were listed, or had no counterpart, before the catalogue of layers and losses grew."""


def counted() -> Mapping[str, int]:
    """The samples of each operator that is one of torch.nn.functional, or has a counterpart."""
    names = [name for name in operators() if name.startswith("nn.functional.") or name in TRANSLATIONS]
    return {name: sum(1 for _ in samples_of(operators()[name])) for name in names}


def reasons(samples: Mapping[str, int]) -> Counter[str]:
    """Why samples are not expressed, and how many are not."""
    found = Counter[str]()
    for listed in (*test_operators.LISTED, *test_operator_losses.LISTED):
        found[listed.reason] += sum(listed.counts.values())
    for reason, names in UNTRANSLATED.items():
        found[reason] += sum(samples[f"nn.functional.{name}"] for name in names)
    return found


def main() -> None:
    warnings.filterwarnings("ignore")  # torch warns of much that its samples do
    samples = counted()
    refused, total = reasons(samples), sum(samples.values())
    open_ones = sum(refused.values())
    translated = sum(name in TRANSLATIONS or name in LOSSES or name in LINEAR for name in samples)
    print(f"{len(samples)} operators, {translated} of which have a counterpart; {total} samples")
    print(f"inexpressible before: {BEFORE}; now: {open_ones}; became expressible: {BEFORE - open_ones}")
    for reason, count in refused.most_common():
        print(f"{count:6}  {reason}")
    if not is_counted():
        print("This is another PyTorch than that of constraints.txt, whose samples the lists count.")


if __name__ == "__main__":
    main()
