"""What updates the parameters: AdamW, or Muon beside it. `groups` says which parameters go to which."""

from train_loop.optim import BuildOptimizers
from train_loop.optimizers.groups import build_optimizers

OPTIMIZERS: dict[str, BuildOptimizers] = {"adamw": build_optimizers, "muon": build_optimizers}
