"""The Hub's rules for the metadata of a model card, as far as they can be told without it."""

import re
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_LICENCES = {"apache-2.0", "mit", "cc-by-sa-4.0", "cc-by-4.0", "bsd-3-clause", "openrail", "other", "unknown"}
_LISTS = {"tags": str, "datasets": str, "metrics": str, "model-index": dict}
_KNOWN = {"license", "library_name", "pipeline_tag", "base_model", *_LISTS}


def metadata_errors(card: str) -> list[str]:
    """What the Hub would refuse in a card.

    The rules of https://github.com/huggingface/hub-docs/blob/main/modelcard.md, and of the
    server's check as its answers show them: known types, ids of repositories, a complete model-index.
    """
    match = REGEX_YAML_BLOCK.match(card)
    if match is None:
        return ["there is no metadata block"]
    data = yaml.safe_load(match[2])
    errors = [f"{name} is not known" for name in data.keys() - _KNOWN]
    errors += [f"{name} is empty" for name, value in data.items() if value in (None, "", [])]
    for name, kind in _LISTS.items():
        value = data.get(name, [])
        if not (isinstance(value, list) and all(isinstance(item, kind) for item in value)):
            errors.append(f"{name} must be a list of {kind.__name__}")
    if data.get("license", "mit") not in _LICENCES:
        errors.append(f"license {data['license']!r} is not known")
    ids = [*data.get("datasets", []), *([data["base_model"]] if "base_model" in data else [])]
    errors += [f"{name!r} is no id of a repository" for name in ids if not _ID.fullmatch(name) or len(name) > 96]
    return errors + [error for model in data.get("model-index", []) for error in _index_errors(model)]


def _index_errors(model: dict[str, Any]) -> list[str]:
    errors = [] if isinstance(model.get("name"), str) and model["name"] else ["model-index has no name"]
    for result in model.get("results") or [{}]:
        wanted = [("task", ("type",)), ("dataset", ("type", "name"))]
        errors += [
            f"model-index {part}.{key} is missing"
            for part, keys in wanted
            for key in keys
            if not isinstance(result.get(part, {}).get(key), str)
        ]
        for metric in result.get("metrics") or [{}]:
            if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), int | float | str):
                errors.append("model-index metrics need type and value")
    return errors
