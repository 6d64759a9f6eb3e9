"""Settings: a recipe gives, the command line overrides, everything else is one clear line and exit code 2."""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from launch.run.errors import one_line_errors
from launch.run.settings import (
    _HUGGING_FACE_NAMES,
    GROUPS,
    HINTS,
    RECIPES,
    SettingsParser,
    _unknown,
    documentation,
    parse_settings,
)
from launch.train import COMMAND
from train_loop import TrainConfig, plan_batches

OTHER = SettingsParser("mlm other", "Something else.")
OTHER.add_option("--pages", type=int, metavar="N", help="How many.")


def _error(arguments: list[str], capsys: pytest.CaptureFixture[str], parser: SettingsParser = COMMAND) -> str:
    @one_line_errors
    def main(words: list[str]) -> None:
        parse_settings(words, parser)

    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_every_setting_has_one_name_and_a_documentation() -> None:
    fields = [field for config in GROUPS.values() for field in dataclasses.fields(config)]
    assert [name for name, count in Counter(f.name for f in fields).items() if count > 1] == []
    texts = {name: text for config in GROUPS.values() for name, text in documentation(config).items()}
    assert set(texts) == {f.name for f in fields}
    assert [name for name, text in texts.items() if len(text) < 15 or not text.endswith(".")] == []


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_says_what_it_needs(path: Path) -> None:
    settings, _ = parse_settings(["--recipe", path.stem], COMMAND)
    assert settings.train.output_dir == f"runs/{path.stem}"
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Needs:" in line for line in header)
    assert any("Takes:" in line for line in header)


def test_the_guides_recipe_is_the_guides() -> None:
    settings, _ = parse_settings(["--recipe", "eli5"], COMMAND)
    values = settings.as_dict()
    guide = {
        "dataset_split": "train[:5000]",
        "text_column": "answers.text",
        "eval_fraction": 0.2,
        "block_size": 128,
        "mlm_probability": 0.15,
        "learning_rate": 2e-5,
        "weight_decay": 0.01,
        "num_train_epochs": 3.0,
        "global_batch_size": 8,
        "lr_scheduler_type": "linear",
        "model_name_or_path": "distilbert/distilroberta-base",
    }
    assert {name: values[name] for name in guide} == guide


def test_the_command_line_overrides_the_recipe() -> None:
    settings, _ = parse_settings(
        ["--recipe", "quickstart", "--max_steps", "7", "--learning_rate=1e-4", "--probe"], COMMAND
    )
    assert (settings.train.max_steps, settings.train.learning_rate, settings.train.probe) == (7, 1e-4, ())
    assert settings.train.optimizer == "muon"


def test_a_map_of_the_command_line_changes_keys_of_the_recipes() -> None:
    """The advice of an error of ours, ``--model_config max_position_embeddings=1024``, made a model of 112 M."""
    shape = parse_settings(["--recipe", "quickstart"], COMMAND)[0].model.model_config
    for words in (
        ["--model_config", "max_position_embeddings=1024", "hidden_size=64"],
        ["--model_config", "max_position_embeddings=1024", "--model_config", "hidden_size=64"],
        ["--model_config.max_position_embeddings", "1024", "--model-config.hidden_size=64"],
    ):
        changed = parse_settings(["--recipe", "quickstart", *words], COMMAND)[0].model.model_config
        assert changed == {**shape, "max_position_embeddings": 1024, "hidden_size": 64}
    words = ["--recipe", "quickstart", "--model_config", "none", "hidden_size=64"]
    assert parse_settings(words, COMMAND)[0].model.model_config == {"hidden_size": 64}
    words = ["--recipe", "quickstart", "--lr-scheduler-type", "linear", "--lr_scheduler_kwargs", "none"]
    assert parse_settings(words, COMMAND)[0].train.lr_scheduler_kwargs == {}


def test_what_the_command_line_gives_instead_of_a_recipes_other_setting_counts(tmp_path: Path) -> None:
    """Both say how long a run is, or where its text is: the recipe's would win without a word."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model_type: bert\nmax_steps: 100\nmixture: {a.txt: 1.0, b.txt: 2.0}\n")
    settings, _ = parse_settings(["--recipe", str(recipe)], COMMAND)
    assert (settings.train.max_steps, len(settings.data.mixture)) == (100, 2)
    words = ["--recipe", str(recipe), "--num_train_epochs", "2", "--dataset", "c.txt"]
    settings, _ = parse_settings(words, COMMAND)
    assert (settings.train.max_steps, settings.train.num_train_epochs) == (None, 2)
    assert (settings.data.mixture, settings.data.dataset) == ({}, "c.txt")
    settings, _ = parse_settings([*words, "--max_steps", "7"], COMMAND)
    assert settings.train.max_steps == 7


def test_dots_in_a_value_and_dashes_in_a_value_stay() -> None:
    words = ["--recipe", "mine", "--mixture.a-b/wiki.jsonl", "0.7", "--text-column=answers.a-b"]
    settings, _ = parse_settings([*words, "--dataset", "dataset.a-b=c.txt"], COMMAND)
    assert (settings.data.mixture, settings.data.text_column) == ({"a-b/wiki.jsonl": 0.7}, "answers.a-b")
    assert settings.data.dataset == "dataset.a-b=c.txt"


def test_a_recipe_for_ones_own_text_is_from_scratch_or_from_a_model() -> None:
    scratch, _ = parse_settings(["--recipe", "mine", "--model_config.hidden_size", "64"], COMMAND)
    assert (scratch.model.model_type, scratch.data.train_tokenizer, scratch.train.optimizer) == (
        *("modernbert", True, "muon"),
    )
    assert scratch.model.model_config["hidden_size"] == 64
    assert scratch.model.model_config["num_hidden_layers"] == 2
    tuned, _ = parse_settings(["--recipe", "mine", "--model_name_or_path", "roberta-base"], COMMAND)
    assert (tuned.model.model_type, tuned.model.model_config, tuned.data.train_tokenizer) == (None, {}, False)
    assert (tuned.train.optimizer, tuned.train.learning_rate, tuned.train.max_steps) == ("adamw", 5e-5, None)
    assert tuned.train.output_dir == scratch.train.output_dir == "runs/mine"


def test_what_hugging_face_names_say_to_type_can_be_typed() -> None:
    texts = yaml.safe_load(_HUGGING_FACE_NAMES.read_text())
    assert len(texts) > 60
    assert texts.keys() & HINTS.keys() == set()
    of_accelerate = {"config_file", "multi_gpu", "num_processes"}
    for name, text in texts.items():
        named = set(re.findall(r"--(\w+)", text))
        assert named <= HINTS.keys() | (of_accelerate if name in of_accelerate else set()), name
        assert re.match(r"(use|set|leave it out|write)\b", text), name


def test_every_name_of_training_arguments_is_a_setting_or_gets_no_wrong_advice() -> None:
    """A name of Hugging Face's that is no setting here is in the table, or the error names no other setting."""
    texts = yaml.safe_load(_HUGGING_FACE_NAMES.read_text())
    for field in dataclasses.fields(TrainingArguments):
        if field.name not in HINTS.keys() | texts.keys():
            assert "did you mean" not in _unknown(f"--{field.name}", [f"--{name}" for name in HINTS]), field.name


def test_values_of_every_kind() -> None:
    words = (
        "--model_type bert --model_config hidden_size=32 hidden_act=relu layer_norm_eps=1e-6 --train_tokenizer "
        "--max_steps none --overwrite_output_dir true --eval_on_start false --probe a<mask> b<mask> --block_size 1e2"
    )
    settings, _ = parse_settings(words.split(), COMMAND)
    assert settings.model.model_config == {"hidden_size": 32, "hidden_act": "relu", "layer_norm_eps": 1e-6}
    assert settings.train.probe == ("a<mask>", "b<mask>")
    assert (settings.data.train_tokenizer, settings.train.overwrite_output_dir) == (True, True)
    assert (settings.train.eval_on_start, settings.train.max_steps, settings.data.block_size) == (False, None, 100)


def test_resolved_settings_are_a_recipe_again(tmp_path: Path) -> None:
    settings, _ = parse_settings(["--recipe", "quickstart"], COMMAND)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings.as_dict()))
    assert parse_settings(["--recipe", str(path)], COMMAND)[0] == settings


def test_yaml_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model_type: bert\nlearning_rate: 2e-5\nlr_scheduler_kwargs: {power: 1e-1}\nmixed_precision: no\n")
    settings, _ = parse_settings(["--recipe", str(path)], COMMAND)
    assert settings.train.learning_rate == 2e-5
    assert settings.train.lr_scheduler_kwargs == {"power": 0.1}
    assert settings.train.mixed_precision == "no"  # which YAML 1.1 reads as false


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--recipe quikstart", "did you mean 'quickstart'?"),
        ("--recipe missing.yaml", "there is no such recipe or file"),
        ("--recipe quickstart --lerning_rate 1", "unknown setting --lerning_rate; did you mean --learning_rate?"),
        ("--recipe quickstart --block-size 1", "block_size=1 must be at least 2"),
        ("--recipe nope", "the recipes are: domain, eli5, eli5_keras, mine, pretrain, quickstart"),
        ("--recipe quickstart --bf16", "unknown setting --bf16: use --mixed_precision bf16"),
        ("--recipe quickstart --lr 1e-4", "unknown setting --lr: use --learning_rate"),
        ("--recipe quickstart --max-seq-length 64", "unknown setting --max_seq_length: use --block_size"),
        ("--recipe quickstart --train_file a.txt", "unknown setting --train_file: use --dataset"),
        ("--recipe quickstart --eval_strategy=epoch", "unknown setting --eval_strategy: use --eval_steps"),
        ("--recipe quickstart --zzz 1", "unknown setting --zzz; mlm train --help lists them"),
        ("--recipe quickstart --max_stop 1", "did you mean --max_steps?"),
        ("--recipe quickstart --hub_strat 1", "did you mean --hub_strategy?"),
        ("--recipe quickstart --seed.a 1", "seed='a=1' is not a whole number"),
        ("--recipe quickstart --mixed_precision fp8", "mixed_precision='fp8' must be one of: no, bf16, fp16"),
        ("--recipe quickstart --learning_rat 1", "did you mean --learning_rate?"),
        ("--recipe quickstart extra", "'extra' is not expected here"),
        ("--recipe quickstart --learning_rate", "--learning_rate: expected one argument"),
        ("--recipe quickstart --learning_rate fast", "learning_rate='fast' is not a number"),
        ("--recipe quickstart --max_steps 1.5", "max_steps='1.5' is not a whole number"),
        ("--recipe quickstart --eval_on_start maybe", "eval_on_start='maybe' is not true or false"),
        (
            "--recipe quickstart --per_device_train_batch_size car",
            "per_device_train_batch_size='car' is not a whole number",
        ),
        (
            "--model_type bert --gradient_accumulation_steps 2 --per_device_train_batch_size auto",
            "give global_batch_size instead",
        ),
        (
            "--recipe quickstart --masking tokn",
            "masking='tokn' must be one of: token, whole_word, span, fixed_count",
        ),
        ("--recipe quickstart --model_config hidden_size", "is not a map, written name=value"),
        ("--recipe quickstart --seed none", "seed='none' is not a whole number"),
        ("--recipe quickstart --mlm_probability 0", "mlm_probability=0.0 must be between 0 and 1"),
        ("--recipe quickstart --mlm_probability 1.5", "mlm_probability=1.5 must be between 0 and 1"),
        ("--recipe quickstart --random_replace_prob 0.3", "add up to more than 1"),
        ("--recipe quickstart --block_size 1", "block_size=1 must be at least 2"),
        ("--recipe quickstart --gradient_accumulation_steps 2", "say the same thing twice"),
        ("--recipe quickstart --learning_rate nan", "learning_rate=nan must be a positive number"),
        ("--recipe quickstart --probe hello", "probe 'hello' must have one <mask>"),
        ("--recipe quickstart --model_name_or_path x", "give one of model_name_or_path"),
        ("--recipe quickstart --model_name_or_path x", "a recipe's model from scratch goes by --model_type none"),
        ("--recipe quickstart --model_name_or_path x --model_type none", "a recipe's goes by --model_config none"),
        ("--recipe quickstart --tokenizer_name_or_path x", "give one of them"),
        ("--recipe eli5 --eval_split test", "give one of them"),
        ("", "give one of model_name_or_path"),
    ],
)
def test_a_wrong_word_is_one_clear_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in _error(words.split(), capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rte: 1", "unknown setting learning_rte; did you mean learning_rate?"),
        ("just words", "must hold lines of the form 'name: value'"),
        ("a: [", "is not YAML"),
        ("train_tokenizer: 3", "train_tokenizer=3 is not true or false"),
        ("probe: one", "probe='one' is not a list"),
        ("model_config: 3", "model_config=3 is not a map"),
        ("from_scratch: 3", "must hold lines of the form 'name: value'"),
        ("from_scratch: {block_sise: 3}", "did you mean block_size?"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    assert message in _error(["--recipe", str(path)], capsys)


def test_help_names_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_settings(["--help"], COMMAND)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for config in GROUPS.values():
        for field in dataclasses.fields(config):
            assert f"--{field.name}" in text
    assert "Default: 5e-05." in text


def test_a_command_has_its_own_options_and_the_settings_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    settings, options = parse_settings(["--recipe", "quickstart", "--pages", "3", "--block_size", "64"], OTHER)
    assert (settings.data.block_size, options.pages) == (64, 3)
    assert "did you mean --pages?" in _error(["--page", "3"], capsys, OTHER)
    assert "--dry_run" not in _error(["--dry_rum"], capsys, OTHER).partition(";")[2]
    assert "--pages" not in _error(["--page", "3"], capsys)
    assert "--pages: invalid int value: 'x'" in _error(["--pages", "x"], capsys, OTHER)
    with pytest.raises(SystemExit):
        parse_settings(["--help"], OTHER)
    text = capsys.readouterr().out
    assert text.startswith("usage: mlm other [--recipe NAME] [--SETTING VALUE ...] [--pages N]\n")
    assert "--block_size" not in text
    assert "mlm train --help" in text


@pytest.mark.parametrize(
    ("settings", "processes", "expected"),
    [
        ({}, 1, (32, 32, 1)),
        ({}, 8, (32, 4, 1)),
        ({"global_batch_size": 10}, 3, (10, 4, 1)),
        ({"global_batch_size": 64, "per_device_train_batch_size": 8}, 2, (64, 8, 4)),
        ({"gradient_accumulation_steps": 4, "per_device_train_batch_size": 16}, 2, (128, 16, 4)),
        ({"gradient_accumulation_steps": 4}, 1, (32, 8, 4)),
    ],
)
def test_the_batch_arithmetic(settings: dict[str, int], processes: int, expected: tuple[int, int, int]) -> None:
    plan = plan_batches(TrainConfig(**settings), blocks_per_epoch=1000, num_processes=processes)  # type: ignore[arg-type]
    assert (plan.global_batch_size, plan.micro_batch_size, plan.micro_batches_per_step) == expected
    assert plan.steps_per_epoch == -(-1000 // plan.global_batch_size)
    assert plan.total_steps == 3 * plan.steps_per_epoch


@pytest.mark.parametrize(
    ("settings", "processes", "message"),
    [
        ({"global_batch_size": 4}, 8, "global_batch_size=4 is less than one block for each of 8 processes"),
        (
            {"global_batch_size": 16, "per_device_train_batch_size": 16},
            2,
            "use --per_device_train_batch_size 8, or --global_batch_size 32",
        ),
    ],
)
def test_a_batch_that_cannot_be_shared_out(settings: dict[str, int], processes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_batches(TrainConfig(**settings), blocks_per_epoch=1000, num_processes=processes)  # type: ignore[arg-type]
