"""Reads settings from a recipe and the command line.

A recipe (``launch/recipes/NAME.yaml``, or the path of a YAML file) gives values and the command line overrides them;
in a map, key by key.
Every name is a field of a settings dataclass, so ``--help`` and the errors cannot be out of date.
"""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import itertools
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from data.config import DataConfig
from data.functions import did_you_mean, find
from launch.run.errors import OneLineParser
from train_loop import run_files
from train_loop.config import OVERRIDDEN_BY, ModelConfig, TrainConfig

_LIST_OF_SETTINGS = "mlm train --help lists them"
_HUGGING_FACE_NAMES = Path(__file__).with_name("hugging_face_names.yaml")
RECIPES = Path(__file__).parents[1] / "recipes"
GROUPS = {"data": DataConfig, "model": ModelConfig, "training": TrainConfig}
_OF_ALL_PHASES = (
    *("model_name_or_path", "model_revision", "model_type", "tokenizer_name_or_path", "train_tokenizer", "vocab_size"),
    *("objective", "optimizer", "mixed_precision", "push_to_hub", "start_from", "output_dir", "overwrite_output_dir"),
    "resume_from_checkpoint",
)
HINTS = {name: hint for config in GROUPS.values() for name, hint in typing.get_type_hints(config).items()}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every setting of a run."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    phases: tuple["Settings", ...] = ()  # of a recipe with phases: those of each, which are runs of their own

    def as_dict(self) -> dict[str, Any]:
        """All settings in one map, without phases. As YAML, it is a recipe."""
        values = dataclasses.asdict(self.data) | dataclasses.asdict(self.model) | dataclasses.asdict(self.train)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @functools.cached_property
    def functions(self) -> dict[str, Any]:
        """What ``objective``, ``optimizer`` and ``lr_scheduler_type`` name, looked up once; ValueError for no name."""
        from train_loop.objectives import OBJECTIVES  # importing torch takes seconds, and many commands do not train
        from train_loop.optim import SCHEDULES
        from train_loop.optimizers import OPTIMIZERS

        registries: dict[str, Any] = {"objective": OBJECTIVES, "optimizer": OPTIMIZERS, "lr_scheduler_type": SCHEDULES}
        return {name: find(name, getattr(self.train, name), registry) for name, registry in registries.items()}

    def marked(self, mark: str) -> dict[str, Any]:
        """The settings that have a mark beside their declaration: ``Annotated[int, mark]``."""
        return {
            field.name: getattr(part, field.name)
            for part in (self.data, self.model, self.train)
            for field in dataclasses.fields(part)
            if mark in getattr(field.type, "__metadata__", ())
        }


class SettingsParser(OneLineParser):
    """The parser of a command that takes settings; ``--help`` lists them, or names the command that does."""

    def __init__(self, prog: str, description: str = "", *, lists_settings: bool = False) -> None:
        super().__init__(
            prog=prog,
            usage=f"{prog} [--recipe NAME] [--SETTING VALUE ...]",
            description=description,
            epilog=None if lists_settings else f"Settings are those of a run: {_LIST_OF_SETTINGS}.",
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
        )
        recipes = f"A YAML file of settings, or one of: {', '.join(_recipe_names())}."
        self.add_argument("--recipe", metavar="NAME", help=recipes)
        for group, config in GROUPS.items():
            section = self.add_argument_group(group)
            texts = documentation(config) if lists_settings else {}
            for field in dataclasses.fields(config):
                _add_argument(section, field, texts.get(field.name))

    def add_option(self, name: str, **keywords: Any) -> None:
        """Add an option of the command, which is no setting of a run; for the keywords see ``add_argument``."""
        self.usage = f"{self.usage} [{name} {keywords.get('metavar', '')}".rstrip() + "]"
        self.add_argument(name, **keywords)


def parse_settings(arguments: Sequence[str], parser: SettingsParser) -> tuple[Settings, argparse.Namespace]:
    """The settings, and the command's own options. Raises ValueError for a wrong name or value."""
    options, unknown = parser.parse_known_args(_in_one_spelling(arguments))
    given = vars(options)
    for word in unknown:
        if word.startswith("--"):
            raise ValueError(_unknown(word.split("=")[0], [f"--{name}" for name in (*HINTS, *given, "help")]))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not expected here: every setting is written --name value")
    has_model = given.get("model_name_or_path", "none") != "none"
    values = _read_recipe(options.recipe, has_model=has_model) if options.recipe else {}
    phases = values.pop("phases", [])
    given = {name: words for name, words in given.items() if name in HINTS}
    values = _overridden(values, given)
    return dataclasses.replace(_settings(values), phases=tuple(_phases(values, phases, given))), options


def _settings(values: dict[str, Any]) -> Settings:
    def part(config: Any) -> Any:
        return config(**{f.name: values[f.name] for f in dataclasses.fields(config) if f.name in values})

    return Settings(part(DataConfig), part(ModelConfig), part(TrainConfig))


def _overridden(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The values with those of the command line in their place; in a map, key by key."""
    changed = {}
    for name, words in given.items():
        if _kind(HINTS[name])[0] is dict:  # a recipe's keys stay, unless the word ``none`` empties the map
            recipes = {} if "none" in words else values.get(name, {})
            changed[name] = recipes | _convert(name, [word for word in words if word != "none"])
        else:
            changed[name] = _convert(name, words)
    return _merged(values, changed)


def _merged(values: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    weaker = {stronger for name, stronger in OVERRIDDEN_BY.items() if name in changed}  # it counts for the other
    return {name: value for name, value in values.items() if name not in weaker} | changed


def _phases(recipe: dict[str, Any], phases: list[dict[str, Any]], given: dict[str, Any]) -> Iterator[Settings]:
    """Yield the settings of each phase, a run that begins where the one before ended.

    They are the recipe's, those of the phase, and over both the command line's.
    """
    if phases and recipe.get("resume_from_checkpoint") not in (None, "latest"):
        way_out = "'latest' finds the phase; config.yaml in a phase's folder is a recipe of that phase alone"
        raise ValueError(f"resume_from_checkpoint={recipe['resume_from_checkpoint']!r}: of a run in phases, {way_out}")
    folders = str(Path(recipe.get("output_dir", TrainConfig.output_dir)) / run_files.PHASE)
    shape = recipe.get("model_config", {})
    for number, phase in enumerate(phases, 1):
        shape = shape | phase.get("model_config", {})  # from the phase before, whose model it is
        values = _overridden(_merged(recipe, phase | {"model_config": shape}), given)
        if isinstance(share := phase.get("max_steps"), float):
            if recipe.get("max_steps") is None:
                raise ValueError(f"phase {number}: max_steps={share} is a share of the recipe's max_steps: give those")
            values["max_steps"] = max(1, round(share * recipe["max_steps"]))
        if "seed" not in phase:  # the same would show the same blocks in the same order
            values["seed"] = recipe.get("seed", TrainConfig.seed) + number - 1
        values["output_dir"] = f"{folders}{number}"
        values["push_to_hub"] = number == len(phases) and recipe.get("push_to_hub", False)
        if number > 1:
            values["start_from"] = f"{folders}{number - 1}"
            if recipe.get("train_tokenizer"):
                values |= {"train_tokenizer": False, "tokenizer_name_or_path": f"{folders}1/{run_files.MODEL}"}
        yield _settings(values)


def settings_of_model(prog: str, words: Sequence[str], model: str, text: str | None = None) -> Settings:
    """The settings of a run with a trained model, its tokenizer, and perhaps a text that is evaluated on as a whole."""
    from train_loop.sharing.locate import model_folder  # a second

    given = ["--model_name_or_path", model_folder(model), "--model_type", "none", "--model_config", "none"]
    given += ["--tokenizer_name_or_path", "none", "--train_tokenizer", "false"]
    if text is not None:
        given += ["--dataset", text, "--mixture", "none", "--eval_dataset", text]
        given += ["--eval_split", "none", "--eval_fraction", "none"]
    return parse_settings([*words, *given], SettingsParser(prog))[0]


def _in_one_spelling(arguments: Sequence[str]) -> list[str]:
    """The words with ``--max-steps`` as ``--max_steps``, and ``--model_config.hidden_size 256`` as a map's key."""
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        option, equals, value = word.partition("=")
        name, dot, key = option.removeprefix("--").partition(".")
        name = name.replace("-", "_")
        if not word.startswith("--"):
            words.append(word)
        elif dot and name in HINTS:
            words += [f"--{name}", f"{key}={value if equals else next(rest, '')}"]
        else:
            words.append(f"--{name}{dot}{key}{equals}{value}")
    return words


def _add_argument(section: Any, field: dataclasses.Field[Any], text: str | None) -> None:
    """Add the option of a setting; without a text, ``--help`` does not list it."""
    kind, choices = _kind(HINTS[field.name])
    shapes: dict[type, dict[str, Any]] = {
        bool: {"nargs": "?", "const": "true", "metavar": "true|false"},
        dict: {"nargs": "+", "action": "extend", "metavar": "KEY=VALUE"},
        tuple: {"nargs": "*", "metavar": "TEXT"},
    }
    words = list(choices) if choices and kind is str else [kind.__name__.upper(), *choices]
    shape = shapes.get(kind, {"metavar": "|".join(words)})
    if text is not None and not any(field.default is value for value in (None, dataclasses.MISSING, (), False)):
        text += f" Default: {field.default}."
    shown = argparse.SUPPRESS if text is None else text.replace("%", "%%")
    section.add_argument(f"--{field.name}", default=argparse.SUPPRESS, help=shown, **shape)


def documentation(config: type) -> dict[str, str]:
    """The documentation of each field of a settings dataclass: the string below it."""
    (definition,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _read_recipe(name: str, *, has_model: bool) -> dict[str, Any]:
    """The values of a recipe, and those of its map ``from_scratch``, unless it or the command line names a model."""
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else RECIPES / f"{name}.yaml"
    if not path.is_file():
        hint = did_you_mean(name, _recipe_names(), f"the recipes are: {', '.join(_recipe_names())}")
        raise ValueError(f"recipe={name!r}: there is no such recipe or file{hint}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("from_scratch", {}), dict):
        raise ValueError(f"{path} must hold lines of the form 'name: value'")
    from_scratch, phases = values.pop("from_scratch", {}), values.pop("phases", None)
    if not has_model and values.get("model_name_or_path") is None:
        values |= from_scratch
    for key in values:
        if key not in HINTS:
            raise ValueError(f"{path}: {_unknown(str(key), HINTS)}")
    read = {key: _convert(key, value) for key, value in values.items()}
    return read if phases is None else {**read, "phases": _read_phases(phases, path)}


def _read_phases(phases: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(phases, list) or not phases or not all(isinstance(phase, dict) for phase in phases):
        raise ValueError(f"{path}: phases must be a list of at least one map of settings, '- name: value'")
    for number, phase in enumerate(phases, 1):
        for key, value in phase.items():
            if key in _OF_ALL_PHASES:
                raise ValueError(f"{path}: phase {number} sets {key}, which all phases share: write it beside phases")
            if key not in HINTS:
                raise ValueError(f"{path}: phase {number}: {_unknown(str(key), HINTS)}")
            if not (key == "max_steps" and isinstance(value, float) and 0 < value < 1):  # a share of the recipe's
                phase[key] = _convert(key, value)
    return phases


def _unknown(name: str, known: Iterable[str]) -> str:
    names = yaml.safe_load(_HUGGING_FACE_NAMES.read_text(encoding="utf-8"))
    if (text := names.get(name.removeprefix("--"))) is not None:
        return f"unknown setting {name}: {text}"
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.8)
    return f"unknown setting {name}" + (f"; did you mean {near[0]}?" if near else f"; {_LIST_OF_SETTINGS}")


def _convert(name: str, value: Any) -> Any:
    """A value from YAML or from the command line, in the type of its setting; another value is a user error."""
    kind, choices = _kind(HINTS[name])
    if value is None or str(value).lower() in ("none", "null"):
        if type(None) in typing.get_args(HINTS[name]):
            return None
    elif value in choices:
        return value
    elif value is False and "no" in choices:  # so YAML 1.1 reads the word
        return "no"
    elif choices and kind is str:
        raise ValueError(f"{name}={value!r} must be one of: {', '.join(choices)}{did_you_mean(str(value), choices)}")
    elif kind is dict and isinstance(value, list) and all("=" in item for item in value):
        return {key: _number_or_same(yaml.safe_load(item)) for key, _, item in (pair.partition("=") for pair in value)}
    elif kind is dict and isinstance(value, dict):
        return {key: _number_or_same(item) for key, item in value.items()}
    elif kind is tuple and isinstance(value, list):
        return tuple(str(item) for item in value)
    elif kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    elif kind is str and isinstance(value, str | int | float):
        return str(value)
    elif kind in (int, float) and not isinstance(value, bool):
        number = _number_or_same(value)
        if isinstance(number, int | float) and (kind is float or float(number).is_integer()):
            return kind(number)
    raise ValueError(f"{name}={value!r} is not {_KIND_NAMES[kind]}")


def _number_or_same(value: Any) -> Any:
    """The number that a string spells, or the value itself: YAML 1.1 reads 2e-5 as a string."""
    if isinstance(value, str):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(value)
    return value


def _kind(hint: Any) -> tuple[type, tuple[str, ...]]:
    """The type of a setting without ``| None``, and the words that a Literal allows, alone or beside the type."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = [option for option in (typing.get_args(hint) if is_union else (hint,)) if option is not type(None)]
    words = [word for option in options if typing.get_origin(option) is Literal for word in typing.get_args(option)]
    plain = [typing.get_origin(option) or option for option in options if typing.get_origin(option) is not Literal]
    return plain[0] if plain else str, tuple(words)


_KIND_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a map, written name=value name=value",
    tuple: "a list",
}
