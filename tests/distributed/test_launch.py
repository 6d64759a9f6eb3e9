"""Launched as users launch: one or two processes over gloo, by each launcher."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from tests.launch.test_own_objective import TWO_TERMS
from tests.launchers import ACCELERATE, DIFFUSION, REPLACED_TOKENS, ROOT, assert_same_run, launcher, rows, run, tiny_run
from tests.models import tiny_model

TWO = launcher("accelerate", 2)


@pytest.fixture(scope="module")
def words(corpus_file: Path, cache_dir: str) -> list[str]:
    return tiny_run(corpus_file, cache_dir)


@pytest.fixture(scope="module")
def on_one(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    done = run(launcher("accelerate", 1), *words, "--cpu_threads", "none", "--output_dir", str(folder))
    assert done.returncode == 0, done.stderr
    cores = len(os.sched_getaffinity(0))
    assert f"device   cpu, precision no, {cores} threads each" in done.stdout  # the launcher sets one
    assert "3 updates an epoch" in done.stdout
    return folder


@pytest.mark.parametrize(
    ("name", "num_processes", "extra"),
    [
        ("accelerate", 2, []),
        pytest.param("torchrun", 2, ["--per_device_train_batch_size", "2"], marks=pytest.mark.slow),
        pytest.param("torchrun", 3, [], marks=pytest.mark.slow),  # 10 blocks as 4, 3 and 3
        pytest.param("torchrun", 4, ["--per_device_train_batch_size", "1"], marks=pytest.mark.slow),
    ],
)
def test_several_processes_make_the_run_of_one(
    name: str, num_processes: int, extra: list[str], words: list[str], on_one: Path, tmp_path: Path
) -> None:
    done = run(launcher(name, num_processes), *words, *extra, "--output_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unigram") == 2  # said once, at the start and in the last lines
    assert_same_run(on_one, tmp_path)


@pytest.mark.parametrize(
    "texts",
    [
        ("--grouping", "line_by_line"),
        pytest.param(("--grouping", "pack", "--document_attention", "true"), marks=pytest.mark.slow),
        pytest.param(("--document_attention", "true", "--torch_compile", "true"), marks=pytest.mark.slow),
    ],
)
def test_texts_side_by_side_make_the_run_of_padded_or_masked_ones(
    texts: tuple[str, ...], words: list[str], tmp_path: Path
) -> None:
    """On one process with padding and masks, as eager attention needs them, then without, on two, and in shards."""
    worlds = [(1, ("--attn_implementation", "eager")), (1, ()), (2, ()), (2, ("--shard", "true"))]
    for i, (num_processes, how) in enumerate(worlds):
        name = "torchrun" if num_processes > 1 else "python"
        done = run(launcher(name, num_processes), *words, *texts, *how, "--output_dir", str(tmp_path / str(i)))
        assert done.returncode == 0, done.stderr
        for row, other in zip(rows(tmp_path / "1"), rows(tmp_path / str(i)), strict=True) if i else ():
            assert row.get("num_tokens") == other.get("num_tokens")
        assert_same_run(tmp_path / "0", tmp_path / str(i), besides={"num_tokens"})


@pytest.mark.slow
def test_an_objective_of_two_terms_makes_the_same_run_on_two_processes(
    words: list[str], corpus_file: Path, tmp_path: Path
) -> None:
    """Each term is divided by its own count over both processes, one of which has no share of some updates."""
    mine = tmp_path / "mine.py"
    mine.write_text(TWO_TERMS)
    words = [*words, "--objective", f"{mine}:Spotting"]
    for name, num_processes in (("python", 1), ("accelerate", 2)):
        done = run(launcher(name, num_processes), *words, "--output_dir", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "python", tmp_path / "accelerate")


@pytest.mark.slow
@pytest.mark.parametrize("grouping", ["concatenate", "line_by_line"])
@pytest.mark.parametrize("objective", [REPLACED_TOKENS, DIFFUSION], ids=["replaced_tokens", "diffusion"])
def test_another_objective_is_the_same_on_one_two_and_three_processes(
    objective: tuple[str, ...], grouping: str, words: list[str], tmp_path: Path
) -> None:
    """The samples and both terms, or rates and weights, where a process has no share, and where texts are padded."""
    words = [*words, *objective, "--grouping", grouping]
    for name, num_processes in (("python", 1), ("accelerate", 2), ("torchrun", 3)):
        done = run(launcher(name, num_processes), *words, "--output_dir", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        assert_same_run(tmp_path / "python", tmp_path / name)


@pytest.mark.slow
def test_dropout_is_the_same_on_two_processes(
    corpus_file: Path, cache_dir: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A RoBERTa with its 10 % of dropout, the same micro-batches of 5 blocks on one process and on two.

    Two steps: the third of an epoch has fewer blocks, which two processes cut into other micro-batches.
    """
    tiny_model("roberta").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = tiny_run(corpus_file, cache_dir, per_device_train_batch_size=5, max_steps=2, eval_steps=2)
    words = words[: words.index("--model_config")]
    at = words.index("--train_tokenizer")
    words[at : at + 2] = ["--model_name_or_path", str(tmp_path / "model")]
    at = words.index("--model_type")
    del words[at : at + 2]
    for name, num_processes in (("python", 1), ("torchrun", 2)):
        done = run(launcher(name, num_processes), *words, "--output_dir", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "python", tmp_path / "torchrun")


@pytest.mark.slow
def test_one_then_two_then_four_then_one_process(words: list[str], on_one: Path, tmp_path: Path) -> None:
    """Each goes on for two steps from where the one before stopped; the schedule is the whole run's."""
    save = ("--save_steps", "2", "--save_total_limit", "none")
    done = run(launcher("python", 1), *words, *save, "--output_dir", str(tmp_path / "first"))
    assert done.returncode == 0, done.stderr
    chain = tmp_path / "chain"
    for start, num_processes in ((2, 2), (4, 4), (6, 1)):
        # What a run that was killed after this step left: its checkpoint and the rows up to there.
        source = tmp_path / "first" if start == 2 else chain
        kept = chain.with_name(f"chain-{start}")
        name = f"step-{start:08d}"
        shutil.copytree(source / "checkpoints" / name, kept / "checkpoints" / name)
        shutil.copy(source / "metrics.jsonl", kept)
        shutil.rmtree(chain, ignore_errors=True)
        kept.rename(chain)
        done = run(
            launcher("python" if num_processes == 1 else "torchrun", num_processes),
            *(*words, *save, "--output_dir", str(chain), "--resume_from_checkpoint", "latest"),
        )
        assert done.returncode == 0, done.stderr
        assert f"after step {start}" in done.stdout
    assert_same_run(on_one, chain)


def test_a_run_goes_on_with_another_number_of_processes(words: list[str], on_one: Path, tmp_path: Path) -> None:
    """Saved on one process after 4 steps, gone on with on two: the losses of the uninterrupted run."""
    shutil.copytree(on_one, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "model")
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000008")
    done = run(TWO, *words, "--output_dir", str(tmp_path), "--resume_from_checkpoint", "latest")
    assert done.returncode == 0, done.stderr
    assert "after step 4" in done.stdout
    assert_same_run(on_one, tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(
            ["--cpu", "--num_processes", "2"], "2 processes were asked for and 1 started", marks=pytest.mark.slow
        ),
        (["--config_file", "{tmp}/eight.yaml"], "8 processes were asked for and 1 started"),
    ],
)
def test_a_world_that_is_not_the_one_asked_for_is_refused(
    flags: list[str], message: str, words: list[str], tmp_path: Path
) -> None:
    text = (ROOT / "accelerate_config.yaml").read_text()
    (tmp_path / "eight.yaml").write_text(text.replace("num_processes: 1", "num_processes: 8"))
    command = [*ACCELERATE, *(flag.format(tmp=tmp_path) for flag in flags), "--quiet", "-m", "launch.train"]
    done = run(command, *words, "--output_dir", str(tmp_path / "run"))
    assert done.returncode != 0
    assert f"error: {message}" in done.stderr
    assert "mlm train --num_processes" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_bad_input_on_two_processes_ends_both_with_one_line(words: list[str], tmp_path: Path) -> None:
    done = run(TWO, *words, "--dataset", str(tmp_path / "missing.txt"), "--output_dir", str(tmp_path / "run"))
    assert done.returncode != 0
    assert done.stderr.count("error: dataset=") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_filling_masks_from_the_command_line(on_one: Path) -> None:
    command = [sys.executable, "-m", "launch.fill_mask", "--model", str(on_one / "model"), "--top_k", "2"]
    texts = ["the cat <mask> on a mat", "the [MASK] sat on <mask> mat"]
    shown = run([*command, *texts])
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("%") == 6
    lines = run([*command, "--json", *texts]).stdout.splitlines()
    single, double = (json.loads(line) for line in lines)
    assert [set(fill) for fill in single] == [{"score", "token", "token_str", "sequence"}] * 2
    assert [len(fills) for fills in double] == [2, 2]
    failed = run([*command, "no blank here"])
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: no mask token in 'no blank here'")
