"""The batch that is shown is the one that training sees."""

import re
from pathlib import Path

import pytest
import torch

from data import MaskedBatch
from launch.run.assemble import assemble
from launch.run.corpus import Corpus, open_corpus
from launch.run.folder import RunFolder
from launch.run.processes import start_accelerator
from launch.run.settings import Settings, parse_settings
from launch.show_batch import COMMAND, main
from launch.terminal.batch import batches_of_step
from train_loop import plan_batches
from train_loop.processes import Processes

STEPS_PER_EPOCH = 46  # what the settings below come to, checked below
_MARK = re.compile("⟦([^⟦⟧]*)⟧")


@pytest.fixture
def words(eli5_folder: Path, model_folder: Path, cache_dir: str) -> list[str]:
    return [
        *("--dataset", str(eli5_folder), "--eval_fraction", "0.2", "--model_name_or_path", str(model_folder)),
        *("--block_size", "30", "--global_batch_size", "8", "--num_train_epochs", "2", "--last_block", "pad"),
        *("--mlm_probability", "0.4", "--cache_dir", cache_dir),
        *("--attn_implementation", "eager"),  # trains on padded blocks, as they are shown
    ]


@pytest.fixture
def settings(words: list[str]) -> Settings:
    return parse_settings(words, COMMAND)[0]


@pytest.fixture
def corpus(settings: Settings) -> Corpus:
    return open_corpus(settings)


def _labels(batch: MaskedBatch) -> torch.Tensor:
    """``[B, L]``, the text before masking."""
    labels = batch.input_ids.clone()
    labels.view(-1)[batch.masked_positions] = batch.labels
    return labels


@pytest.mark.parametrize("more", [(), ("--grouping", "line_by_line"), ("--streaming", "--max_steps", "12")])
def test_it_is_the_batch_of_training(more: tuple[str, ...], words: list[str], tmp_path: Path) -> None:
    """With the run that training assembles, in three micro-batches an update, in both epochs."""
    micro_batch = ("--per_device_train_batch_size", "3", "--output_dir", str(tmp_path / "run"))
    settings, _ = parse_settings([*words, *micro_batch, *more], COMMAND)
    corpus = open_corpus(settings)
    plan = plan_batches(settings.train, corpus.blocks_per_epoch, num_processes=1)
    accelerator = start_accelerator(settings.train)
    processes = Processes(accelerator, timeout=60, stop_requested=lambda: False)
    run = assemble(settings, accelerator, processes, corpus, plan, RunFolder(settings.train), lambda folder: None)
    for step, trained in enumerate(run.loader.steps(0, plan.total_steps), start=1):
        shown = batches_of_step(settings, corpus, plan, step)
        assert len(shown) == len(trained)
        for one, two in zip(shown, trained, strict=True):
            assert torch.equal(one.input_ids, two.input_ids)
            assert torch.equal(one.masked_positions, two.masked_positions)
            assert torch.equal(one.labels, two.labels)
            assert torch.equal(one.block_ids, two.block_ids)
    assert step == plan.total_steps


@pytest.mark.parametrize("step", [1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1, 2 * STEPS_PER_EPOCH])
def test_what_is_printed_is_that_batch(
    step: int, words: list[str], settings: Settings, corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*words, "--step", str(step), "--rows", "100"])
    out = capsys.readouterr().out
    plan = plan_batches(settings.train, corpus.blocks_per_epoch, num_processes=1)
    (batch,) = batches_of_step(settings, corpus, plan, step)
    assert out.startswith(f"update {step} of {2 * STEPS_PER_EPOCH}, epoch {1 + (step > STEPS_PER_EPOCH)}\n")
    blocks = re.findall(r"^block (\d+)\n  (.*)$", out, flags=re.MULTILINE)
    assert [int(block_id) for block_id, _ in blocks] == batch.block_ids.tolist()

    # Each row, with the labels put back, is the row's text.
    tokenizer = corpus.tokenizer
    for (_, text), labels in zip(blocks, _labels(batch), strict=True):
        assert _MARK.sub(_label, text).strip() == re.sub(
            "(<pad>){4,}", lambda run: f"<pad>x{len(run[0]) // 5}", tokenizer.decode(labels).strip()
        )

    # As many marks of each kind as the batch has, and none of them of a special token.
    marks = [content for _, text in blocks for content in _MARK.findall(text)]
    assert len(marks) == batch.num_masked
    inputs = batch.input_ids.view(-1)[batch.masked_positions]
    num_masked = int((inputs == tokenizer.mask_token_id).sum())
    num_kept = int((inputs == batch.labels).sum())
    assert sum(content.endswith("≡") for content in marks) == num_kept
    assert sum("→" in content for content in marks) == len(marks) - num_kept - num_masked
    assert not any(special in content for content in marks for special in tokenizer.all_special_tokens)
    share = f"{num_masked / batch.num_masked:.1%}"
    assert f"predicts {batch.num_masked} tokens" in out
    assert f": {num_masked} masked ({share})" in out


def _label(found: re.Match[str]) -> str:
    return found[1].removesuffix("≡").partition("→")[0].replace("␣", " ")


def test_padding_is_counted_and_told(words: list[str], corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    padded = corpus.train[0].counts.padded
    assert padded > 3
    found = []
    for step in range(1, STEPS_PER_EPOCH + 1):
        main([*words, "--step", str(step)])
        out = capsys.readouterr().out
        if "<pad>" in out:
            found.append(out)
    (out,) = found
    assert f"<pad>x{padded}" in out
    assert f"({padded} padding)" in out


def test_the_corpus_is_told(words: list[str], corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    main([*words, "--rows", "0"])
    out = capsys.readouterr().out
    assert "\nblock " not in out
    assert f"{corpus.train[0].counts.kept:,} tokens kept" in out


def test_the_batch_of_a_run_on_several_processes(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    accumulation = ["--global_batch_size", "none", "--gradient_accumulation_steps", "2"]
    accumulation += ["--per_device_train_batch_size", "3", "--rows", "0"]
    main([*words, *accumulation, "--num_processes", "4"])
    assert "batch    24 blocks, 720 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--step 0", "step=0 must be 1 or more"),
        ("--step -3", "step=-3 must be 1 or more"),
        ("--step 93", "step=93 is beyond this run's last update, 92"),
        ("--step x", "--step: invalid int value: 'x'"),
        ("--rows -1", "rows=-1 must be 0 or more"),
        ("--row 1", "did you mean --rows?"),
        ("--dataset missing.txt", "no such file or folder"),
    ],
)
def test_a_wrong_word_is_one_clear_line(
    more: str, message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, *more.split()])
    assert caught.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert message in error
    assert [line for line in error.splitlines() if line].count(error.strip()) == 1


def test_colours_are_for_terminals_and_nobody_who_asked_for_none(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(words)
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(words)
    out = capsys.readouterr().out
    assert {"\x1b[30;43m", "\x1b[97;41m", "\x1b[30;42m", "\x1b[2m"} <= set(re.findall(r"\x1b\[[\d;]*m", out))
    assert "⟦" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    main(words)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    rows = [line for line in out.partition("\nbatch ")[0].splitlines() if line.startswith("  ")]
    assert len(rows) > 8
    assert max(len(line) for line in rows) <= 60
