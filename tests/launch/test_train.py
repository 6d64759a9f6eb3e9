"""The entry point: what a run leaves, resuming, best model, recipes, and every bad input."""

import gzip
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from launch.run.settings import parse_settings
from launch.train import COMMAND, main
from tests.conftest import sentences
from tests.files import write_texts
from tests.launch.conftest import Train
from tests.launchers import OF_THE_MACHINE
from tests.models import tiny_model
from tests.tokenizers import tokenizer_like
from train_loop.evaluate import EvalMetrics, evaluate

TRAIN_KEYS = {"step", "epoch", "loss", "learning_rate", "grad_norm", "num_masked_tokens", "num_tokens", *OF_THE_MACHINE}
EVAL_KEYS = {"step", "epoch", "seconds", "eval_loss", "eval_perplexity", "eval_accuracy", "eval_num_masked_tokens"}
EVAL_KEYS |= {"eval_bits_per_byte"}


def _comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in OF_THE_MACHINE} for row in rows]


def _assert_same_tensors(one: Path, two: Path) -> None:
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_a_run_leaves(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = train(tmp_path / "run", "--eval_on_start", "--probe", "the cat <mask> on a mat", "a <mask> ran")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "model",
        "report.html",
    ]
    training = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "eval_loss" in row]
    probes = [row for row in rows if "probes" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in evaluations] == [row["step"] for row in probes] == [0, 3, 6]
    assert all(set(row) == TRAIN_KEYS for row in training)
    assert all(set(row) == EVAL_KEYS for row in evaluations)
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]
    assert all(row["eval_perplexity"] == math.exp(row["eval_loss"]) for row in evaluations)
    assert [len(probe["fills"]) for probe in probes[0]["probes"]] == [3, 3]
    assert training[0]["learning_rate"] == 1e-3

    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model")
    AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert model.config.model_type == "roberta"
    _assert_same_tensors(
        tmp_path / "run" / "model" / "model.safetensors",
        tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors",
    )
    pickles = [p for p in (tmp_path / "run").rglob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".pickle"}]
    assert pickles == []
    out = capsys.readouterr().out
    for expected in ("tokens kept", "unigram", f"{evaluations[-1]['eval_perplexity']:.2f}", "mlm fill --model"):
        assert expected in out


def test_the_tokens_of_each_source_of_a_mixture_are_counted(train: Train, tmp_path: Path) -> None:
    """6 updates of 32 blocks of 32 tokens."""
    for name in ("a", "b"):
        write_texts(tmp_path / f"{name}.txt", [f"{name} {text}" for text in sentences(200, 3)])
    mixture = ("--mixture", f"{tmp_path}/a.txt=3", f"{tmp_path}/b.txt=1")
    rows = train(tmp_path / "run", *mixture, "--global_batch_size", "32", "--block_size", "32")
    counts = [list(row["tokens_by_source"].values()) for row in rows if "eval_loss" in row][-1]
    assert sum(counts) == 6 * 32 * 32
    assert counts[0] > 2 * counts[1]


def test_a_profile_of_some_updates(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "--profile_steps", "2:3")
    with gzip.open(tmp_path / "profile" / "steps-2-3.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "aten::addmm" in names
    out = capsys.readouterr().out
    assert "steps-2-3.json.gz opens in https://ui.perfetto.dev" in out
    assert out.count(" x aten::") >= 5


def test_the_written_settings_make_the_same_run_again(train: Train, tmp_path: Path) -> None:
    rows = train(tmp_path / "one")
    config = tmp_path / "one" / "config.yaml"
    again = train(tmp_path / "two", base=("--recipe", str(config)))
    assert _comparable(again) == _comparable(rows)
    _assert_same_tensors(*(tmp_path / name / "model" / "model.safetensors" for name in ("one", "two")))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop", [3, 27])
def test_a_resumed_run_is_the_uninterrupted_one(train: Train, tmp_path: Path, optimizer: str, stop: int) -> None:
    """P3 on one process: parameters, optimizer and metrics equal bit for bit, mid-epoch and in a later epoch."""
    words = ("--optimizer", optimizer, "--max_steps", "30", "--eval_steps", "9", "--save_steps", "3")
    words = (*words, "--global_batch_size", "64")  # 11 updates an epoch
    words = (*words, "--lr_scheduler_type", "cosine", "--warmup_steps", "4", "--save_total_limit", "none")
    rows = train(tmp_path / "whole", *words)
    assert {row["epoch"] > 1 for row in rows if row["step"] == 27} == {True}

    # What kill -9 leaves right after a checkpoint and some more steps: later rows, no final model.
    broken = tmp_path / "broken"
    train(broken, *words)
    for step in range(stop + 3, 31, 3):
        for path in (broken / "checkpoints" / f"step-{step:08d}").iterdir():
            path.unlink()
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "los')
    resumed = train(broken, *words, "--resume_from_checkpoint", "latest")
    assert _comparable(resumed) == _comparable(rows)
    last = "step-00000030"
    for name in ("model.safetensors", "optimizer.safetensors"):
        _assert_same_tensors(tmp_path / "whole/checkpoints" / last / name, broken / "checkpoints" / last / name)


def test_found_by_itself_the_micro_batch_is_the_whole_share_where_that_fits(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tmp_path / "whole")
    auto = train(tmp_path / "auto", "--per_device_train_batch_size", "auto")
    assert _comparable(auto) == _comparable(whole)
    assert capsys.readouterr().out.count("1 micro-batch(es) of") == 2


def test_micro_batches_leave_the_losses_as_they_are(train: Train, tmp_path: Path) -> None:
    """P1 through the whole program; dropout off, because it is drawn per micro-batch."""
    base = ("--model_type", "modernbert", "--train_tokenizer", "--vocab_size", "300", "--model_config")
    shape = ("hidden_size=32", "num_hidden_layers=2", "num_attention_heads=4", "intermediate_size=48")
    tail = ("--max_steps", "5", "--block_size", "16", "--global_batch_size", "8", "--logging_steps", "1")
    losses = []
    for size in ("8", "3", "1"):
        rows = train(
            tmp_path / size, *base, *shape, *tail, "--per_device_train_batch_size", size, base=("--seed", "1")
        )  # fmt: skip
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def test_the_best_model_is_the_final_one_and_patience_ends_the_run(train: Train, tmp_path: Path) -> None:
    """A rate so high that the loss rises after the first evaluation."""
    rows = train(
        tmp_path,
        *("--learning_rate", "0.03", "--lr_scheduler_type", "constant", "--max_steps", "60", "--eval_steps", "2"),
        *("--early_stopping_patience", "3", "--save_total_limit", "1"),
    )
    evaluations = [row for row in rows if "eval_loss" in row]
    best = min(evaluations, key=lambda row: row["eval_loss"])
    assert evaluations[-1]["step"] == best["step"] + 6 < 60
    checkpoints = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert f"step-{best['step']:08d}" in checkpoints
    assert len(checkpoints) == 2
    _assert_same_tensors(
        tmp_path / "model" / "model.safetensors",
        tmp_path / "checkpoints" / f"step-{best['step']:08d}" / "model.safetensors",
    )


def test_patience_and_the_best_model_are_resumed_too(train: Train, tmp_path: Path) -> None:
    """Killed between the best evaluation and the end by patience: the same end, rows and final model."""
    words = (
        *("--learning_rate", "0.03", "--lr_scheduler_type", "constant", "--max_steps", "60", "--eval_steps", "2"),
        *("--early_stopping_patience", "3", "--save_total_limit", "none"),
    )
    rows = train(tmp_path / "whole", *words)
    best = min((row for row in rows if "eval_loss" in row), key=lambda row: row["eval_loss"])["step"]
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "whole", broken)
    shutil.rmtree(broken / "model")
    for step in (best + 4, best + 6):
        shutil.rmtree(broken / "checkpoints" / f"step-{step:08d}")
    resumed = train(broken, *words, "--resume_from_checkpoint", "latest")
    assert _comparable(resumed) == _comparable(rows)
    _assert_same_tensors(*(path / "model" / "model.safetensors" for path in (tmp_path / "whole", broken)))


def test_an_evaluation_that_is_not_a_number_is_never_the_best(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of three evaluations is made NaN; after it, each is better than the one before."""
    losses: list[float] = []

    def first_nan(*parts: Any) -> EvalMetrics:
        metrics = evaluate(*parts)
        losses.append(metrics.eval_loss)
        return replace(metrics, eval_loss=math.nan) if len(losses) == 1 else metrics

    monkeypatch.setattr("train_loop.loop.evaluate", first_nan)
    rows = train(tmp_path, "--eval_steps", "2", "--load_best_model_at_end", "true")
    assert [row["eval_loss"] for row in rows if "eval_loss" in row] == [None, *losses[1:]]
    state = json.loads((tmp_path / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert (state["best_step"], state["best_loss"]) == (6, min(losses))
    assert state["evaluations_without_improvement"] == 0


def test_an_evaluation_on_start_counts_once_where_the_run_goes_on_from_it(train: Train, tmp_path: Path) -> None:
    words = ("--eval_on_start", "--early_stopping_patience", "1", "--save_total_limit", "none")
    rows = train(tmp_path, *words)
    assert rows[-1]["step"] == 6  # patience did not end it
    for step in (3, 6):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:08d}")
    assert _comparable(train(tmp_path, *words, "--resume_from_checkpoint", "latest")) == _comparable(rows)


def test_the_unigram_line_and_the_first_evaluation_are_near_what_they_should_be(train: Train, tmp_path: Path) -> None:
    """An untrained model guesses evenly: its perplexity is about the vocabulary's size."""
    rows = train(tmp_path, "--eval_on_start", "--max_steps", "1")
    assert 200 < next(row["eval_perplexity"] for row in rows if "eval_loss" in row) < 450


@pytest.mark.parametrize("recipe", ["eli5", "pretrain", "quickstart"])
def test_every_recipe_runs_on_local_folders_of_the_same_shape(
    recipe: str, train: Train, tmp_path: Path, eli5_folder: Path, model_folder: Path
) -> None:
    """The recipe's own settings but for where things are and how much of them there is."""
    (tmp_path / "wiki").mkdir()
    text = (eli5_folder / "train.jsonl").read_text()
    for split in ("train", "validation"):
        (tmp_path / "wiki" / f"{split}.txt").write_text(text.replace('"', " "))
    words = {
        "eli5": ("--dataset", str(eli5_folder), "--model_name_or_path", str(model_folder), "--block_size", "16"),
        "pretrain": (
            *("--dataset", str(tmp_path / "wiki"), "--dataset_config", "none"),
            *("--tokenizer_name_or_path", str(model_folder), "--global_batch_size", "4"),
            *("--per_device_train_batch_size", "2", "--lr_scheduler_kwargs", "num_decay_steps=1", "--model_config"),
            *("hidden_size=32", "num_hidden_layers=1", "num_attention_heads=4", "intermediate_size=32"),
        ),
        "quickstart": ("--lr_scheduler_kwargs", "num_decay_steps=1", "decay_type=linear"),
    }[recipe]
    rows = train(tmp_path / "run", *words, "--max_steps", "2", "--logging_steps", "1", base=("--recipe", recipe))
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    original = parse_settings(["--recipe", recipe], COMMAND)[0].as_dict()
    assert settings["learning_rate"] == original["learning_rate"]
    assert settings["mlm_probability"] == original["mlm_probability"]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in rows if "loss" in row)


def test_a_dry_run_prints_and_writes_nothing(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], eli5_folder: Path, model_folder: Path
) -> None:
    words = ("--dataset", str(eli5_folder), "--model_name_or_path", str(model_folder), "--block_size", "16")
    main([*words, "--output_dir", str(tmp_path / "run"), "--dry_run", "--gradient_accumulation_steps", "3"])
    out = capsys.readouterr().out
    assert "learning_rate: 5.0e-05" in out
    assert "24 blocks an update = 1 process(es) x 3 micro-batch(es) of 8" in out
    assert re.search(r"^model    roberta, 0\.\d M parameters, vocabulary of 3\d\d tokens$", out, re.MULTILINE)
    assert "memory   for each of 8 processes about: DDP 0.0" in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_and_a_wrong_setting_come_before_the_check_of_the_folder(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], eli5_folder: Path, model_folder: Path
) -> None:
    train(tmp_path, "--max_steps", "1")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    words = ("--dataset", str(eli5_folder), "--model_name_or_path", str(model_folder), "--block_size", "16")
    main([*words, "--output_dir", str(tmp_path), "--dry_run"])
    for wrong, message in (
        ("--block_size 100", "block_size=100 is longer than the model's 64 positions"),
        ("--warmup_steps 9", "warmup_steps=9.0 are more than the run's 6 updates"),
        ("--dataset missing.txt", "no such file or folder"),
    ):
        with pytest.raises(SystemExit) as caught:
            train(tmp_path, *wrong.split())
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("kind", ["from scratch", "from a model"])
def test_the_recipe_for_ones_own_text_takes_probes_from_the_held_out_text(
    kind: str, train: Train, tmp_path: Path, model_folder: Path
) -> None:
    texts = sentences(400, length=8)
    (tmp_path / "mine.txt").write_text("\n".join(texts))
    words = ["--dataset", str(tmp_path / "mine.txt"), "--block_size", "16", "--max_steps", "2", "--recipe", "mine"]
    if kind == "from a model":
        words += ["--model_name_or_path", str(model_folder)]
    rows = train(tmp_path / "run", base=tuple(words))
    probes = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["probe"]
    assert len(probes) == 4
    for probe in probes:
        start, end = probe.split("<mask>")
        assert any(text.startswith(start) and text.endswith(end) for text in texts)
    assert [probe["text"] for probe in next(row for row in rows if "probes" in row)["probes"]] == probes


@pytest.fixture
def odd_models(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A BERT whose mask token is ``[MASK]``, and one whose tokenizer has none."""
    for name in ("no_mask", "bert"):
        tiny_model("bert").save_pretrained(tmp_path / name)
    tokenizer_like("bert").save_pretrained(tmp_path / "bert")
    no_mask = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>")
    no_mask.save_pretrained(tmp_path / "no_mask")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--dataset {tmp}/missing.txt", "no such file or folder"),
        ("--dataset {tmp}/empty.txt", "the file is empty"),
        ("--dataset {tmp}/blank.txt", "the 0 tokens of its 0 documents"),
        ("--dataset {tmp}/latin1.txt", "latin1.txt, line 2: not UTF-8"),
        ("--dataset {tmp}/folder", "the name of 'wiki.txt' has no split's word, and that of 'train-news.txt' has one"),
        ("--dataset {tmp}/short.txt", "do not fill one block: use a --block_size below 16"),
        ("--text_column body", "has no column 'body'; the columns are: answers, answers.a_id"),
        ("--mlm_probability 1", "mlm_probability=1.0 must be between 0 and 1"),
        ("--lerning_rate 1", "did you mean --learning_rate?"),
        ("--model_name_or_path {tmp}/no_mask", "has no mask token"),
        ("--model_name_or_path {tmp}/nowhere", "cannot be loaded"),
        ("--block_size 100", "block_size=100 is longer than the model's 64 positions"),
        ("--tokenizer_name_or_path {tmp}/nowhere", "tokenizer"),
        ("--lr_scheduler_type linaer", "did you mean 'linear'?"),
        ("--eval_dataset {tmp}/missing.jsonl --eval_fraction none", "no such file or folder"),
        ("--eval_fraction 1e-9", "documents held out for evaluation do not fill one block"),
        ("--resume_from_checkpoint {tmp}/nowhere", "manifest.json is missing"),
        ("--overwrite_output_dir --resume_from_checkpoint latest", "give one"),
        ("--probe {long}<mask>", "is 201 tokens long, more than the model's 64 positions: shorten it"),
        ("--model_name_or_path {tmp}/bert --probe a[MASK]<mask>", "probe 'a[MASK]<mask>' has 2 masks for this tokeni"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    words: str, message: str, train: Train, tmp_path: Path, odd_models: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("\n  \n")
    (tmp_path / "short.txt").write_text("the cat\n")
    (tmp_path / "folder").mkdir()
    for name in ("train-news.txt", "wiki.txt"):
        (tmp_path / "folder" / name).write_text("the cat\n" * 100)
    (tmp_path / "latin1.txt").write_bytes("the\ncafé\n".encode("latin-1"))
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", *words.format(tmp=tmp_path, long="a" * 198).split())
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    lines = [line for line in error.splitlines() if line]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert not (tmp_path / "run").exists()


def test_another_run_in_the_output_folder_is_not_touched(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, "--max_steps", "3")
    (tmp_path / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit) as caught:
        train(tmp_path)
    assert caught.value.code == 2
    assert "--resume_from_checkpoint latest, delete it by --overwrite_output_dir" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    rows = train(tmp_path, "--overwrite_output_dir")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("--block_size 24", "block_size"),
        ("--mlm_probability 0.2", "mlm_probability"),
        ("--global_batch_size 16", "global_batch_size"),
        ("--seed 5", "seed"),
        ("--optimizer muon", "optimizer"),
        ("--text_column title", "training tokens"),
        ("--train_tokenizer --vocab_size 290", "tokenizer"),
    ],
)
def test_a_resume_that_would_be_another_run_is_refused_by_field(
    words: str, field: str, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, "--max_steps", "3")
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(SystemExit) as caught:
        train(tmp_path, "--resume_from_checkpoint", "latest", *words.split())
    assert caught.value.code == 2
    assert f"was made with {field}" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_streamed_file_that_was_changed_in_place_is_another_run(
    train: Train, eli5_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(eli5_folder, tmp_path / "texts")
    words = ("--dataset", str(tmp_path / "texts"), "--streaming")
    train(tmp_path / "run", *words, "--max_steps", "3")
    shutil.copytree(tmp_path / "texts", tmp_path / "elsewhere")  # as on another machine
    train(
        tmp_path / "run",
        "--dataset",
        str(tmp_path / "elsewhere"),
        "--streaming",
        "--resume_from_checkpoint",
        "latest",
        "--max_steps",
        "4",
    )
    with (tmp_path / "texts" / "train.jsonl").open("r+b") as file:
        file.seek(file.read().index(b"why 0"))
        file.write(b"who 0")
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", *words, "--resume_from_checkpoint", "latest")
    assert caught.value.code == 2
    assert "was made with training files" in capsys.readouterr().err


def test_latest_begins_at_the_start_where_there_is_no_checkpoint(train: Train, tmp_path: Path) -> None:
    rows = train(tmp_path, "--resume_from_checkpoint", "latest")
    assert json.dumps(rows[0]).startswith('{"step": 1,')


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("GRADIENT_ACCUMULATION_STEPS", "4", "unset it"),
        ("MIXED_PRECISION", "fp8", "use bf16"),
        ("DYNAMO_BACKEND", "INDUCTOR", "use --torch_compile"),
    ],
)
def test_what_the_launcher_was_told_and_the_loop_does_not_do_is_refused(
    variable: str,
    value: str,
    message: str,
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{variable}", value)
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run")
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_mixed_precision_is_accelerates_and_leaves_the_weights_in_fp32(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What ``accelerate launch --mixed_precision bf16`` sets; losses within bf16's 8 bits of those in fp32."""
    full = train(tmp_path / "fp32")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    mixed = train(tmp_path / "bf16")
    assert "precision bf16" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "fp32" / "config.yaml").read_text())["mixed_precision"] == "no"
    for a, b in zip(full, mixed, strict=True):
        key = "loss" if "loss" in a else "eval_loss"
        assert a[key] != b[key]
        assert b[key] == pytest.approx(a[key], rel=0.01)
    weights = load_file(tmp_path / "bf16" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.slow
def test_precision_is_a_setting_that_counts_more_than_the_launcher_and_makes_the_same_run_again(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    rows = train(tmp_path / "one", "--mixed_precision", "bf16", "--max_steps", "2")
    out = capsys.readouterr().out
    assert "precision bf16" in out
    assert "the launcher says precision no: --mixed_precision bf16 counts" in out
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    again = train(tmp_path / "two", base=("--recipe", str(tmp_path / "one" / "config.yaml")))
    assert _comparable(again) == _comparable(rows)
    assert "the launcher says" not in capsys.readouterr().out
    train(tmp_path / "two", "--resume_from_checkpoint", "latest", "--max_steps", "3")
    assert "changed  mixed_precision: 'no', was 'bf16'" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        train(tmp_path / "three", "--mixed_precision", "fp16")
    assert "error: mixed_precision=fp16 needs a GPU: use --mixed_precision bf16, or no" in capsys.readouterr().err


def test_a_model_worse_than_guessing_is_told_in_few_digits(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = train(tmp_path / "run", "--learning_rate", "1", "--warmup_steps", "0")
    assert rows[-1]["eval_perplexity"] > 1e6, "the test needs a model that has lost its way"
    out = capsys.readouterr().out
    many = r"\d\.?\d*e\+\d+"
    assert re.search(rf"perplexity {many} on held-out text, {many} times the unigram model's: worse than guessing", out)
    assert re.search(rf"eval loss [\d.]+ \| perplexity +{many} \|", out)


def test_a_model_that_does_not_compute_at_the_runs_precision_is_one_line(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    words = ("--model_type", "deberta", "--train_tokenizer", "--vocab_size", "300", "--block_size", "16")
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "run", base=(*words, "--model_config", "hidden_size=32", "num_attention_heads=4"))
    assert caught.value.code == 2
    assert "error: model_type 'deberta' does not compute with attn_implementation=" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
