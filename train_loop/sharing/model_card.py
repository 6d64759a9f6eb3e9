"""Writes the model card: what a run's files say about its model, as Markdown with the Hub's metadata.

    config.yaml + metrics.jsonl + the model's config.json -> README.md

The card is a pure function of these files, so `launch.publish` can write it long after
the run. It has no setting of the machine or of accounts, and shows only the last part of
a path outside the working folder.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from train_loop.sharing.card_names import escaped, is_hub_id, linked, public, sources
from train_loop.watching.run_record import EVAL_COLUMNS, RunRecord, is_number, read_record, shown, shown_fills

CARD = "README.md"
THIS_MODEL = "path/to/this/model"  # in a card until `push_model` knows the model's id

_NOT_SHOWN = re.compile(  # where a run was, how it was watched and shared; none of these changes the model
    r"output_dir|overwrite_output_dir|resume_from_checkpoint|cache_dir|cpu_threads|process_timeout|dataloader_.*"
    r"|save_total_limit|on_save_error|profile_.*|push_to_hub|hub_.*|report_to|project|.*_(token|key|password)"
)
_OVERRIDDEN_BY = {"num_train_epochs": "max_steps", "dataset": "mixture"}
_MOST_ROWS = 12
_RESULT = ("eval_perplexity", "eval_loss", "eval_accuracy", "eval_num_masked_tokens")
_MAIN_SETTINGS = re.compile(
    r"dataset_revision|text_column|block_size|mlm_probability|masking|global_batch_size|gradient_accumulation_steps"
    r"|optimizer|learning_rate|muon_learning_rate|lr_scheduler_type|warmup_steps|weight_decay|seed"
)


def write_card(model: Path, repo_id: str | None = None) -> None:
    """Write the card of a model's folder into it."""
    (model / CARD).write_text(build_card(model, repo_id), encoding="utf-8")


def build_card(model: Path, repo_id: str | None = None) -> str:
    """The card of a run's final model, of a checkpoint, or of any folder that ``from_pretrained`` loads."""
    record = read_record(model)
    name = (repo_id or record.name).rpartition("/")[2]
    sections = (
        _introduction(name, model, record),
        _use(model, repo_id or THIS_MODEL, record),
        _evaluation(record),
        _limitations(record.settings),
        _training(record),
        _again(record),
        _licence(record.settings),
    )
    body = "\n\n".join(section for section in sections if section)
    return str(ModelCard(f"---\n{_metadata(name, model, record).to_yaml()}\n---\n\n{body}\n"))


def _metadata(name: str, model: Path, record: RunRecord) -> ModelCardData:
    """The metadata that the Hub reads; it names only models and data sets of the Hub."""
    settings, results = record.settings, _results(record)
    base = settings.get("model_name_or_path")
    datasets = [source for source in sources(settings) if is_hub_id(source)]
    return ModelCardData(
        license=settings.get("hub_license"),
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["masked-lm", str(_read(model / "config.json").get("model_type", "masked-lm"))],
        base_model=base if base is not None and is_hub_id(base) else None,
        datasets=datasets or None,
        metrics=["perplexity", "accuracy"] if results else None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _results(record: RunRecord) -> list[EvalResult]:
    """The finite results of the model's evaluation for the Hub to show, if it was on one data set of the Hub."""
    evaluation, settings = record.evaluation, record.settings
    eval_dataset = settings.get("eval_dataset")
    evaluated = [eval_dataset] if eval_dataset else sources(settings)
    if evaluation is None or len(evaluated) != 1 or not is_hub_id(evaluated[0]):
        return []  # the Hub refuses a result without the id of a data set
    return [
        EvalResult(
            task_type="fill-mask",
            task_name="Masked language modeling",
            dataset_type=evaluated[0],
            dataset_name=evaluated[0] if eval_dataset else f"{evaluated[0]}, held out",
            dataset_config=settings.get("dataset_config"),
            dataset_split=settings.get("eval_split"),
            dataset_revision=settings.get("dataset_revision"),
            metric_type=metric,
            metric_name=metric.capitalize(),
            metric_value=round(value, 4),
            metric_args={
                "eval_seed": settings.get("eval_seed"),
                "mlm_probability": _eval_probability(settings),
                "num_masked_tokens": evaluation["eval_num_masked_tokens"],
            },
        )
        for metric in ("perplexity", "accuracy", "loss")
        if is_number(value := evaluation[f"eval_{metric}"])
    ]


def _introduction(name: str, model: Path, record: RunRecord) -> str:
    settings = record.settings
    kind = (_read(model / "config.json").get("architectures") or ["a masked language model"])[0]
    text = f"A masked language model: `{kind}`, {_num_parameters(model):,} parameters"
    if settings:
        base = settings.get("model_name_or_path")
        origin = "from scratch" if base is None else f"from {linked(base, settings.get('model_revision'))}"
        data = ", ".join(linked(s, settings.get("dataset_revision"), "datasets/") for s in sources(settings))
        text += f", trained {origin} on {data}"
    if record.step is not None:
        text += f" in {record.step:,} updates"
    return f"# {escaped(name)}\n\n{text}."


def _use(model: Path, model_id: str, record: RunRecord) -> str:
    mask = _mask_token(model)
    text = next(iter(record.settings.get("probe") or ["The default <mask> is None."])).replace("<mask>", mask)
    return f"""## Use

```python
from transformers import pipeline

fill_mask = pipeline("fill-mask", model={json.dumps(model_id)})
fill_mask({json.dumps(text, ensure_ascii=False)}, top_k=3)
```

or with the training loop that made it, which computes the head at the masks only, and with `joint="beam"` fills several
masks so that they fit each other:

```python
from train_loop import FillMask

fill_mask = FillMask.from_pretrained({json.dumps(model_id)})
fill_mask({json.dumps(text, ensure_ascii=False)}, top_k=3)
```{_fills(record)}"""


def _fills(record: RunRecord) -> str:
    """A table of the probe sentences as the run filled them with this model; empty if the run had none."""
    row = next((row for row in reversed(record.rows) if "probes" in row and row["step"] == record.step), None)
    if row is None:
        return ""
    lines = ["\n", "| text | it fills in |", "|---|---|"]
    lines += [f"| {escaped(probe['text'])} | {escaped(shown_fills(probe, ' · '))} |" for probe in row["probes"]]
    return "\n".join(lines)


def _evaluation(record: RunRecord) -> str:
    evaluation, settings = record.evaluation, record.settings
    if evaluation is None:
        return ""
    eval_dataset, eval_split = settings.get("eval_dataset"), settings.get("eval_split")
    held_out = "a part of the source that is held out of training"
    if eval_dataset or eval_split:
        held_out = escaped(f"{public(eval_dataset or 'the same source')} {eval_split or ''}".strip())
    return f"""## Evaluation

| perplexity | loss | accuracy | masked tokens | masks' seed |
|---|---|---|---|---|
| {" | ".join(shown(evaluation, name) for name in _RESULT)} | {settings.get("eval_seed")} |

The loss is the mean over all masked tokens, the perplexity its exponential. {_eval_probability(settings):.0%} of the
tokens are masked, the same ones at every evaluation. The text: {held_out}."""


def _limitations(settings: dict[str, Any]) -> str:
    """The limits that follow from how the model was made, without claims about what was not measured."""
    base, length = settings.get("model_name_or_path"), settings.get("block_size")
    inherited = f", and in that of {linked(base)}" if base is not None else ""
    trained = f" It was trained on blocks of {length:,} tokens; longer texts were not tried." if length else ""
    return f"""## Limitations

The model fills in what is likely in its training text{inherited}, with that text's errors and prejudices. What is
likely need not be true. Other subjects and languages, bias, and use in another task were not measured.{trained} The
model fills masks; it was not made to write text."""


def _training(record: RunRecord) -> str:
    """The main settings, and some rows of the evaluation curve, always with the last."""
    settings = record.settings
    if not settings:
        return ""
    lines = ["## Training", "", "| setting | value |", "|---|---|"]
    unused = "" if settings.get("optimizer") == "muon" else "muon_learning_rate"
    for name, value in settings.items():
        if _MAIN_SETTINGS.fullmatch(name) and name != unused and value is not None:
            lines.append(f"| {name} | {escaped(str(public(value)))} |")
    if rows := record.having("eval_loss"):
        lines += ["", "| step | epoch | eval loss | perplexity | accuracy |", "|---|---|---|---|---|"]
        every = math.ceil(len(rows) / _MOST_ROWS)
        kept = rows[(len(rows) - 1) % every :: every]  # with the last row
        lines += [f"| {' | '.join(shown(row, name) for name in EVAL_COLUMNS)} |" for row in kept]
    return "\n".join(lines)


def _again(record: RunRecord) -> str:
    """The settings as a recipe, and the commands that use it."""
    settings = record.settings
    if not settings:
        return ""
    recipe = {
        name: public(value)
        for name, value in settings.items()
        if value not in (None, {}, [])  # the default of such a setting
        and not (name in _OVERRIDDEN_BY and settings.get(_OVERRIDDEN_BY[name]))
        and not _NOT_SHOWN.fullmatch(name)
    }
    return f"""## Make it again

Use the training loop with these settings as `recipe.yaml`. Give text and models that are not on the Hub the names in
the recipe.{_made_with(record)}

```bash
mlm train --recipe recipe.yaml --output_dir runs/again
mlm fill --model runs/again/model
```

<details><summary>recipe.yaml</summary>

```yaml
{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip()}
```

</details>"""


def _made_with(record: RunRecord) -> str:
    """The commit, versions and devices at the last start of the run before this model."""
    if not record.starts:
        return ""
    start = record.starts[-1]
    changed = " with changes" if start.get("git_changes") else ""
    commit = f"commit `{start['git_commit']}`{changed}, " if start.get("git_commit") else ""
    versions = ", ".join(f"{name} {version}" for name, version in start.get("versions", {}).items())
    device = f"{start['num_processes']} process(es) on {start['device']}, mixed precision {start['mixed_precision']}"
    return f" It was made with {commit}Python {start['python']}, {versions}; {device}."


def _licence(settings: dict[str, Any]) -> str:
    base = settings.get("model_name_or_path")
    if licence := settings.get("hub_license"):
        text = f"`{licence}`."
    elif base is not None:
        text = f"None is stated here; the licence of {linked(base)} applies to what comes from it."
    else:
        text = "None is stated."
    return f"## Licence\n\n{text}"


def _eval_probability(settings: dict[str, Any]) -> float:
    return settings.get("eval_mlm_probability") or settings["mlm_probability"]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _mask_token(model: Path) -> str:
    path = model / "tokenizer_config.json"
    token = _read(path).get("mask_token") if path.is_file() else None
    return str((token.get("content") if isinstance(token, dict) else token) or "<mask>")


def _num_parameters(model: Path) -> int:
    """Counted from the headers of the weights, without loading them."""
    count = 0
    for path in sorted(model.glob("model*.safetensors")):
        with safe_open(path, framework="np") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 not a dict
    return count
