"""Writes the model card: what a run's files say about its model, as Markdown with the Hub's metadata.

    config.yaml + metrics.jsonl + the model's config.json -> model_card.jinja -> README.md

The card is a pure function of these files, so `launch.publish` can write it long after the run. It has no setting of
the machine or of accounts, and shows only the last part of a path outside the working folder.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, parse_local_safetensors_file_metadata

from train_loop.config import OVERRIDDEN_BY
from train_loop.watching.report import templates
from train_loop.watching.run_record import EVAL_COLUMNS, RunRecord, is_number, read_record

CARD = "README.md"
THIS_MODEL = "path/to/this/model"  # in a card until `push_model` knows the model's id

_NOT_SHOWN = re.compile(  # where a run was, how it was watched and shared; none of these changes the model
    r"output_dir|overwrite_output_dir|resume_from_checkpoint|cache_dir|cpu_threads|process_timeout|dataloader_.*"
    r"|save_total_limit|on_save_error|profile_.*|push_to_hub|hub_.*|report_to|project|.*_(token|key|password)"
)
_DATA_SUFFIX = re.compile(r"\.(txt|text|jsonl?|ndjson|csv|tsv|parquet|arrow|gz|zst)$", re.IGNORECASE)


def write_card(model: Path, repo_id: str | None = None) -> None:
    """Write the card of a model's folder into it."""
    (model / CARD).write_text(build_card(model, repo_id), encoding="utf-8")


def build_card(model: Path, repo_id: str | None = None) -> str:
    """The card of a run's final model, of a checkpoint, or of any folder that ``from_pretrained`` loads."""
    record, config = read_record(model), _read(model / "config.json")
    settings = record.settings
    name = (repo_id or record.name).rpartition("/")[2]
    text = next(iter(settings.get("probe") or ["The default <mask> is None."])).replace("<mask>", _mask_token(model))
    probes = [row["probes"] for row in record.rows if "probes" in row and row["step"] == record.step]
    environment = templates(Path(__file__).parent, keep_trailing_newline=True)
    environment.filters |= {"escaped": _escaped, "public": _public}
    environment.tests["hub_id"] = _is_hub_id
    headers = map(parse_local_safetensors_file_metadata, model.glob("model*.safetensors"))  # of the weights
    card = environment.get_template("model_card.jinja").render(
        metadata=_metadata(name, model, record).to_yaml(),
        name=name,
        architecture=(config.get("architectures") or ["a masked language model"])[0],
        num_parameters=sum(num for header in headers for num in header.parameter_count.values()),
        record=record,
        sources=_sources(settings),
        model_id=json.dumps(repo_id or THIS_MODEL),
        text=json.dumps(text, ensure_ascii=False),
        probes=probes[-1] if probes else None,
        columns=EVAL_COLUMNS,
        recipe=_recipe(settings),
    )
    return str(ModelCard(card))


def _metadata(name: str, model: Path, record: RunRecord) -> ModelCardData:
    """The metadata that the Hub reads; it names only models and data sets of the Hub."""
    settings, results = record.settings, _results(record)
    base, config = settings.get("model_name_or_path"), _read(model / "config.json")
    is_encoder = str((config.get("architectures") or [""])[0]).endswith("Model")  # without a head, see `auto_class`
    datasets = [source for source in _sources(settings) if _is_hub_id(source)]
    return ModelCardData(
        license=settings.get("hub_license"),
        library_name="transformers",
        pipeline_tag="feature-extraction" if is_encoder else "fill-mask",
        tags=["masked-lm", str(config.get("model_type", "masked-lm"))],
        base_model=base if base is not None and _is_hub_id(base) else None,
        datasets=datasets or None,
        metrics=["perplexity", "accuracy"] if results else None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _results(record: RunRecord) -> list[EvalResult]:
    """The finite results of the model's evaluation for the Hub to show, if it was on one data set of the Hub."""
    evaluation, settings = record.evaluation, record.settings
    eval_dataset = settings.get("eval_dataset")
    evaluated = [eval_dataset] if eval_dataset else _sources(settings)
    if evaluation is None or len(evaluated) != 1 or not _is_hub_id(evaluated[0]):
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
                "mlm_probability": settings.get("eval_mlm_probability") or settings["mlm_probability"],
                "num_masked_tokens": evaluation.get("eval_num_masked_tokens"),
            },
        )
        for metric in ("perplexity", "accuracy", "loss")
        if is_number(value := evaluation.get(f"eval_{metric}"))
    ]


def _recipe(settings: dict[str, Any]) -> str:
    """The settings that make the same model, as YAML."""
    recipe = {
        name: _public(value)
        for name, value in settings.items()
        if value not in (None, {}, [])  # the default of such a setting
        and not (name in OVERRIDDEN_BY and settings.get(OVERRIDDEN_BY[name]))
        and not _NOT_SHOWN.fullmatch(name)
    }
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip()


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _mask_token(model: Path) -> str:
    path = model / "tokenizer_config.json"
    token = _read(path).get("mask_token") if path.is_file() else None
    return str((token.get("content") if isinstance(token, dict) else token) or "<mask>")


def _sources(settings: dict[str, Any]) -> list[str]:
    """The sources of the training text; empty without settings."""
    return list(settings.get("mixture") or [settings["dataset"]]) if settings else []


def _public(value: Any) -> Any:
    """A setting as others may see it; only the last part of a path outside the working folder."""
    if isinstance(value, dict):
        return {_public(key): _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, str) and (value.startswith(("/", "~", "..")) or Path(value).is_absolute()):
        return Path(value).name
    return value


def _is_hub_id(name: str) -> bool:
    """Whether a name can be a repository's, and is not a file or folder here."""
    is_id = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not _DATA_SUFFIX.search(name)
    return bool(is_id) and name != "python-docs" and not Path(name).exists()


def _escaped(text: str) -> str:
    """Text on one line, escaped for Markdown, which reads ``<mask>`` as HTML and ``__init__`` as bold."""
    return re.sub(r"([\\`*_\[\]<>|&~])", r"\\\1", text).replace("\n", " ")
