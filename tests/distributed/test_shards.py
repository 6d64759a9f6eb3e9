"""P1, P3 and P4 under shards (FSDP2) and shards with replicas (HSDP): the run of one process, over gloo.

What is counted within an update is in sharded.py, which is launched here.
"""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from tests.launchers import assert_same_run, launcher, rows, run, tiny_run
from tests.models import tiny_model

SHARD = ("--shard", "true")
HSDP = (*SHARD, "--replicas", "2")
SAVES = ("--save_steps", "4", "--save_total_limit", "none")
RESUME = ("--resume_from_checkpoint", "latest")


def _words(corpus_file: Path, cache_dir: str, tokenizer: PreTrainedTokenizerBase, folder: Path, case: str) -> list[str]:
    """Words of a run of ten updates, some of which have a share for one process alone."""
    family, optimizer, *more = case.split()
    words = tiny_run(corpus_file, cache_dir, max_steps=10, eval_steps=4, optimizer=optimizer, seed=3)
    words += ["--load_best_model_at_end", "true", "--probe", "the cat sat on a <mask>", *more]
    if family == "modernbert":
        return words
    model = tiny_model(family)  # its embedding is tied to the output layer
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0  # it is drawn by micro-batch
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = words[: words.index("--model_config")] + words[words.index("--load_best_model_at_end") :]
    words += [
        *("--model_name_or_path", str(folder / "model"), "--model_type", "none", "--train_tokenizer", "false"),
    ]
    return words


CASES = (
    *("modernbert muon", "roberta adamw", "roberta muon --gradient_checkpointing true", "modernbert adamw"),
    "modernbert muon --ema_decay 0.8",
)


@pytest.fixture(scope="module", params=[CASES[0], *(pytest.param(c, marks=pytest.mark.slow) for c in CASES[1:])])
def case(
    request: pytest.FixtureRequest,
    corpus_file: Path,
    cache_dir: str,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[str], Path]:
    """The words of a run, and the folder of the one on one process, with its checkpoints."""
    folder = tmp_path_factory.mktemp("case")
    words = _words(corpus_file, cache_dir, tokenizer, folder, request.param)
    done = run(launcher("python", 1), *words, *SAVES, "--output_dir", str(folder / "one"))
    assert done.returncode == 0, done.stderr
    return words, folder / "one"


@pytest.mark.parametrize(
    ("num_processes", "how"),
    [
        (2, (*SHARD, "--per_device_train_batch_size", "2")),
        pytest.param(2, (), marks=pytest.mark.slow),
        pytest.param(3, SHARD, marks=pytest.mark.slow),  # 10 blocks as 4, 3 and 3
        pytest.param(4, HSDP, marks=pytest.mark.slow),
    ],
)
def test_any_world_makes_the_run_of_one_process_and_goes_on_with_its_checkpoints(
    num_processes: int, how: tuple[str, ...], case: tuple[list[str], Path], tmp_path: Path
) -> None:
    alone, on_one = [*case[0], *SAVES], case[1]
    words = [*alone, *how]
    whole, resumed, back = tmp_path / "whole", tmp_path / "resumed", tmp_path / "back"
    done = run(launcher("torchrun", num_processes), *words, "--output_dir", str(whole))
    assert done.returncode == 0, done.stderr
    assert_same_run(on_one, whole)

    _stopped_after(8, whole, resumed)  # the same world again: bit for bit
    _stopped_after(4, on_one, back)  # saved on one process, gone on with here
    for folder in (resumed, back):
        done = run(launcher("torchrun", num_processes), *words, *RESUME, "--output_dir", str(folder))
        assert done.returncode == 0, done.stderr
    assert_same_run(on_one, back)
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(folder / "checkpoints" / "step-00000010" / name) for folder in (whole, resumed))
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items()), name
    for checkpoint in (whole / "checkpoints").iterdir():
        AutoModelForMaskedLM.from_pretrained(checkpoint)

    onto_one = tmp_path / "onto-one"
    _stopped_after(4, whole, onto_one)
    done = run(launcher("python", 1), *alone, *RESUME, "--output_dir", str(onto_one))
    assert done.returncode == 0, done.stderr
    assert_same_run(on_one, onto_one)


@pytest.mark.slow
def test_a_run_goes_from_world_to_world(corpus_file: Path, cache_dir: str, tmp_path: Path) -> None:
    """Two updates in each, with the checkpoint of the one before."""
    words = [*tiny_run(corpus_file, cache_dir, max_steps=12, optimizer="muon"), "--save_steps", "2", *SAVES[2:]]
    worlds = [(1, ()), (2, ()), (3, SHARD), (4, HSDP), (2, SHARD), (3, ())]
    folders = [tmp_path / str(i) for i in range(len(worlds))]
    for i, (num_processes, how) in enumerate(worlds):
        if i:
            _stopped_after(2 * i, folders[i - 1], folders[i])
        name = "torchrun" if num_processes > 1 else "python"
        done = run(launcher(name, num_processes), *words, *how, *RESUME * (i > 0), "--output_dir", str(folders[i]))
        assert done.returncode == 0, done.stderr
        assert_same_run(folders[0], folders[i])


def _stopped_after(step: int, run_folder: Path, folder: Path) -> None:
    """What a run that was killed after this step would have left."""
    name = f"step-{step:08d}"
    shutil.copytree(run_folder / "checkpoints" / name, folder / "checkpoints" / name)
    shutil.copy(run_folder / "metrics.jsonl", folder)


@pytest.mark.slow
def test_the_best_model_is_the_final_one(corpus_file: Path, cache_dir: str, tmp_path: Path) -> None:
    """At this rate it is the untrained one, which is evaluated before the first update."""
    changes = {"learning_rate": 1, "max_steps": 6, "eval_on_start": "true", "load_best_model_at_end": "true"}
    words = [*tiny_run(corpus_file, cache_dir, **changes), *SHARD, "--output_dir", str(tmp_path)]
    done = run(launcher("torchrun", 2), *words)
    assert done.returncode == 0, done.stderr
    best = min((row for row in rows(tmp_path) if "eval_loss" in row), key=lambda row: row["eval_loss"])
    assert best["step"] == 0
    folders = (tmp_path / "model", tmp_path / "checkpoints" / "step-00000000")
    final, expected = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(tensor, final[name]) for name, tensor in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [("--torch_compile", "true"), ("--streaming", "true", "--num_streams", "2", "--max_eval_blocks", "8")]
)
def test_it_goes_with_compiled_layers_and_with_streams(
    more: tuple[str, ...], corpus_file: Path, cache_dir: str, tmp_path: Path
) -> None:
    words = [*tiny_run(corpus_file, cache_dir, optimizer="muon"), *more]
    for name, trainers, how in (("one", launcher("python", 1), ()), ("two", launcher("torchrun", 2), SHARD)):
        done = run(trainers, *words, *how, "--output_dir", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_within_an_update() -> None:
    """Collectives, a gradient that is not finite on one process, and memory: see the script."""
    done = run([*launcher("torchrun", 2)[:-1], "tests.distributed.sharded"])
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_memory_is_that_of_the_share_and_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without these variables the C library keeps what is freed: twice what is in use, for FSDP2."""
    for name in ("MMAP", "TRIM"):
        monkeypatch.setenv(f"MALLOC_{name}_THRESHOLD_", "100000")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    done = run([*launcher("torchrun", 4)[:-1], "tests.distributed.memory", "4"])
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    shares = [float(share) for share in re.findall(r"([\d.]+) of DDP's", done.stdout)]
    assert shares == pytest.approx([1, 0.5, 0.25], abs=0.01)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shard", "true", "--replicas", "3"), "replicas=3: 2 processes cannot be divided into 3 equal groups"),
        pytest.param(
            ("--shard", "true", "--objective", "{tmp}/mine.py:WithAHead"),
            "the objective has weights of its own (head.weight, head.bias)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_one_line(
    more: tuple[str, ...], message: str, corpus_file: Path, cache_dir: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom train_loop import MaskedLMObjective\n"
        "class WithAHead(MaskedLMObjective):\n"
        "    def __init__(self, model):\n"
        "        super().__init__(model)\n"
        "        self.head = torch.nn.Linear(2, 2)\n"
        "    def forward(self, batch):\n"
        "        return super().forward(batch) + 0 * self.head(torch.zeros(2)).sum()\n"
    )
    words = tiny_run(corpus_file, cache_dir, output_dir=str(tmp_path / "run"))
    done = run(launcher("torchrun", 2), *words, *(word.format(tmp=tmp_path) for word in more))
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
