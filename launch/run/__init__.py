"""From settings to a finished run.

    settings -> processes -> folder -> corpus -> loaders -> assemble -> summary

`settings` reads the recipe and the command line. `processes` checks the world that
the launcher started, `folder` locks the run's folder, `corpus` opens documents,
tokenizer and blocks, `loaders` makes batches of them. `assemble` joins these with
the model, trains and saves; `signals` stops it early, `hub` pushes what it saves,
`environment` records the machine, and `summary` prints what will be and was done.
"""
