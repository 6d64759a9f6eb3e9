"""A recipe in phases, and ``--start_from``: the same as runs by hand, bit for bit, also after any interruption."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig

from launch.prepare import main as prepare
from launch.report import main as report
from launch.run.settings import RECIPES
from launch.train import main
from launch.train import train as train_here
from tests.faults.running import start
from tests.launch.conftest import Train
from tests.launchers import launcher, run
from tests.models import tiny_model
from train_loop.sharing.locate import model_folder

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
WSD = {
    "lr_scheduler_type": "warmup_stable_decay",
    "lr_scheduler_kwargs": {"num_decay_steps": 3, "decay_type": "linear"},
}
TWO: list[dict[str, Any]] = [
    {"max_steps": 4, "lr_scheduler_type": "constant"},
    {
        **{"max_steps": 3, "block_size": 32, "global_batch_size": 4, "mlm_probability": 0.3, **WSD},
        "model_config": {"max_position_embeddings": 64, "rope_parameters": ROPE},
    },
]

Write = Callable[..., list[str]]


@pytest.fixture
def recipe(corpus_file: Path, cache_dir: str, tmp_path: Path) -> Write:
    """Write a recipe of a tiny ModernBERT with some phases, and return the words that name it."""

    def write(phases: Any = TWO, **changes: Any) -> list[str]:
        base = {
            **{"dataset": str(corpus_file), "eval_fraction": 0.2, "cache_dir": cache_dir, "train_tokenizer": True},
            **{"vocab_size": 300, "block_size": 16, "model_type": "modernbert", "global_batch_size": 8},
            **{"model_config": {**SHAPE, "max_position_embeddings": 32}, "learning_rate": 1e-3, "logging_steps": 1},
            **{"cpu_threads": 1, "eval_steps": 2, "output_dir": str(tmp_path / "run"), "phases": phases},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(base | changes))
        return ["--recipe", str(path)]

    return write


def _last(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer in the last checkpoint of a run."""
    newest = max((folder / "checkpoints").glob("step-????????"))
    return load_file(newest / "model.safetensors") | load_file(newest / "optimizer.safetensors")


def _assert_same(one: Path, other: Path) -> None:
    first, second = _last(one), _last(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def _error(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_two_phases_are_two_runs_by_hand(recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And ``config.yaml`` of a phase is a recipe of that phase; report and model are found in the folder above."""
    main([*recipe(), "--ema_decay", "0.9"])
    out = capsys.readouterr().out
    assert f"begun    {tmp_path / 'run/phase-1/checkpoints/step-00000004'}, with its weights and optimizer" in out

    by_hand = [*recipe(None), "--ema_decay", "0.9"]
    first, second = tmp_path / "first", tmp_path / "second"
    main([*by_hand, "--max_steps", "4", "--lr_scheduler_type", "constant", "--output_dir", str(first)])
    _assert_same(tmp_path / "run" / "phase-1", first)
    words = ["--start_from", str(first), "--tokenizer_name_or_path", str(first / "model"), "--train_tokenizer", "false"]
    words += ["--seed", "1", "--max_steps", "3", "--block_size", "32", "--global_batch_size", "4"]
    words += ["--mlm_probability", "0.3", "--lr_scheduler_type", "warmup_stable_decay"]
    words += ["--lr_scheduler_kwargs", "num_decay_steps=3", "decay_type=linear"]
    words += ["--model_config", "max_position_embeddings=64", f"rope_parameters={json.dumps(ROPE)}"]
    main([*by_hand, *words, "--output_dir", str(second)])
    _assert_same(tmp_path / "run" / "phase-2", second)

    again = tmp_path / "again"
    main(["--recipe", str(tmp_path / "run" / "phase-2" / "config.yaml"), "--output_dir", str(again)])
    _assert_same(again, second)
    tensors = _last(second)
    name = next(name for name in tensors if name.endswith("/step"))
    assert tensors[name] == 7  # the moments go on
    config = AutoConfig.from_pretrained(second / "model")
    assert (config.max_position_embeddings, config.rope_parameters) == (64, ROPE)

    cards = [(tmp_path / "run" / f"phase-{number}" / "model" / "README.md").read_text() for number in (1, 2)]
    assert ["in 3 updates, after those of an earlier run or phase" in card for card in cards] == [False, True]

    report([str(tmp_path / "run")])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "phase-1" in page
    assert "phase-2" in page
    assert model_folder(str(tmp_path / "run")) == str(tmp_path / "run" / "phase-2" / "model")


@pytest.mark.slow
def test_so_are_they_on_two_processes_by_either_launcher(recipe: Write, tmp_path: Path) -> None:
    words = recipe()
    for name in ("accelerate", "torchrun"):
        done = run(launcher(name, 2), *words, "--output_dir", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    one = [*recipe(TWO[:1]), "--output_dir", str(tmp_path / "hand")]
    assert run(launcher("accelerate", 2), *one).returncode == 0
    second = ["--recipe", str(tmp_path / "accelerate" / "phase-2" / "config.yaml")]
    second += ["--start_from", str(tmp_path / "hand" / "phase-1"), "--output_dir", str(tmp_path / "second")]
    assert run(launcher("torchrun", 2), *second).returncode == 0
    for name in ("accelerate", "torchrun"):
        _assert_same(tmp_path / name / "phase-2", tmp_path / "second")


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--shard", "true")], ids=["ddp", "fsdp2"])
def test_two_processes_make_the_phases_that_one_makes(recipe: Write, tmp_path: Path, words: tuple[str, ...]) -> None:
    assert run(launcher("python", 1), *recipe(), "--output_dir", str(tmp_path / "one")).returncode == 0
    done = run(launcher("torchrun", 2), *recipe(), *words, "--output_dir", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    one, two = _last(tmp_path / "one" / "phase-2"), _last(tmp_path / "two" / "phase-2")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


KILL = """
import os
import signal
from pathlib import Path

import torch

HERE = Path(__file__).parent


def at_the_border(config, total_steps):
    '''Kills the second phase when it begins to be set up, once.'''
    once = HERE / "once"
    if config.output_dir.endswith("phase-2") and (HERE / "run/phase-1/model").exists() and once.exists():
        once.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return lambda step: 1.0


class Last(torch.optim.AdamW):
    def eval(self):
        pass

    def train(self):
        '''Called after each evaluation: asks the first phase to stop when its model is written, once.'''
        once = HERE / "once"
        if (HERE / "run/phase-1/model").exists() and once.exists():
            once.unlink()
            os.kill(os.getpid(), signal.SIGTERM)


def at_the_end(objective, config):
    return [Last(objective.parameters(), lr=config.learning_rate)]
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["at_the_border", "at_the_end"])
def test_an_end_at_the_border_loses_nothing(recipe: Write, tmp_path: Path, how: str) -> None:
    (tmp_path / "kill.py").write_text(KILL)
    setting = "--lr_scheduler_type" if how == "at_the_border" else "--optimizer"
    words = [*recipe(), setting, f"{tmp_path / 'kill.py'}:{how}", "--resume_from_checkpoint", "latest"]
    main([*words, "--output_dir", str(tmp_path / "whole")])
    (tmp_path / "once").touch()
    ended = run(launcher("python", 1), *words)
    assert ended.returncode == (-signal.SIGKILL if how == "at_the_border" else 128 + signal.SIGTERM), ended.stderr
    assert not (tmp_path / "run" / "phase-2").exists()
    assert (tmp_path / "run" / "phase-1" / "model").exists()
    done = run(launcher("python", 1), *words)
    assert f"finished {tmp_path / 'run' / 'phase-1'}" in done.stdout
    for phase in ("phase-1", "phase-2"):
        _assert_same(tmp_path / "run" / phase, tmp_path / "whole" / phase)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_killed_in_each_phase_and_resumed_it_is_the_same(recipe: Write, tmp_path: Path, num_processes: int) -> None:
    long = [{**TWO[0], "max_steps": 60}, {**TWO[1], "max_steps": 60}]
    command = [*launcher("python" if num_processes == 1 else "torchrun", num_processes)]
    command += [*recipe(long, eval_steps=20, save_steps=7), "--resume_from_checkpoint", "latest"]
    for phase in ("phase-1", "phase-2"):
        process = start(command, tmp_path, after_rows=30, run=f"run/{phase}")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "run" / phase / "model").exists(), "the run is too short"
    assert run(command).returncode == 0
    assert run([*command, "--output_dir", str(tmp_path / "whole")]).returncode == 0
    for phase in ("phase-1", "phase-2"):
        _assert_same(tmp_path / "run" / phase, tmp_path / "whole" / phase)


@pytest.mark.slow
def test_sigterm_in_a_phase_starts_no_other(recipe: Write, tmp_path: Path) -> None:
    words = recipe([{**TWO[0], "max_steps": 100000}, TWO[1]], eval_steps=1000, max_eval_blocks=4)
    process = start([*launcher("python", 1), *words], tmp_path, run="run/phase-1")
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert not (tmp_path / "run" / "phase-2").exists()


def test_the_decay_branches_off_from_a_checkpoint(recipe: Write, tmp_path: Path) -> None:
    """Of a run at a constant rate: twice, from two of its steps; and its folder stays as it is."""
    words = [*recipe(None), "--save_steps", "2", "--save_total_limit", "none", "--streaming", "--max_steps"]
    trunk = tmp_path / "trunk"
    main([*words, "6", "--lr_scheduler_type", "constant", "--output_dir", str(trunk)])
    files = {path: path.stat().st_mtime_ns for path in trunk.rglob("*")}
    decay = ["--lr_scheduler_kwargs", "num_decay_steps=3", "decay_type=1-sqrt"]
    for step in (2, 4):
        checkpoint = trunk / "checkpoints" / f"step-{step:08d}"
        branch = [*words, "3", "--lr_scheduler_type", "warmup_stable_decay", *decay, "--start_from", str(checkpoint)]
        main([*branch, "--seed", "9", "--output_dir", str(tmp_path / f"branch-{step}")])
        rows = [json.loads(line) for line in (tmp_path / f"branch-{step}" / "metrics.jsonl").read_text().splitlines()]
        rates = [row["learning_rate"] for row in rows if "loss" in row]
        assert rates == pytest.approx([1e-3 * (1 - (i / 3) ** 0.5) for i in range(3)])
        tensors = _last(tmp_path / f"branch-{step}")
        assert {int(t) for name, t in tensors.items() if name.endswith("/step")} == {step + 3}
    assert {path: path.stat().st_mtime_ns for path in trunk.rglob("*")} == files


def test_an_average_may_begin_or_end_with_a_phase(recipe: Write, tmp_path: Path) -> None:
    main(recipe([{"max_steps": 2}, {"max_steps": 2, "ema_decay": 0.5}, {"max_steps": 2}]))
    has = [
        any(name.endswith("weight_average") for name in _last(tmp_path / "run" / f"phase-{number}"))
        for number in (1, 2, 3)
    ]
    assert has == [False, True, False]


def test_in_python_the_last_phase_is_returned(recipe: Write, tmp_path: Path) -> None:
    _, path = recipe()
    done = train_here(recipe=path)
    assert done.folder == tmp_path / "run" / "phase-2"
    assert done.model.config.max_position_embeddings == 64
    assert [row["step"] for row in done.metrics if "loss" in row] == [1, 2, 3]


def test_a_dry_run_and_the_preparation_show_every_phase(
    recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*recipe(), "--dry_run"])
    out = capsys.readouterr().out
    assert [out.count(f"output_dir: {tmp_path / 'run'}/phase-{number}") for number in (1, 2)] == [1, 1]
    assert "8 blocks an update" in out
    assert "4 blocks an update" in out
    assert not (tmp_path / "run").exists()
    prepare(recipe())
    out = capsys.readouterr().out
    assert "blocks of 16:" in out
    assert "blocks of 32:" in out


def test_a_phase_has_other_text_and_the_tokenizer_of_the_first(recipe: Write, tmp_path: Path) -> None:
    """Also when it goes on in another process."""
    (tmp_path / "other.txt").write_text("\n".join(f"Quite another text, of {i} words." for i in range(500)))
    phases = [TWO[0], {"max_steps": 3, "dataset": str(tmp_path / "other.txt")}]
    main(recipe(phases))
    tokenizers = [(tmp_path / "run" / f"phase-{i}" / "model" / "tokenizer.json").read_bytes() for i in (1, 2)]
    assert tokenizers[0] == tokenizers[1]
    main([*recipe(phases), "--output_dir", str(tmp_path / "again"), "--overwrite_output_dir"])
    for path in sorted((tmp_path / "again" / "phase-2").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    main([*recipe(phases), "--output_dir", str(tmp_path / "again"), "--resume_from_checkpoint", "latest"])
    _assert_same(tmp_path / "again" / "phase-2", tmp_path / "run" / "phase-2")


def test_a_folder_in_use_is_refused_at_the_start_and_overwritten_as_a_whole(
    recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = tmp_path / "run" / "phase-2"
    (second / "model").mkdir(parents=True)
    assert f"output_dir='{second}' holds another run" in _error(recipe(), capsys)
    assert not (tmp_path / "run" / "phase-1").exists()
    words = recipe([{"max_steps": 2, "lr_scheduler_type": "constant"}, {"max_steps": 2}])
    main([*words, "--overwrite_output_dir"])
    assert (second / "model" / "config.json").exists()


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "phases must be a list of at least one map of settings"),
        ({"max_steps": 3}, "phases must be a list of at least one map of settings"),
        ([{"max_step": 3}], "phase 1: unknown setting max_step; did you mean max_steps?"),
        ([{}, {"phases": []}], "phase 2: unknown setting phases"),
        ([{}, {"model_name_or_path": "x"}], "phase 2 sets model_name_or_path, which all phases share"),
        ([{"max_steps": 3}, {"optimizer": "muon"}], "phase 2 sets optimizer, which all phases share"),
        ([{"max_steps": 0.5}], "phase 1: max_steps=0.5 is a share of the recipe's max_steps: give those"),
        ([{"max_steps": 3}, {"streaming": True}], "streaming: nobody knows how much text there is"),
        (
            [{"max_steps": 3}, {"max_steps": 3, "block_size": 64}],
            "block_size=64 is longer than the model's 32 positions",
        ),
        (
            [{"max_steps": 3}, {"model_config": {"hidden_size": 64}}],
            "model_config may change no shape, as rope_parameters does not",
        ),
        ([{"max_steps": 3}, {"warmup_steps": 9, "max_steps": 3}], "warmup_steps=9.0 are more than the run's 3 updates"),
    ],
)
def test_what_is_wrong_with_any_phase_is_one_line_before_the_first(
    phases: Any, message: str, recipe: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in _error(recipe(phases), capsys)
    assert not (tmp_path / "run").exists()


def test_a_model_with_learned_positions_does_not_grow(
    train: Train, recipe: Write, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = recipe([{"max_steps": 3}, {"block_size": 128}], model_type=None, model_config={}, train_tokenizer=False)
    error = _error([*words, "--model_name_or_path", str(model_folder)], capsys)
    assert "block_size=128 is longer than the model's 64 positions: use --block_size 64 or less" in error


@pytest.fixture
def trunk(train: Train, tmp_path: Path) -> Path:
    train(tmp_path / "trunk", "--max_steps", "1", "--eval_steps", "1")
    return tmp_path / "trunk"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--start_from", "{trunk}", "--optimizer", "muon"), "was made with optimizer='adamw', and this run has"),
        (("--start_from", "{trunk}", "--train_tokenizer"), "was made with tokenizer (SHA-256)="),
        (("--start_from", "{trunk}/model"), "manifest.json is missing"),
        (("--start_from", "nowhere"), "nowhere: manifest.json is missing"),
        (
            ("--start_from", "{trunk}", "--output_dir", "{trunk}"),
            "is in output_dir: a new run needs a folder of its own",
        ),
        (("--start_from", "{damaged}"), "no checkpoint in {damaged} is whole"),
        (("--start_from", "{trunk}", "--model_name_or_path", "{small}"), "model_config may change no shape"),
    ],
)
def test_what_a_run_cannot_start_from_is_one_line(
    words: tuple[str, ...], message: str, train: Train, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"trunk": str(trunk), "damaged": str(tmp_path / "damaged"), "small": str(tmp_path / "small")}
    (tmp_path / "damaged" / "checkpoints" / "step-00000001").mkdir(parents=True)
    tiny_model("roberta", hidden_size=16).save_pretrained(tmp_path / "small")
    for path in (trunk / "model").glob("tokenizer*"):
        (tmp_path / "small" / path.name).write_bytes(path.read_bytes())
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "new", *(word.format(**places) for word in words))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message.format(**places) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_another_checkpoint_than_latest_is_of_one_phase(recipe: Write, capsys: pytest.CaptureFixture[str]) -> None:
    error = _error([*recipe(), "--resume_from_checkpoint", "some/checkpoint"], capsys)
    assert "config.yaml in a phase's folder is a recipe of that phase alone" in error


def test_the_recipe_of_modernbert_trains_when_all_its_numbers_are_small(
    cache_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the embedded corpus: blocks of 16 and 128, batches of 2 that grow to 8, a model of two layers."""
    values = yaml.safe_load((RECIPES / "modernbert.yaml").read_text())
    values |= {"dataset": "python-docs", "dataset_config": None, "dataset_split": "train[:3%]", "streaming": False}
    values |= {"tokenizer_name_or_path": None, "train_tokenizer": True, "vocab_size": 300, "max_eval_blocks": 8}
    values |= {"max_steps": 40, "cpu_threads": 1, "cache_dir": cache_dir, "dataloader_num_workers": 0}
    values |= {"logging_steps": 1, "output_dir": str(tmp_path / "run")}
    values["model_config"] |= SHAPE
    for phase in values["phases"]:
        phase["block_size"] //= 64
        phase["global_batch_size"] //= 576
        phase["per_device_train_batch_size"] = 1
    values["phases"][0] |= {"initial_batch_size": 2, "batch_warmup_steps": 0.5}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    main(["--recipe", str(tmp_path / "recipe.yaml")])
    ends = [
        json.loads((tmp_path / "run" / f"phase-{n}" / "metrics.jsonl").read_text().splitlines()[-1]) for n in (1, 2, 3)
    ]
    assert [row["step"] for row in ends] == [34, 5, 1]
    config = AutoConfig.from_pretrained(tmp_path / "run" / "phase-3" / "model")
    assert config.rope_parameters["full_attention"]["rope_theta"] == 160000.0
    assert config.max_position_embeddings == 8192
