"""A folder's splits are those that `datasets` finds, wherever `datasets` takes all of its files, each once."""

from pathlib import Path

import pytest
from datasets.data_files import DataFilesDict, get_data_patterns

from data import DataConfig
from data.documents.sources import find_source

LAYOUTS = [
    ("a.txt", "b.txt", "deep/c.txt"),
    ("train.txt", "test.txt", "validation.txt"),
    ("train-00000-of-00002.txt", "train-00001-of-00002.txt", "dev-00000-of-00001.txt"),
    ("data/train-00000-of-00001-abc.txt", "data/random-00000-of-00001-abc.txt", "data/test-00000-of-00001-abc.txt"),
    ("train/0.txt", "train/1.txt", "val/0.txt", "eval/0.txt"),
    ("my-train-part/a.txt", "my_valid_part/deep/b.txt"),
    ("en/training.txt", "en/testing 1.txt", "de/training2.txt", "de/evaluation.txt"),
    ("latest-news.txt", "devices.txt", "trainer.txt"),
    ("wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"),
    ("train_1.txt", "train2.txt", "en.dev.txt"),
    ("train/dev-blog.txt", "validation/train-news.txt"),
]


@pytest.mark.parametrize("names", LAYOUTS, ids=lambda names: names[0])
def test_splits_are_those_that_datasets_finds(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text\n")
    theirs = DataFilesDict.from_patterns(get_data_patterns(str(tmp_path)), base_path=str(tmp_path))
    wanted = {str(split): sorted(files) for split, files in theirs.items()}
    assert sorted(file for files in wanted.values() for file in files) == sorted(str(tmp_path / name) for name in names)
    assert find_source(str(tmp_path), DataConfig()).files == wanted
