"""Settings from a recipe and the command line. Nothing else parses.

A recipe (``launch/recipes/NAME.yaml``, or the path of a YAML file) gives values,
the command line overrides them, and every name is a field of a settings
dataclass, so ``--help`` and the errors cannot be out of date.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import os
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import yaml

from data.config import DataConfig
from data.functions import find
from train_loop.config import ModelConfig, TrainConfig

if TYPE_CHECKING:
    from train_loop.optim import BuildOptimizers, BuildSchedule

_LIST_OF_SETTINGS = "python -m launch.train --help lists them"
RECIPES = Path(__file__).parents[1] / "recipes"
GROUPS = {"data": DataConfig, "model": ModelConfig, "training": TrainConfig}
HINTS = {name: hint for config in GROUPS.values() for name, hint in typing.get_type_hints(config).items()}


@dataclass(frozen=True)
class Settings:
    """Every setting of a run."""

    data: DataConfig
    model: ModelConfig
    train: TrainConfig

    def as_dict(self) -> dict[str, Any]:
        """Flat, as a recipe is written: YAML of it is a recipe."""
        parts = (dataclasses.asdict(part) for part in (self.data, self.model, self.train))
        return {
            name: list(value) if isinstance(value, tuple) else value for part in parts for name, value in part.items()
        }

    @cached_property
    def build_objective(self) -> Any:
        """What ``objective`` names."""
        from train_loop.objectives import OBJECTIVES

        return find("objective", self.train.objective, OBJECTIVES)

    @cached_property
    def build_optimizers(self) -> "BuildOptimizers":
        """What ``optimizer`` names; found once, see `DataConfig`."""
        from train_loop.optim import OPTIMIZERS  # torch takes seconds, and many commands do not train

        return find("optimizer", self.train.optimizer, OPTIMIZERS)

    @cached_property
    def build_schedule(self) -> "BuildSchedule":
        """What ``lr_scheduler_type`` names."""
        from train_loop.optim import SCHEDULES

        return find("lr_scheduler_type", self.train.lr_scheduler_type, SCHEDULES)

    def marked(self, mark: str) -> dict[str, Any]:
        """The settings that have a mark beside their declaration: ``Annotated[int, mark]``."""
        return {
            field.name: getattr(part, field.name)
            for part in (self.data, self.model, self.train)
            for field in dataclasses.fields(part)
            if mark in getattr(field.type, "__metadata__", ())
        }


@dataclass(frozen=True)
class Command:
    """An entry point that takes settings.

    Attributes:
        prog: How it is called.
        description: What it does.
        options: Name -> keywords of ``add_argument``, for what is an option of the command but no setting of a run.
        lists_settings: Whether ``--help`` lists the settings, or names the command that does.
    """

    prog: str
    description: str
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    lists_settings: bool = False


class OneLineParser(argparse.ArgumentParser):
    """An error is one line, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit."""
        fail(message)


def is_local_main() -> bool:
    """Whether this process speaks for its machine; right before Accelerate has started, too."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def fail(message: object, code: int = 2) -> NoReturn:
    """Print one line, once a machine, and exit; with code 2 it is for what the user can mend."""
    if is_local_main():
        print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)


def parse_settings(arguments: Sequence[str], command: Command) -> tuple[Settings, argparse.Namespace]:
    """The settings, and the options of the command that are no settings.

    Exits with code 2 and one line if a name or a value is wrong.
    """
    parser = _settings_parser(command)
    options, unknown = parser.parse_known_args(arguments)
    for word in unknown:
        if word.startswith("--"):
            fail(_unknown(word.split("=")[0], [f"--{name}" for name in [*HINTS, *command.options, "recipe", "help"]]))
    if unknown:
        fail(f"{unknown[0]!r} is not expected here: every setting is written --name value")
    values = _read_recipe(options.recipe) if options.recipe else {}
    values |= {name: convert(name, value) for name, value in vars(options).items() if name in HINTS}
    try:
        parts = {
            group: config(**{f.name: values[f.name] for f in dataclasses.fields(config) if f.name in values})
            for group, config in GROUPS.items()
        }
    except ValueError as error:
        fail(error)
    return Settings(parts["data"], parts["model"], parts["training"]), options


def _settings_parser(command: Command) -> argparse.ArgumentParser:
    extra = [f"[--{name} {keywords.get('metavar', '')}".rstrip() + "]" for name, keywords in command.options.items()]
    parser = OneLineParser(
        prog=command.prog,
        usage=" ".join([command.prog, "[--recipe NAME] [--SETTING VALUE ...]", *extra]),
        description=command.description,
        epilog=None if command.lists_settings else f"Settings are those of a run: {_LIST_OF_SETTINGS}.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
    )
    recipes = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    parser.add_argument("--recipe", metavar="NAME", help=f"A YAML file of settings, or one of: {recipes}.")
    for name, keywords in command.options.items():
        parser.add_argument(f"--{name}", **keywords)
    for group, config in GROUPS.items():
        section = parser.add_argument_group(group)
        texts = documentation(config) if command.lists_settings else {}
        for field in dataclasses.fields(config):
            _add_argument(section, field, texts.get(field.name))
    return parser


def _add_argument(section: Any, field: dataclasses.Field[Any], text: str | None) -> None:
    kind, choices = _kind(HINTS[field.name])
    shapes: dict[type, dict[str, Any]] = {
        bool: {"nargs": "?", "const": "true", "metavar": "true|false"},
        dict: {"nargs": "+", "metavar": "KEY=VALUE"},
        tuple: {"nargs": "*", "metavar": "TEXT"},
    }
    words = list(choices) if choices and kind is str else [kind.__name__.upper(), *choices]
    shape = shapes.get(kind, {"metavar": "|".join(words)})
    shown = argparse.SUPPRESS if text is None else _help(field, text)
    section.add_argument(f"--{field.name}", default=argparse.SUPPRESS, help=shown, **shape)


def documentation(config: type) -> dict[str, str]:
    """The text below each field of a settings dataclass, which is where it is documented."""
    (definition,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _help(field: dataclasses.Field[Any], text: str) -> str:
    text = text.replace("%", "%%")
    has_default = field.default is not None and field.default is not dataclasses.MISSING
    shown = has_default and field.default != () and field.default is not False
    return f"{text} Default: {field.default}." if shown else text


def _read_recipe(name: str) -> dict[str, Any]:
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else RECIPES / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, [p.stem for p in RECIPES.glob("*.yaml")], n=1)
        fail(f"recipe={name!r}: there is no such recipe or file" + (f"; did you mean {near[0]!r}?" if near else ""))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fail(f"{path} is not YAML: {error}")
    if not isinstance(values, dict):
        fail(f"{path} must hold lines of the form 'name: value'")
    for key in values:
        if key not in HINTS:
            fail(f"{path}: {_unknown(str(key), HINTS)}")
    return {key: convert(key, value) for key, value in values.items()}


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"unknown setting {name}" + (f"; did you mean {near[0]}?" if near else f"; {_LIST_OF_SETTINGS}")


def convert(name: str, value: Any) -> Any:
    """A setting's value in its own type, from YAML or from the command line; exits with one line if it is none."""
    kind, choices = _kind(HINTS[name])
    if value is None or str(value).lower() in ("none", "null"):
        if type(None) in typing.get_args(HINTS[name]):
            return None
    elif value in choices:
        return value
    elif choices and kind is str:
        near = difflib.get_close_matches(str(value), choices, n=1)
        fail(
            f"{name}={value!r} must be one of: {', '.join(choices)}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
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
    fail(f"{name}={value!r} is not {_KIND_NAMES[kind]}")


def _number_or_same(value: Any) -> Any:
    """A number where a word is one: YAML 1.1 reads 2e-5 as a word."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def _kind(hint: Any) -> tuple[type, tuple[str, ...]]:
    """The plain type of a field, without ``| None``, and the words that a Literal allows, alone or beside the type."""
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
