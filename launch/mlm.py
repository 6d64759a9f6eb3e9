"""All commands under one name: ``mlm train --recipe quickstart`` is ``python -m launch.train --recipe quickstart``."""

import difflib
import importlib
import sys

from launch.run.errors import fail

# In the order in which a new user meets them.
_MODULES = ["prepare", "show_batch", "vocabulary", "train", "report", "evaluate", "fill_mask", "score", "generate"]
_MODULES += ["publish", "benchmark"]
COMMANDS = {module.removesuffix("_mask").replace("_", "-"): module for module in _MODULES}  # word -> module of launch


def main() -> None:
    """Run the command that the first word names with the other words; without one, list the commands."""
    word, *others = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help"):
        print("usage: mlm COMMAND ...\n\ncommands (mlm COMMAND --help tells more):")
        for name, module in COMMANDS.items():
            title, *_ = str(importlib.import_module(f"launch.{module}").__doc__).splitlines()
            print(f"  {name:<12}{title.partition(': ``')[0].rstrip('.')}")  # without the example that may follow
        return
    name = word.replace("_", "-")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        fail(f"unknown command {word!r}; " + (f"did you mean {near[0]}?" if near else f"one of: {', '.join(COMMANDS)}"))
    importlib.import_module(f"launch.{COMMANDS[name]}").main(others)


if __name__ == "__main__":
    main()
