"""A streamed run of a mixture, launched as users launch: the same on two processes, and from any checkpoint on."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from tests.conftest import sentences
from tests.launchers import OF_THE_MACHINE, assert_same_run, launcher, rows, run, tiny_run

MAX_STEPS = 8


@pytest.fixture(scope="module")
def words(corpus_file: Path, cache_dir: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """7 parts of one file and 3 of another, in two formats; saved in the middle."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(400)))
    (folder / "b.txt").write_text("\n".join(sentences(80, 30)))
    words = tiny_run(corpus_file, cache_dir, streaming=True, num_streams=4, shuffle_buffer_size=80, save_steps=4)
    words[words.index("--eval_fraction") + 1] = "0.3"
    return [*words, "--mixture", f"{folder / 'a.jsonl'}=0.7", f"{folder / 'b.txt'}=0.3"]


@pytest.fixture(scope="module")
def on_one(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    done = run(launcher("python", 1), *words, "--output_dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert "in 4 logical streams" in done.stdout
    return folder


def _killed_after_4(source: Path, folder: Path) -> None:
    """What a run that was killed later left."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "step-00000008")


def test_tokens_are_counted_by_source(on_one: Path) -> None:
    """8 updates of 10 blocks of 40 tokens."""
    (first, last) = [row["tokens_by_source"] for row in rows(on_one) if "tokens_by_source" in row]
    assert [Path(name).name for name in last] == ["a.jsonl", "b.txt"]
    assert (sum(first.values()), sum(last.values())) == (4 * 10 * 40, 8 * 10 * 40)
    share = next(iter(last.values())) / sum(last.values())
    assert 0.5 < share < 0.9


def test_a_run_on_one_process_goes_on_bit_for_bit(words: list[str], on_one: Path, tmp_path: Path) -> None:
    _killed_after_4(on_one, tmp_path)
    done = run(
        launcher("python", 1), *words, "--output_dir", str(tmp_path), "--resume_from_checkpoint", "latest",
        "--dataloader_num_workers", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "after step 4" in done.stdout
    for a, b in zip(rows(on_one), rows(tmp_path), strict=True):
        assert [(k, v) for k, v in a.items() if k not in OF_THE_MACHINE] == [
            (k, v) for k, v in b.items() if k not in OF_THE_MACHINE
        ]
    for name in (
        "model/model.safetensors",
        *(f"checkpoints/step-00000008/{n}.safetensors" for n in ("data", "optimizer")),
    ):
        assert (tmp_path / name).read_bytes() == (on_one / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two(words: list[str], on_one: Path, tmp_path: Path) -> None:
    _killed_after_4(on_one, tmp_path)
    done = run(launcher("accelerate", 2), *words, "--output_dir", str(tmp_path), "--resume_from_checkpoint", "latest")
    assert done.returncode == 0, done.stderr
    assert "after step 4" in done.stdout
    assert_same_run(on_one, tmp_path)
    data = "checkpoints/step-00000008/data.safetensors"
    assert (tmp_path / data).read_bytes() == (on_one / data).read_bytes()


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(words: list[str], on_one: Path, tmp_path: Path) -> None:
    done = run(launcher("torchrun", 2), *words, "--output_dir", str(tmp_path), "--dataloader_num_workers", "2")
    assert done.returncode == 0, done.stderr
    assert_same_run(on_one, tmp_path)


def _bad_words(words: list[str], tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[str]:
    """Of a run whose tokenizer, evaluation and first updates do not reach the bad row."""
    lines = [json.dumps({"text": text}) for text in sentences(300)]
    (folder / "bad.jsonl").write_text("\n".join([*lines, "[1]", *lines]))
    (folder / "eval.txt").write_text("\n".join(sentences(40)))
    tokenizer.save_pretrained(folder / "tokenizer")
    words = words[: words.index("--mixture")]
    for name, *others in (
        ("--train_tokenizer", "--tokenizer_name_or_path", str(folder / "tokenizer")),
        ("--eval_fraction", "--eval_dataset", str(folder / "eval.txt")),
    ):
        at = words.index(name)
        words[at : at + 2] = others
    return [*words, "--dataset", str(folder / "bad.jsonl"), "--num_streams", "1", "--dataloader_num_workers", "2"]


@pytest.mark.slow
def test_a_bad_row_in_a_worker_ends_the_run_with_one_line(
    words: list[str], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    words = _bad_words(words, tokenizer, tmp_path)
    done = run(launcher("python", 1), *words, "--max_steps", "200", "--output_dir", str(tmp_path / "run"))
    assert done.returncode == 1, done.stderr
    assert "bad.jsonl, line 301: not a JSON object: [1]; --on_bad_row skip" in done.stderr
    assert "Traceback" not in done.stderr
    assert [row["step"] for row in rows(tmp_path / "run")][:2] == [1, 2]


@pytest.mark.slow
def test_bad_rows_that_are_passed_over_are_counted(
    words: list[str], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    words = [*_bad_words(words, tokenizer, tmp_path), "--on_bad_row", "skip", "--max_steps", "40", "--eval_steps", "20"]
    done = run(launcher("python", 1), *words, "--save_steps", "40", "--output_dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    counts = [row["bad_rows"] for row in rows(tmp_path / "run") if "bad_rows" in row]
    assert counts[-1] == 1
