"""``mlm evaluate``: the numbers of a run's own evaluation, and those that compare models of different tokenizers."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from data.batches.masking import choose_token, uniform
from data.blocks.tokenization import train_bpe
from launch.evaluate import main
from tests.conftest import sentences
from tests.launchers import launcher, run
from tests.models import tiny_model
from train_loop import TextScorer

Train = Callable[..., list[dict[str, Any]]]


def _rows(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    main([*words, "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_model_gets_the_numbers_of_the_run_own_evaluation(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, last = [row for row in train(tmp_path / "run") if "eval_loss" in row]
    (row,) = _rows(capsys, "--model", str(tmp_path / "run"), "--recipe", str(tmp_path / "run" / "config.yaml"))
    assert row["loss"] == pytest.approx(last["eval_loss"], rel=1e-7)
    assert row["bits_per_byte"] == pytest.approx(last["eval_bits_per_byte"], rel=1e-7)
    assert (row["accuracy"], row["masked_tokens"]) == (last["eval_accuracy"], last["eval_num_masked_tokens"])


def _other_tokenizer(folder: Path) -> Path:
    """A RoBERTa as `model_folder`, with another tokenizer."""
    backend = train_bpe([sentences(50)], 262)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    tiny_model("roberta").save_pretrained(folder)
    return folder


def test_bits_per_byte_of_two_tokenizers_by_hand(
    tmp_path: Path, model_folder: Path, cache_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [*sentences(30), "naïve Übergrößen"]  # two bytes a letter here and there
    text = tmp_path / "text.txt"
    text.write_text("\n".join(texts))
    models = [model_folder, _other_tokenizer(tmp_path / "other")]
    words = ("--text", str(text), "--cache_dir", cache_dir, "--block_size", "16", "--last_block", "pad", "--pll", "5")
    rows = _rows(capsys, "--model", *map(str, models), *words)
    found = []
    for folder, row in zip(models, rows, strict=True):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForMaskedLM.from_pretrained(folder).eval()
        ids = np.array([token for ids in tokenizer(texts)["input_ids"] for token in ids])
        is_special = np.isin(ids, tokenizer.all_special_ids)
        num_bytes = sum(len(text.encode()) for text in texts)
        loss_sum = num_masked = 0
        for number, start in enumerate(range(0, len(ids), 16)):
            block = np.full((1, 16), tokenizer.pad_token_id)
            block[0, : len(ids[start : start + 16])] = ids[start : start + 16]
            allowed = ~np.isin(block, tokenizer.all_special_ids)
            draws = uniform(np.array([number]), 16, 0, np.array([0]))
            positions, _ = choose_token(block, allowed, None, draws, 0.15)
            num_masked += len(positions)
        assert row["masked_tokens"] == num_masked
        bits = row["loss"] / math.log(2) * (~is_special).sum() / num_bytes
        assert row["bits_per_byte"] == pytest.approx(bits, rel=1e-9)
        scored = 0.0
        for text_ids in tokenizer(texts[:5])["input_ids"]:  # a plain loop over the tokens
            for i in range(1, len(text_ids) - 1):
                masked = torch.tensor([[*text_ids[:i], tokenizer.mask_token_id, *text_ids[i + 1 :]]])
                with torch.no_grad():
                    scored += float(F.log_softmax(model(masked).logits[0, i], -1)[text_ids[i]])
        by_hand = -scored / math.log(2) / sum(len(text.encode()) for text in texts[:5])
        assert row["PLL_bits_per_byte"] == pytest.approx(by_hand, rel=1e-5)
        found.append((row["bits_per_byte"], len(ids)))
        del loss_sum
    assert found[0][1] != found[1][1]  # or there was nothing to compare


@pytest.mark.parametrize("num_processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_numbers_are_those_of_one_process_at_any_batch_size(
    num_processes: int, corpus_file: Path, model_folder: Path, cache_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(model_folder), "--text", str(corpus_file), "--cache_dir", cache_dir, "--block_size", "16"]
    sizes = [_rows(capsys, *words, "--per_device_eval_batch_size", size)[0] for size in ("1", "7", "64")]
    command = [word.replace("launch.train", "launch.evaluate") for word in launcher("accelerate", num_processes)]
    done = run(command, *words, "--per_device_eval_batch_size", "5", "--pll", "7", "--json")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    several = json.loads(line)
    for row in (*sizes[1:], several):
        for name in ("loss", "perplexity", "accuracy", "bits_per_byte", "masked_tokens"):
            assert row[name] == pytest.approx(sizes[0][name], rel=1e-6)
    (alone,) = _rows(capsys, *words, "--pll", "7")
    assert several["PLL_bits_per_byte"] == pytest.approx(alone["PLL_bits_per_byte"], rel=1e-6)
    score = TextScorer.from_pretrained(str(model_folder))
    texts = corpus_file.read_text().splitlines()[:7]
    bits = -sum(score(text).pseudo_log_likelihood for text in texts) / math.log(2)
    assert alone["PLL_bits_per_byte"] == pytest.approx(bits / sum(map(len, texts)), rel=1e-5)


def test_tables_of_texts_and_of_questions(
    corpus_file: Path, model_folder: Path, cache_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "agreement.jsonl"
    rows = [
        {"sentence_good": good, "sentence_bad": good[::-1], "UID": f"kind {i % 2}"}
        for i, good in enumerate(sentences(9))
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = tmp_path / "labels.tsv"
    labels.write_text("text\tlabel\n" + "".join(f"{text}\t{'ab'[i % 2]}\n" for i, text in enumerate(sentences(20))))
    words = ["--model", str(model_folder), "--cache_dir", cache_dir, "--block_size", "16"]
    main([*words, "--text", str(corpus_file), "--pairs", str(pairs), "--group_by", "UID", "--labels", str(labels)])
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[2:] == ["loss", "perplexity", "accuracy", "masked", "tokens", "bits", "per", "byte"]
    assert out[2].split() == ["model", "suite", "about", "num", "accuracy", "low", "high"]
    questions = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out[3:]]
    assert [cells[1:3] for cells in questions] == [
        ["agreement", "kind 0"], ["agreement", "kind 1"], ["agreement", "all"], ["labels", "2 labels, one is 50.0%"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "no/such"), "'no/such'"),
        (("--pairs", "no.jsonl"), "no.jsonl: no such file"),
        (("--pll", "0"), "--pll 0 must be 1 or more"),
        (("--block_siz", "16"), "unknown setting --block_siz; did you mean --block_size?"),
        (("--block_size", "1000", "--last_block", "pad"), "block_size=1000 is longer than the model's"),
        (("--labels", "english"), "english: no such file"),
        (("--labels", "python-docs", "--pooling", "last"), "invalid choice: 'last'"),
    ],
)
def test_a_wrong_word_is_one_line(
    words: tuple[str, ...],
    message: str,
    corpus_file: Path,
    model_folder: Path,
    cache_dir: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--model", str(model_folder), "--dataset", str(corpus_file), "--cache_dir", cache_dir, *words])
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_labels_without_scikit_learn_are_refused_with_the_package(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as where it is not installed
    with pytest.raises(SystemExit):
        main(["--model", str(model_folder), "--labels", "python-docs"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: labelled texts need scikit-learn: pip install 'mlm-train-loop[probes]'"


def test_a_model_without_a_trained_head_is_refused(
    tmp_path: Path, model_folder: Path, corpus_file: Path, cache_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    AutoModelForMaskedLM.from_pretrained(model_folder).base_model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        main(["--model", str(tmp_path), "--text", str(corpus_file), "--cache_dir", cache_dir, "--block_size", "16"])
    assert "no trained masked-language-modeling head" in capsys.readouterr().err
