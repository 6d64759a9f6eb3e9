"""``mlm vocabulary``: a model with words of its own, which other commands take, and what it prints and refuses."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerBase

from launch.evaluate import main as evaluate
from launch.vocabulary import main
from tests.conftest import sentences
from tests.launch.conftest import Train
from tests.models import tiny_model
from tests.tokenizers import bert_of_letters, tokenizer_like
from train_loop import FillMask

WORDS = ("queryset", "template", "middleware")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of known words, with some that no tokenizer of the tests has."""
    path = tmp_path_factory.mktemp("text") / "new.jsonl"
    rows = [f"{sentence} {WORDS[i % 7 % 3]} and the {WORDS[i % 3]}" for i, sentence in enumerate(sentences(200))]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def _model(family: str, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    tokenizer = tokenizer or tokenizer_like(family)
    tiny_model(family, vocab_size=len(tokenizer) + 7).save_pretrained(folder)  # padded
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def words(text: Path, cache_dir: str) -> tuple[str, ...]:
    settings = ("--dataset", str(text), "--eval_fraction", "0.2", "--block_size", "16", "--cache_dir", cache_dir)
    return (*settings, "--cpu_threads", "1")


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_the_words_are_tokens_and_the_model_opens_and_trains_as_any(
    family: str, words: tuple[str, ...], tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _model(family, tmp_path / "old")
    main(["--model", str(model), "--add", "12", "--output", str(tmp_path / "new"), *words])
    out, err = capsys.readouterr()
    assert err == ""
    first, second, titles, *table, last = out.splitlines()
    assert first.startswith("words    12 of ")
    assert "now 1 token each, " in first
    assert titles.split() == ["word", "pieces", "gain"]
    assert {f"␣{word}" for word in WORDS} <= {line.split()[0] for line in table}
    gains = [int(line.split()[2].replace(",", "")) for line in table]
    assert gains == sorted(gains, reverse=True)
    lengths = re.fullmatch(r"tokens   in each of \d+ documents: (\S+) before, (\S+) after \(-\d+\.\d%\)", second)
    assert lengths
    assert float(lengths[1]) > float(lengths[2])
    assert last.startswith(f"where    {tmp_path / 'new'}, after ")

    old, new = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("old", "new"))
    opened = AutoModelForMaskedLM.from_pretrained(tmp_path / "new")
    assert opened.get_input_embeddings().num_embeddings == len(old) + 12  # the 7 padded rows were taken
    assert new.tokenize("the queryset") == [*old.tokenize("the"), "Ġqueryset"]
    texts = [f"a {word}" for word in WORDS]
    assert sum(map(len, new(texts)["input_ids"])) < sum(map(len, old(texts)["input_ids"]))

    (fill,) = FillMask.from_pretrained(str(tmp_path / "new"))(f"the cat sat{new.mask_token}", targets=[" queryset"])
    assert (fill["token"], fill["token_str"]) == (new.convert_tokens_to_ids("Ġqueryset"), " queryset")
    base = ("--model_name_or_path", str(tmp_path / "new"), "--masking", "whole_word", "--max_steps", "2")
    rows = train(tmp_path / "run", "--global_batch_size", "4", "--eval_on_start", "true", base=(*base, *words[:-2]))
    assert rows[-1]["step"] == 2
    saved = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert saved.tokenize("the queryset") == new.tokenize("the queryset")


def test_a_word_piece_and_words_added_in_two_rounds(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the command writes is a model to it, in which the next words follow."""
    (tmp_path / "old").mkdir()
    _model("bert", tmp_path / "old", bert_of_letters(tmp_path / "old"))
    for old, new in (("old", "one"), ("one", "two")):
        main(["--model", str(tmp_path / old), "--add", "5", "--output", str(tmp_path / new), *words])
    main(["--model", str(tmp_path / "old"), "--add", "10", "--output", str(tmp_path / "both"), *words])
    old, two, both = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("old", "two", "both"))
    assert two.get_vocab() == both.get_vocab()
    assert set(both.get_vocab()) - set(old.get_vocab()) >= {*WORDS, "middleware"}
    assert two("Template_the middleware")["input_ids"] == both("Template_the middleware")["input_ids"]
    assert two.tokenize("Template_the middlewares") == ["template", "_", "the", *old.tokenize("middlewares")]

    capsys.readouterr()
    evaluate(["--model", *(str(tmp_path / name) for name in ("old", "two")), *words, "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[1]["masked_tokens"] < rows[0]["masked_tokens"]
    assert all(0 < row["bits_per_byte"] < 20 for row in rows)


def _fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*arguments])
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
    return err


def test_mistakes_are_one_line_and_leave_nothing(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, there = str(_model("roberta", tmp_path / "old")), tmp_path / "new"
    assert "--add 0 must be 1 or more" in _fails(capsys, "--model", model, "--add", "0", "--output", str(there), *words)
    command = ("--model", model, "--add", "9", "--output")
    assert f"--output {model} is there already" in _fails(capsys, *command, model, *words)
    assert "unknown setting --colour" in _fails(capsys, *command, str(there), "--colour", "red")
    unigram = str(_model("albert", tmp_path / "unigram"))
    err = _fails(capsys, "--model", unigram, "--add", "9", "--output", str(there), *words)
    assert "(Unigram) cannot have new words: use one that cuts text into words, then by BPE or WordPiece" in err
    main([*command, str(tmp_path / "some"), *words])
    known = ("--model", str(tmp_path / "some"), "--add", "999", "--output")
    main([*known, str(tmp_path / "all"), *words])
    assert "words    " in capsys.readouterr().out
    err = _fails(capsys, "--model", str(tmp_path / "all"), "--add", "9", "--output", str(there), *words)
    assert "--add 9: each word of the text is one token of " in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "old", "some", "unigram"]
