"""Writes the text and the tokenizer that all contenders of a benchmark use."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from data.batches.collator import Collator
from data.batches.loader import MicroBatches, TrainLoader
from data.batches.order import Order
from data.blocks.store import TokenBlocks
from data.blocks.tokenization import open_tokenizer
from data.blocks.vocabulary import vocabulary
from data.config import DataConfig
from data.documents.documents import Documents, open_documents

MLM_PROBABILITY = 0.15
TEXT_COLUMN = "answers.text"  # the column's name in the guide's dataset


@dataclass(frozen=True)
class Text:
    """The files that `write_text` wrote.

    Attributes:
        rows: JSON lines with the columns of the guide's dataset.
        tokenizer: The tokenizer's folder.
    """

    rows: Path
    tokenizer: Path

    def open(self, cache_dir: Path, block_size: int) -> tuple[list[Documents], PreTrainedTokenizerBase, DataConfig]:
        """The arguments with which a run on this text calls `build_blocks`."""
        config = DataConfig(
            dataset=str(self.rows),
            text_column=TEXT_COLUMN,
            eval_dataset=str(self.rows),  # so that nothing is held out of training
            tokenizer_name_or_path=str(self.tokenizer),
            cache_dir=str(cache_dir),
            block_size=block_size,
        )
        documents, _ = open_documents(config)
        return documents, open_tokenizer(config, documents, None), config


def write_text(options: argparse.Namespace, folder: Path) -> Text:
    """Write rows and tokenizer into a folder.

    Each copy of the text after the first adds a word to every document, so that no two documents are equal.

    Raises:
        ValueError: The text or the tokenizer cannot be opened.
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
                    file.writelines(json.dumps({"answers": {"text": [text + ending]}}) + "\n" for text in texts)
    return Text(rows, folder / "tokenizer")


def train_loader(
    blocks: TokenBlocks, tokenizer: PreTrainedTokenizerBase, batch_size: int, device: torch.device
) -> TrainLoader:
    """This project's loader of masked batches, in one process, each batch one micro-batch."""
    return TrainLoader(
        MicroBatches(blocks, Collator(vocabulary(tokenizer), seed=0, pad_token_id=tokenizer.pad_token_id)),
        Order((len(blocks),), (1.0,), batch_size, seed=0),
        mlm_probability=lambda step: MLM_PROBABILITY,
        micro_batch_size=batch_size,
        rank=0,
        num_processes=1,
        device=device,
        config=DataConfig(),
    )
