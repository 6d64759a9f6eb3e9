"""The card: true to the run's files, valid for the Hub, with nothing of the machine or its accounts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from tests.cards import metadata_errors
from train_loop.sharing.model_card import build_card
from train_loop.watching.report import write_report

SETTINGS = {
    "dataset": "user/texts",
    "dataset_revision": "v3",
    "model_name_or_path": "user/base",
    "model_revision": "abc123",
    "mlm_probability": 0.3,
    "eval_mlm_probability": 0.15,
    "eval_seed": 7,
    "learning_rate": 1e-3,
    "optimizer": "adamw",
    "muon_learning_rate": 0.02,
    "output_dir": "/home/me/runs/one",
    "cache_dir": "/home/me/cache",
    "hub_license": "mit",
    "hub_model_id": "me/one",
    "probe": ["the <mask> sat"],
}
START = {
    "step": 0,
    "git_commit": "c0ffee",
    "git_changes": True,
    "python": "3.11.7",
    "num_processes": 2,
    "device": "cuda",
    "mixed_precision": "bf16",
    "versions": {"torch": "2.13.0"},
}


def _row(step: int, loss: float, perplexity: float | None) -> dict[str, Any]:
    result = {"eval_loss": loss, "eval_perplexity": perplexity, "eval_accuracy": 0.25, "eval_num_masked_tokens": 1234}
    return {"step": step, "epoch": step / 10, "eval_bits_per_byte": 1.5, **result}


def _run(folder: Path, evaluations: int = 3, **settings: object) -> Path:
    """A run of 10 updates between two evaluations; returns the model's folder."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"], "model_type": "bert"}))
    (model / "tokenizer_config.json").write_text(json.dumps({"mask_token": "[MASK]"}))
    save_file({"a": torch.zeros(30, 40), "b": torch.zeros(34)}, model / "model.safetensors")
    rows = [_row(10 * i, 5.0 - i / 100, 148.4 - i) for i in range(evaluations)]
    probe = {"text": "the <mask> sat", "fills": [{"token_str": " __|cat", "score": 0.5}]}
    rows.append({"step": 10 * (evaluations - 1), "epoch": evaluations - 1.0, "probes": [probe]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump({**SETTINGS, **settings}, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps([START]))
    return model


def test_what_a_reader_finds(tmp_path: Path) -> None:
    card = build_card(_run(tmp_path / "one"), "me/one")
    assert metadata_errors(card) == []
    for expected in (
        "`BertForMaskedLM`, 1,234 parameters, trained from [user/base](https://huggingface.co/user/base) "
        "(revision `abc123`) on [user/texts](https://huggingface.co/datasets/user/texts) (revision `v3`) in 20 updates",
        'pipeline("fill-mask", model="me/one")',
        'FillMask.from_pretrained("me/one")',
        'fill_mask("the [MASK] sat", top_k=3)',
        r"| the \<mask\> sat | \_\_\|cat 50% |",
        "| 146.40 | 4.9800 | 25.0% | 1.5000 | 1,234 | 7 |",
        "15% of the\ntokens are masked",
        "| 0 | 0.00 | 5.0000 | 148.40 | 25.0% | 1.5000 |",
        "commit `c0ffee` with changes, Python 3.11.7, torch 2.13.0; 2 process(es) on cuda, mixed precision bf16.",
        "mlm train --recipe recipe.yaml",
        "`mit`.",
    ):
        assert expected in card, expected
    for hidden in ("/home/me", "| muon_learning_rate", "hub_model_id", "output_dir:"):
        assert hidden not in card, hidden


def test_the_hub_is_told_by_its_own_names(tmp_path: Path) -> None:
    data = ModelCard(build_card(_run(tmp_path / "one"), "me/one")).data
    assert (data.base_model, data.datasets, data.license) == ("user/base", ["user/texts"], "mit")
    assert (data.pipeline_tag, data.library_name, data.model_name) == ("fill-mask", "transformers", "one")
    results = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        "perplexity": 146.4,
        "accuracy": 0.25,
        "loss": 4.98,
    }
    result = results["perplexity"]
    assert (result.dataset_type, result.dataset_name) == ("user/texts", "user/texts, held out")
    assert result.dataset_revision == "v3"
    assert result.metric_args == {"eval_seed": 7, "mlm_probability": 0.15, "num_masked_tokens": 1234}


@pytest.mark.parametrize("best", [False, True])
def test_its_figures_are_those_of_the_report(tmp_path: Path, best: bool) -> None:
    model = _run(tmp_path / "one", load_best_model_at_end=best)
    rows = [_row(0, 4.0, 54.6), _row(10, 5.0, 148.4)]
    (tmp_path / "one" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report([tmp_path / "one"], tmp_path / "report.html")
    perplexity = "54.60" if best else "148.40"
    assert f"| {perplexity} | " in build_card(model).partition("## Evaluation")[2].partition("## Training")[0]
    assert f"held-out perplexity</th><td>{perplexity}<" in (tmp_path / "report.html").read_text().replace("\n", "")


def test_an_evaluation_that_was_not_finite_is_no_result(tmp_path: Path) -> None:
    model = _run(tmp_path / "one")
    (tmp_path / "one" / "metrics.jsonl").write_text(json.dumps(_row(10, 800.0, None)) + "\n")
    card = build_card(model)
    assert metadata_errors(card) == []
    assert {result.metric_type for result in ModelCard(card).data.eval_results} == {"accuracy", "loss"}
    assert "| - | 800.0000 | 25.0% | 1.5000 | 1,234 | 7 |" in card


def test_a_long_run_has_a_short_curve_with_its_end(tmp_path: Path) -> None:
    card = build_card(_run(tmp_path / "one", evaluations=100))
    curve = card.partition("| step | epoch |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(curve) <= 12
    assert curve[-1].startswith("| 990 | ")


def test_what_is_not_on_the_hub_is_not_linked(tmp_path: Path) -> None:
    settings = {"dataset": "/home/me/secret/corpus.txt", "model_name_or_path": "/home/me/models/mine"}
    card = build_card(_run(tmp_path / "one", **settings))
    assert metadata_errors(card) == []
    assert "trained from `mine` on `corpus.txt`" in card
    assert "/home/me" not in card
    assert "secret" not in card
    assert (ModelCard(card).data.base_model, ModelCard(card).data.datasets) == (None, None)


def test_several_sources_from_scratch_without_a_licence(tmp_path: Path) -> None:
    settings = {"mixture": {"user/wiki": 0.7, "python-docs": 0.3}, "model_name_or_path": None, "hub_license": None}
    card = build_card(_run(tmp_path / "one", **settings))
    assert metadata_errors(card) == []
    sources = "[user/wiki](https://huggingface.co/datasets/user/wiki) (revision `v3`), the documentation of Python"
    assert f"trained from scratch on {sources} in" in card
    assert card.endswith("## Licence\n\nNone is stated.\n")


def test_a_model_without_a_run_says_what_it_is_and_how_to_use_it(tmp_path: Path) -> None:
    model = _run(tmp_path / "one")
    (tmp_path / "one" / "config.yaml").unlink()
    card = build_card(model, "me/one")
    assert metadata_errors(card) == []
    assert "# one\n\nA masked language model: `BertForMaskedLM`, 1,234 parameters.\n" in card
    assert 'fill_mask("The default [MASK] is None.", top_k=3)' in card
    for part in ("## Evaluation", "## Training", "## Make it again"):
        assert part not in card


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Markdown takes none of them for its own."""
    folder = tmp_path / "__init__ <b> #1"
    settings = {"dataset": "user/__texts__", "eval_dataset": "/home/me/*held* <out>.txt"}
    card = build_card(_run(folder, **settings))
    assert "# \\_\\_init\\_\\_ \\<b\\> #1\n" in card
    assert "[user/\\_\\_texts\\_\\_](https://huggingface.co/datasets/user/__texts__)" in card
    assert "The text: \\*held\\* \\<out\\>.txt." in card


@pytest.mark.parametrize(
    "settings",
    [
        {"dataset": "python-docs"},
        {"dataset": "/home/me/corpus.txt"},
        {"eval_dataset": "/home/me/held-out.txt"},
        {"mixture": {"user/wiki": 0.7, "user/books": 0.3}},
    ],
)
def test_a_result_is_told_to_the_hub_of_its_data_sets_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    """By the id of one: there is none for other text."""
    card = build_card(_run(tmp_path / "one", **settings))
    assert metadata_errors(card) == []
    assert ModelCard(card).data.eval_results is None
    assert "| 146.40 | 4.9800 | 25.0% | 1.5000 | 1,234 | 7 |" in card


def test_the_recipe_has_no_setting_that_another_overrides(tmp_path: Path) -> None:
    settings = {"num_train_epochs": 3.0, "dataset": "python-docs"}
    both = build_card(_run(tmp_path / "both", **settings, max_steps=20, mixture={"user/wiki": 0.7, "user/books": 0.3}))
    alone = build_card(_run(tmp_path / "alone", **settings, max_steps=None, mixture={}))
    recipes = [yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0]) for card in (both, alone)]
    assert [("num_train_epochs" in recipe, "dataset" in recipe) for recipe in recipes] == [(False, False), (True, True)]
    assert recipes[0]["max_steps"] == 20


def test_the_limits_are_told(tmp_path: Path) -> None:
    card = build_card(_run(tmp_path / "one", block_size=64))
    limits = card.partition("## Limitations")[2].partition("## ")[0]
    assert "[user/base](https://huggingface.co/user/base)" in limits
    assert "64 tokens" in limits
