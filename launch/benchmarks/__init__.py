"""This project beside what people use today, on this machine: ``python -m launch.benchmark``.

    options -> text -> data, train or fill_mask -> measuring

`options` declares and checks the options. `text` writes the text and the tokenizer
that all contenders share. `data` compares with the way of the `guide`, `train` runs
the `contenders`, `fill_mask` compares with the pipeline. `measuring` starts the
processes, and prints medians and ratios.
"""
