"""Writes the text and the tokenizer that all contenders of a benchmark use."""

import argparse
import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data.blocks.tokenization import open_tokenizer
from data.config import DataConfig
from data.documents.documents import Documents, open_documents

TEXT_COLUMN = "answers.text"  # the column's name in the guide's dataset


def write_text(options: argparse.Namespace, folder: Path, *, by_sentence: bool = False) -> DataConfig:
    """Write JSON lines with the columns of the guide's dataset, and the tokenizer, into a folder.

    A row is a document, or a sentence. Each copy of the text after the first adds a word to every row, so that no
    two are equal. Returns the settings of a run on this text, with the folder as its cache.
    """
    config = DataConfig(
        dataset=options.dataset,
        text_column=options.text_column,
        train_tokenizer=options.tokenizer_name_or_path is None,
        tokenizer_name_or_path=options.tokenizer_name_or_path,
        vocab_size=options.vocab_size,
        cache_dir=options.cache_dir,
    )
    train, held_out = open_documents(config)
    tokenizer = open_tokenizer(config, [*train, *held_out], None)
    tokenizer.save_pretrained(folder / "tokenizer")
    rows = folder / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for copy in range(options.copies):
            ending = f" copy{copy}" if copy else ""
            for source in (*train, *held_out):
                for texts in source.texts():
                    parts = (part for text in texts for part in (text.split(". ") if by_sentence else [text]))
                    file.writelines(json.dumps({"answers": {"text": [part + ending]}}) + "\n" for part in parts)
    return DataConfig(
        dataset=str(rows),
        text_column=TEXT_COLUMN,
        eval_dataset=str(rows),  # so that nothing is held out of training
        max_eval_blocks=1,
        tokenizer_name_or_path=str(folder / "tokenizer"),
        cache_dir=str(folder),
        block_size=options.length,
    )


def open_text(config: DataConfig) -> tuple[list[Documents], PreTrainedTokenizerBase, DataConfig]:
    """The arguments with which a run on this text calls `build_blocks`."""
    documents, _ = open_documents(config)
    return documents, open_tokenizer(config, documents, None), config
