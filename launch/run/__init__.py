"""Builds a training run from its settings, trains, and reports the result.

    settings -> processes -> folder -> corpus -> loaders -> assemble -> training -> summary

`settings` reads the recipe and the command line. `processes` checks what the launcher started, `folder` locks the run's
folder, `corpus` opens documents, tokenizer and blocks, `loaders` makes batches of them, and `assemble` joins these with
the model. `training` calls them and trains; `signals` stops it early, `hub` pushes what it saves, `environment` records
the machine, and `summary` prints the plan and the result.
"""
