"""The text and the tokenizer that a benchmark runs on, in a folder, for every contender alike."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from data.blocks.tokenization import open_tokenizer
from data.config import DataConfig
from data.documents.documents import Documents, open_documents

TEXT_COLUMN = "answers.text"  # as the rows of the guide's dataset have it


@dataclass(frozen=True)
class Text:
    """Paths of what `write_text` wrote.

    Attributes:
        rows: JSON lines of the guide's shape.
        tokenizer: Its folder.
    """

    rows: Path
    tokenizer: Path

    def config(self, cache_dir: Path, block_size: int) -> DataConfig:
        """Settings of all of this text."""
        return DataConfig(
            dataset=str(self.rows),
            text_column=TEXT_COLUMN,
            eval_dataset=str(self.rows),  # so that nothing is held out of training
            tokenizer_name_or_path=str(self.tokenizer),
            cache_dir=str(cache_dir),
            block_size=block_size,
        )

    def documents(self, config: DataConfig) -> list[Documents]:
        """All of this text."""
        return open_documents(config)[0]


def write_text(options: argparse.Namespace, folder: Path) -> Text:
    """Write rows and tokenizer into a folder.

    Each copy of the text after the first ends its documents with a word of its own, so that no
    two documents are equal.

    Raises:
        ValueError: The text or the tokenizer cannot be had.
    """
    config = DataConfig(
        dataset=options.dataset,
        text_column=options.text_column,
        train_tokenizer=options.tokenizer_name_or_path is None,
        tokenizer_name_or_path=options.tokenizer_name_or_path,
        vocab_size=options.vocab_size,
        cache_dir=str(Path(options.cache_dir).expanduser()),
        block_size=options.length,
    )
    documents = [part for parts in open_documents(config) for part in parts]  # training text and what is held out
    tokenizer = open_tokenizer(config, documents, None)
    tokenizer.save_pretrained(folder / "tokenizer")
    rows = folder / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for copy in range(options.copies):
            ending = f" copy{copy}" if copy else ""
            for source in documents:
                for texts in source.texts():
                    file.writelines(json.dumps({"answers": {"text": [text + ending]}}) + "\n" for text in texts)
    return Text(rows, folder / "tokenizer")
