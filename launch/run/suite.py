"""A suite of questions that tell how good an encoder is beside its perplexity: minimal pairs, and labelled texts."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.config import PYTHON_DOCS
from data.documents.documents import texts_of_file
from data.documents.files import KNOWN_FORMATS, file_format
from data.documents.python_docs import cached_rows
from launch.run.settings import Settings
from train_loop.inference.features import features, probe
from train_loop.inference.pairs import Pair, Score, judge
from train_loop.inference.predictor import load_with_tokenizer
from train_loop.inference.scoring import TextScorer
from train_loop.processes import Processes

ENGLISH = "english"
_TEMPLATES = Path(__file__).with_name("english.yaml")
_FEWEST_WORDS = 4  # known to the tokenizer
_MOST_PAIRS = 100  # of a phenomenon of templates
_NUM_MODULES, _MOST_TEXTS = 8, 100  # of the embedded corpus, and of one module


@dataclass(frozen=True)
class Suite:
    """What to ask."""

    pairs: tuple[str, ...] = ()  # files or folders of rows with sentence_good and sentence_bad, or english: templates
    labels: tuple[str, ...] = ()  # files of rows with text and label, or python-docs: of which module a text is
    group_by: str | None = None  # the column that says what a pair is about; None: the name of its file
    within_word: bool = False  # see `TextScorer`
    pooling: Any = "mean"  # what of a text's hidden states is classified: mean, or first
    every: int = 1  # ask at every so many evaluations of a run, and at the last
    cache_dir: str = "~/.cache/mlm-train-loop"  # where the embedded corpus is kept

    def __post_init__(self) -> None:
        for name in {*self.pairs, *self.labels} - {ENGLISH, PYTHON_DOCS}:
            _files(name)  # a wrong name is told before hours of training
        if self.labels and find_spec("sklearn") is None:
            raise ValueError("labelled texts need scikit-learn: pip install 'mlm-train-loop[probes]'")
        if self.pooling not in ("mean", "first"):
            raise ValueError(f"pooling={self.pooling!r} must be mean or first")
        if self.every < 1:
            raise ValueError(f"every={self.every} must be 1 or more")

    def scores(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str, Score]]:
        """Yield name, group and score, that of all groups last. Raises ValueError for what cannot be read or asked."""
        for name in self.pairs:
            pairs = english(tokenizer) if name == ENGLISH else self._pairs(name)
            found = judge(TextScorer(model, tokenizer), pairs, within_word=self.within_word)
            yield from ((Path(name).stem, group, score) for group, score in found.items())
        for name in self.labels:
            files = [] if name == PYTHON_DOCS else _files(name)
            rows = itertools.chain.from_iterable(texts_of_file(file, "text", "label") for file in files)
            texts, labels = zip(*(rows if files else self._modules()), strict=True)
            states = features(model, tokenizer, texts, pooling=self.pooling)
            ((_, most),) = Counter(labels).most_common(1)
            yield Path(name).stem, f"{len({*labels})} labels, one is {most / len(labels):.1%}", probe(states, labels)

    def row(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """The scores for a row of ``metrics.jsonl``: all of them, and the accuracy of each name for a curve."""
        found = self.scores(model, tokenizer)
        scores = [{"suite": name, "about": group, **score._asdict()} for name, group, score in found]
        curves = {f"eval_{score['suite']}": score["accuracy"] for score in scores}  # the last of a name is that of all
        return {"suite": scores, **curves}

    def rows(self, settings: Settings, accelerator: Accelerator, processes: Processes) -> list[dict[str, Any]]:
        """The rows of `launch.run.evaluation` for the model of the settings; the main process computes them."""
        name = str(settings.model.model_name_or_path)

        def answered() -> list[dict[str, Any]]:
            model, tokenizer = load_with_tokenizer(name)
            return [{"model": name, **row} for row in self.row(model.to(accelerator.device), tokenizer)["suite"]]

        return processes.from_main(answered)

    def _pairs(self, name: str) -> Iterator[Pair]:
        columns = ("sentence_good", "sentence_bad", *filter(None, [self.group_by]))
        for file in _files(name):
            for good, bad, *group in texts_of_file(file, *columns):
                yield Pair(good, bad, group[0] if group else file.stem)

    def _modules(self) -> Iterator[tuple[str, str]]:
        """Texts of the modules that have the most, with the module as the label."""
        corpus = texts_of_file(cached_rows(Path(self.cache_dir)), "answers.text", "title")
        rows = [(text, title.partition(".")[0]) for text, title in corpus]
        for module, _ in Counter(module for _, module in rows).most_common(_NUM_MODULES):
            yield from itertools.islice((row for row in rows if row[1] == module), _MOST_TEXTS)


def open_suite(settings: Settings) -> Suite | None:
    """The suite of the settings, if any. Raises ValueError unless its file maps names of `Suite` to values."""
    if (path := settings.train.eval_suite) is None:
        return None
    try:
        values = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        known = [field.name for field in fields(Suite) if field.name != "cache_dir"]
        if not isinstance(values, dict) or not values.keys() <= {*known}:
            raise ValueError(f"it must map names to values; the names are: {', '.join(known)}")
        lists = {name: tuple(values[name]) for name in ("pairs", "labels") if name in values}
        return Suite(**{**values, **lists, "cache_dir": settings.data.cache_dir})
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"eval_suite={path}: {' '.join(str(error).split())}") from error


def _files(name: str) -> list[Path]:
    path = Path(name).expanduser()
    found = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    if not (known := [file for file in found if file_format(str(file))]):
        raise ValueError(f"{name}: no such file, or none in the folder, of {KNOWN_FORMATS}")
    return known


def english(tokenizer: PreTrainedTokenizerBase) -> Iterator[Pair]:
    """Yield pairs by the templates of ``english.yaml``, with words that are one token each where there are enough."""
    given = yaml.safe_load(_TEMPLATES.read_text(encoding="utf-8"))
    words = {}
    for slot, entries in given["words"].items():
        single = [entry for entry in entries if all(len(tokenizer.tokenize(f" {word}")) == 1 for word in entry)]
        words[slot] = single if len(single) >= _FEWEST_WORDS else entries
    for phenomenon, (slots, *templates) in given["phenomena"].items():
        fillings = list(itertools.product(*(words[slot] for slot in slots)))
        pairs = [[t.format(*filling) for t in template] for filling in fillings for template in templates]
        for good, bad in pairs[:: -(-len(pairs) // _MOST_PAIRS)]:
            yield Pair(good, bad, phenomenon)
