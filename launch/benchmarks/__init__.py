"""Compares this project with what people use today, on this machine: ``mlm benchmark``.

    text -> data, train, documents or fill_mask -> measuring;    race

`text` writes the text and the tokenizer that all contenders share. `data` compares with the Hugging Face guide,
`train` with Trainer and a plain Accelerate loop, `documents` texts side by side with padded ones, and `fill_mask` with
the pipeline. `measuring` starts the processes, and prints medians and ratios. `race` has a text and a table of its own.
"""
