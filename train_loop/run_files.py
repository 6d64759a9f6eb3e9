"""The names in a run's folder, and what each holds."""

CONFIG = "config.yaml"  # the resolved settings: a recipe of the same run
METRICS = "metrics.jsonl"  # a row for each window of updates, evaluation and probe
ENVIRONMENT = "environment.json"  # machine, versions and commit of each start
CHECKPOINTS = "checkpoints"
MODEL = "model"  # the final one, with its card
REPORT = "report.html"
PROFILE = "profile"  # traces
HUB = "hub"  # what is being pushed
TENSORBOARD = "tensorboard"
WANDB = "wandb"
TRACKER_ID = "tracker_id"  # by which a resumed run goes on in its trackers
LOCK = ".lock"

# What a new run in the same folder replaces.
CONTENTS = (CONFIG, METRICS, CHECKPOINTS, MODEL, PROFILE, ENVIRONMENT, REPORT, HUB, TENSORBOARD, WANDB, TRACKER_ID)
