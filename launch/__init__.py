"""The commands, and the only place that reads the command line and the environment.

Each file here is a command: ``mlm train`` is ``launch.train``. It parses its arguments, then imports and
calls what it needs: `run` builds a training run, `terminal` reads and prints texts, `benchmarks` compares this project
with others. A user error is one line and exit code 2. Recipes are files of settings.
`launch.train.train` is the command as a function.
"""
