"""A race of recipes: who learns a fixed text best, in a fixed time or with a fixed count of operations?

An entry is a recipe of ``mlm train``, in the folder that is named for the loop that trains it. `text` is what they
learn, by the same tokenizer; all are scored by bits per byte on the same held-out files and masks. ``ledger.jsonl``
holds the results, each with its recipe, seeds and commit, from which it can be raced again.
"""

from launch.benchmarks.race.race import run

__all__ = ["run"]
