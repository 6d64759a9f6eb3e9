"""Entry points: ``python -m launch.train``, ``python -m launch.fill_mask``. Thin; the work is in `data` and `train_loop`."""
