"""A race of recipes: who learns a fixed text best, in a fixed time or with a fixed count of operations?

An entry is a recipe of ``mlm train``, in the folder that is named for the loop that trains it. `text` is what they
learn; all are scored on the same held-out files and masks, by bits per byte, so that each may have a tokenizer of its
own. ``ledger.jsonl`` holds the results, each with its recipe, seeds and commit, from which it can be raced again.
"""

from launch.benchmarks.race.race import run

__all__ = ["run"]
