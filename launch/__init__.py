"""Entry points, as in ``python -m launch.train``. Thin: the work is in `data` and `train_loop`."""
