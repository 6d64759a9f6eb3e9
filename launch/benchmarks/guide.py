"""The code of the Hugging Face guide, from texts to blocks."""

from pathlib import Path
from typing import Any

import datasets
from transformers import AutoTokenizer

from launch.benchmarks.text import TEXT_COLUMN, Text


def load(text: Text, cache_dir: Path) -> datasets.Dataset:
    """Load the rows and flatten them, as the guide does."""
    loaded = datasets.load_dataset("json", data_files=str(text.rows), split="train", cache_dir=str(cache_dir))
    return loaded.flatten()


def tokenize_and_group(
    rows: datasets.Dataset, tokenizer_folder: Path, block_size: int, num_proc: int | None
) -> datasets.Dataset:
    """Tokenize and group in the guide's two passes of `map`."""
    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    # As RoBERTa's tokenizer. The base class would add token types, which no contender uses.
    tokenizer.model_input_names = ["input_ids", "attention_mask"]

    def preprocess_function(examples: dict[str, Any]) -> Any:
        return tokenizer([" ".join(x) for x in examples[TEXT_COLUMN]])

    def group_texts(examples: dict[str, Any]) -> dict[str, Any]:
        concatenated_examples: dict[str, Any] = {k: sum(examples[k], []) for k in examples}  # noqa: RUF017
        total_length = len(concatenated_examples[next(iter(examples))])
        if total_length >= block_size:
            total_length = (total_length // block_size) * block_size
        return {
            k: [t[i : i + block_size] for i in range(0, total_length, block_size)]
            for k, t in concatenated_examples.items()
        }

    tokenized = rows.map(preprocess_function, batched=True, num_proc=num_proc, remove_columns=rows.column_names)
    return tokenized.map(group_texts, batched=True, num_proc=num_proc)
