"""Compares this project with what people use today, on this machine: ``mlm benchmark``.

    text -> data, train or fill_mask -> measuring

`text` writes the text and the tokenizer that all contenders share. `data` compares with the Hugging Face guide,
`train` runs the `contenders`, `fill_mask` compares with the pipeline. `measuring` starts the processes, and prints
medians and ratios.
"""
