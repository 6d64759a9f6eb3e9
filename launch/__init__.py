"""What a user starts, and the only place that reads the command line and the environment.

Each file here is a command, ``python -m launch.train`` or ``mlm train``. It parses
its words, imports what it needs (`run` builds a training run, `terminal` reads
and prints texts), calls it, and turns a user error into one line and exit code 2.
`benchmarks` measures this project beside others; recipes are files of settings.
"""
