"""P7's first half: the answers of ``pipeline("fill-mask")``, from explicit logits."""

import functools
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertModel, PreTrainedTokenizerBase, pipeline

from tests.conftest import sentences
from tests.models import sharpened, tiny_model
from tests.tokenizers import tokenizer_like
from train_loop import FillMask

FAMILIES = ["roberta", "bert", "distilbert", "modernbert", "albert", "xlm-roberta"]
ONE = "the cat {} on a mat"
TWO = "the {} sat on {} mat"
LONG = "then it saw two {} run after one red ball over every green hill in town and the cat"


@functools.cache
def parts(family: str) -> tuple[FillMask, Any]:
    """Ours and theirs, of one model and one tokenizer. Ours is from a folder: texts of many lengths are not padded."""
    model, tokenizer = sharpened(tiny_model(family)).eval(), tokenizer_like(family)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        ours = FillMask.from_pretrained(folder, device="cpu")
    assert ours._pads is False
    return ours, pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")


def assert_same(ours: object, theirs: object) -> None:
    """Same structure, tokens, strings and order; scores to 1e-5 relative."""
    assert type(ours) is type(theirs)
    if isinstance(ours, list) and isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    elif isinstance(ours, dict) and isinstance(theirs, dict):
        assert ours["score"] == pytest.approx(theirs["score"], rel=1e-5)
        assert {k: v for k, v in ours.items() if k != "score"} == {k: v for k, v in theirs.items() if k != "score"}


def masked(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return text.replace("{}", str(tokenizer.mask_token))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("texts", [ONE, TWO, LONG, [ONE, LONG], [TWO, ONE, LONG, TWO]], ids=str)
def test_answers_are_the_pipelines(family: str, texts: str | list[str]) -> None:
    fill_mask, pipe = parts(family)
    texts = [masked(t, pipe.tokenizer) for t in texts] if isinstance(texts, list) else masked(texts, pipe.tokenizer)
    assert_same(fill_mask(texts, top_k=4, clean=False), pipe(texts, top_k=4))


@settings(max_examples=25)
@given(
    family=st.sampled_from(FAMILIES),
    words=st.lists(st.sampled_from(["the", "Cat,", "unbel", "12", "(is)", "{}"]), max_size=9),
    top_k=st.integers(1, 9),
)
def test_any_text_is_answered_as_the_pipeline_does(family: str, words: list[str], top_k: int) -> None:
    fill_mask, pipe = parts(family)
    text = masked(" ".join([*words, "{}"]), pipe.tokenizer)
    assert_same(fill_mask(text, top_k=top_k, clean=False), pipe(text, top_k=top_k))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("texts", [[ONE], [TWO, LONG, ONE]], ids=str)
def test_targets_of_one_token_are_scored_as_the_pipeline_scores_them(family: str, texts: list[str]) -> None:
    """Asked for the best K, also in its order; targets come as entries of the vocabulary and as text."""
    fill_mask, pipe = parts(family)
    texts = [masked(text, pipe.tokenizer) for text in texts]
    vocabulary = sorted(pipe.tokenizer.get_vocab(), key=pipe.tokenizer.get_vocab().__getitem__)
    text = next(word for word in (" cat", " sat", "cat") if len(_pieces(pipe.tokenizer, word)) == 1)
    targets = [*vocabulary[91:61:-7], text]
    for top_k in (2, 50):
        ours = fill_mask(texts, top_k=top_k, targets=targets, clean=False)
        assert_same(ours[0] if len(texts) == 1 else ours, pipe(texts, top_k=top_k, targets=targets))


def _pieces(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    return tokenizer(word, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kwargs", [{"padding": "max_length", "max_length": 40}, {"truncation": True, "max_length": 9}])
def test_tokenizer_kwargs_are_the_pipelines(kwargs: dict[str, Any]) -> None:
    fill_mask, pipe = parts("bert")
    text = "the cat [MASK] on a mat and then it saw two dogs"
    assert_same(fill_mask(text, tokenizer_kwargs=kwargs), pipe(text, tokenizer_kwargs=kwargs))


def test_the_guides_example_step_by_step() -> None:
    """The end of the guide "Masked language modeling": encode, find the mask, top-k of its logits, replace."""
    fill_mask, pipe = parts("roberta")
    model, tokenizer = pipe.model, pipe.tokenizer
    text = "The cat and the <mask> saw two dogs."

    inputs = tokenizer(text, return_tensors="pt")
    mask_token_index = torch.where(inputs["input_ids"] == tokenizer.mask_token_id)[1]
    with torch.no_grad():
        logits = model(**inputs).logits
    mask_token_logits = logits[0, mask_token_index, :]
    top_3_tokens = torch.topk(mask_token_logits, 3, dim=1).indices[0].tolist()
    # RoBERTa's mask takes the space before it along: replaced alone, it would leave two.
    replaced = [text.replace(" " + tokenizer.mask_token, tokenizer.decode([token])) for token in top_3_tokens]

    fills = fill_mask(text, top_k=3)
    assert [fill["token"] for fill in fills] == top_3_tokens
    assert [fill["sequence"] for fill in fills] == replaced
    assert [fill["score"] for fill in fills] == pytest.approx(
        mask_token_logits[0].softmax(-1)[top_3_tokens].tolist(), rel=1e-5
    )


# What is right where the pipeline is not


def test_targets_keep_their_order_and_their_places() -> None:
    """The pipeline sorts them by an arbitrary order of a set and by score, and drops duplicates."""
    fill_mask, _ = parts("bert")
    text = "the cat [MASK] on a mat"
    targets = ["on", "the", "cat", "the", "a"]
    fills = fill_mask(text, targets=targets)
    assert [fill["token_str"] for fill in fills] == targets
    assert fills[1] == fills[3]
    every = {fill["token_str"]: fill for fill in fill_mask(text, top_k=300)}
    for fill in fills:
        assert fill["score"] == pytest.approx(every[fill["token_str"]]["score"], rel=1e-5)
    assert [f["score"] for f in fill_mask(text, targets=targets, top_k=3)] == sorted(
        (f["score"] for f in fills), reverse=True
    )[:3]


@pytest.mark.parametrize("family", ["roberta", "bert", "xlm-roberta"])
def test_a_target_of_several_pieces_is_scored_over_all_of_them(family: str) -> None:
    """By hand: as many masks as pieces; each piece given those before it."""
    fill_mask, pipe = parts(family)
    tokenizer = pipe.tokenizer
    a, b, *rest = pieces = _pieces(tokenizer, " unbelievable")
    assert rest
    text = masked("two dogs {} the cat and {}", tokenizer)
    row = tokenizer(text)["input_ids"]
    for number, place in enumerate(i for i, token in enumerate(row) if token == tokenizer.mask_token_id):
        expected = 1.0
        for i, piece in enumerate(pieces):
            masks = [tokenizer.mask_token_id] * (len(pieces) - i)
            ids = torch.tensor([[*row[:place], *pieces[:i], *masks, *row[place + 1 :]]])
            with torch.no_grad():
                expected *= pipe.model(ids).logits[0, place + i].softmax(-1)[piece].item()
        fill = fill_mask(text, targets=[" unbelievable", " cat"])[number][0]
        assert fill["score"] == pytest.approx(expected, rel=1e-4)
        assert fill["token"] == [a, b, *rest]
        assert fill["token_str"].strip() == "unbelievable"
        assert "unbelievable" in fill["sequence"]


def test_the_probabilities_of_all_words_of_two_pieces_add_up_to_one() -> None:
    """A distribution over pairs: what a product of the wrong factors would not be."""
    tokenizer = tokenizer_like("bert")
    fill_mask = FillMask(tiny_model("bert", vocab_size=12).eval(), tokenizer)
    row = [0, 7, tokenizer.mask_token_id, 9, 2]
    from train_loop.inference.targets import score_targets

    ((choices,),) = score_targets(fill_mask, [row], [(a, b) for a in range(12) for b in range(12)], 32)
    assert sum(math.exp(log_prob) for log_prob, _ in choices) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_clean_sequences_of_several_masks_can_be_filled_again(family: str) -> None:
    """No special tokens but masks, the spaces before them in place; the pipeline's has <s> and </s>."""
    fill_mask, pipe = parts(family)
    tokenizer = pipe.tokenizer
    text = masked("the {} sat, {} a {} mat", tokenizer)
    (first,), *_ = fill_mask(text, targets=" cat")
    mask = tokenizer.mask_token
    assert first["sequence"] == f"the cat sat, {mask} a {mask} mat"
    assert len(fill_mask(first["sequence"], top_k=1)) == 2
    for special in {*tokenizer.all_special_tokens} - {tokenizer.mask_token}:
        assert special not in first["sequence"]


def test_a_list_of_one_stays_a_list() -> None:
    """The pipeline unwraps it; a program that passes lists wants one answer for each text."""
    fill_mask, _ = parts("bert")
    text = masked(ONE, fill_mask.tokenizer)
    assert fill_mask([text]) == [fill_mask(text)]
    assert fill_mask([]) == []


# Batches and streams


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize(
    "options", [{}, {"targets": [" cat", " unbelievable"]}, {"joint": "beam", "top_k": 2}], ids=str
)
def test_the_batch_size_changes_nothing(batch_size: int, options: dict[str, Any]) -> None:
    fill_mask, _ = parts("roberta")
    texts = [masked(text, fill_mask.tokenizer) for text in (ONE, LONG, TWO, ONE, "{}", "{} " * 12)]
    together = fill_mask(texts, batch_size=batch_size, clean=False, **options)
    assert_same(together, [fill_mask(text, clean=False, **options) for text in texts])


def test_a_stream_is_answered_as_it_comes() -> None:
    """An iterator in, an iterator out, in order; no more is read than 32 batches ahead."""
    fill_mask, _ = parts("bert")
    texts = [sentence.replace(" ", " [MASK] ", 1) for sentence in sentences(150)]
    num_read = 0

    def read() -> Iterator[str]:
        nonlocal num_read
        for text in texts:
            num_read += 1
            yield text

    answers = fill_mask(read(), top_k=1, batch_size=2)
    assert num_read == 0
    collected = [next(answers)]
    assert num_read == 64
    collected += answers
    assert num_read == 150
    assert_same(collected, fill_mask(texts, top_k=1))


def test_only_k_values_of_each_mask_leave_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head computes M positions, not B * L, and lists are made of K values."""
    fill_mask, _ = parts("roberta")
    seen: list[torch.Size] = []
    copied: list[int] = []
    head = fill_mask.model.lm_head
    handle = head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: copied.append(tensor.numel()) or tolist(tensor))
    try:
        fill_mask([masked(text, fill_mask.tokenizer) for text in (ONE, TWO, LONG)], top_k=4)
    finally:
        handle.remove()
    assert sum(shape[:-1].numel() for shape in seen) == 4
    assert max(copied) <= 4 * 4


def test_a_model_in_training_is_asked_without_dropout_and_goes_on_training() -> None:
    tokenizer = tokenizer_like("bert")
    model = tiny_model("bert")
    fill_mask = FillMask(model, tokenizer)
    text = masked(ONE, tokenizer)
    assert model.training
    first, second = fill_mask(text), fill_mask(text)
    assert model.training
    assert first == second
    assert_same(first, pipeline("fill-mask", model=model.eval(), tokenizer=tokenizer, device="cpu")(text))


def test_half_precision_is_chosen_by_name() -> None:
    tokenizer = tokenizer_like("bert")
    fill_mask = FillMask(sharpened(tiny_model("bert")).eval(), tokenizer, device="cpu", dtype="bfloat16")
    assert fill_mask.model.dtype == torch.bfloat16
    expected = parts("bert")[0](masked(ONE, tokenizer), top_k=300)
    close = {fill["token"]: fill["score"] for fill in expected}
    for fill in fill_mask(masked(ONE, tokenizer)):
        assert fill["score"] == pytest.approx(close[fill["token"]], rel=0.05)


# Long texts


@pytest.mark.parametrize("masks", [(0,), (50,), (199,), (80, 100)])
def test_truncation_keeps_the_masks_and_as_much_around_them_as_fits(masks: tuple[int, ...]) -> None:
    """A model of 64 positions, a text of 202 tokens."""
    tokenizer = tokenizer_like("bert")
    fill_mask = FillMask(tiny_model("roberta").eval(), tokenizer)
    words = [["the", "cat", "sat", "on", "a"][i % 5] for i in range(200)]
    for mask in masks:
        words[mask] = "[MASK]"
    (row,) = fill_mask.encode([" ".join(words)], truncation=True)
    assert len(row) == fill_mask.longest == 64
    whole = tokenizer(" ".join(words))["input_ids"]
    assert (row[0], row[-1]) == (whole[0], whole[-1])
    start = next(i for i in range(len(whole)) if whole[i : i + 62] == row[1:-1])
    assert len(fill_mask.masks(row)) == len(masks)
    if masks[0] > 0 and masks[-1] < 199:
        left, right = masks[0] + 1 - start, start + 61 - (masks[-1] + 1)
        assert abs(left - right) <= 1


def test_texts_that_fit_are_not_cut() -> None:
    fill_mask, _ = parts("roberta")
    text = masked(LONG, fill_mask.tokenizer)
    assert fill_mask(text, truncation=True) == fill_mask(text)


# Bad input

FAR = "<mask>" + " the cat" * 100


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("the cat sat", {}, "no mask token in 'the cat sat': write <mask> where a word is to be filled in"),
        ("", {}, "an empty text: write one with <mask>"),
        (" \n", {}, "an empty text"),
        ("a <mask>", {"top_k": 0}, "top_k=0 must be between 1 and 300, the size of the vocabulary"),
        ("a <mask>", {"top_k": 301}, "top_k=301 must be between 1 and 300"),
        ("a <mask>", {"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ("a <mask>", {"num_beams": 0}, "num_beams=0 must be 1 or more"),
        ("a <mask>", {"joint": "best"}, "joint='best' must be one of left_to_right, confidence, beam"),
        ("a <mask>", {"joint": "beam", "targets": ["a"]}, "omit targets or joint"),
        ("a <mask>", {"targets": []}, "targets=[] names no word"),
        ("a <mask>", {"targets": ["a", ""]}, "targets that the tokenizer does not know: ''"),
        (FAR, {}, "tokens is longer than the model's 64 positions: '<mask> the cat the cat"),
        (FAR + " <mask>", {"truncation": True}, "tokens apart, more than the model's 64 positions hold"),
        (
            "the cat " * 9 + "<mask>",
            {"tokenizer_kwargs": {"truncation": True, "max_length": 8}},
            "tokenizer_kwargs cut off the mask of 'the cat the cat",
        ),
        ("a" * 55 + " <mask>", {"targets": [" unbelievable" * 6]}, "has no room for a target of"),
    ],
)
def test_bad_input_is_one_clear_line(text: str, options: dict[str, Any], message: str) -> None:
    fill_mask, _ = parts("roberta")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        fill_mask(text, **options)
    assert "\n" not in str(caught.value)


def test_a_bad_text_among_many_is_numbered() -> None:
    fill_mask, _ = parts("roberta")
    texts = ["a <mask>"] * 7
    with pytest.raises(ValueError, match=re.escape("no mask token in 'nothing' (text 6): write <mask>")):
        fill_mask([*texts[:5], "nothing", *texts], batch_size=1)
    answers = fill_mask(iter([*texts * 10, "nothing"]), batch_size=1)
    with pytest.raises(ValueError, match=re.escape("(text 71)")):
        list(answers)


def test_targets_that_are_not_known_are_all_named() -> None:
    fill_mask, _ = parts("bert")
    with pytest.raises(ValueError, match=re.escape("does not know: 'Ω', 'cat ☃'")):
        fill_mask("a [MASK]", targets=["cat", "Ω", "the", "cat ☃"])


def test_what_is_no_masked_language_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded for masked language modeling") as caught:
        FillMask.from_pretrained(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_model_without_a_head_is_one_clear_line(tmp_path: Path) -> None:
    """In memory, and as it was saved, where transformers would make a head at random."""
    tokenizer = tokenizer_like("bert")
    body = tiny_model("bert").base_model
    assert isinstance(body, BertModel)
    with pytest.raises(ValueError, match="BertModel has no masked-language-modeling head: load it with"):
        FillMask(body, tokenizer)
    body.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no trained masked-language-modeling head \(no weights for cls\."):
        FillMask.from_pretrained(str(tmp_path))


def test_a_tokenizer_without_a_mask_and_an_unknown_dtype_are_one_clear_line() -> None:
    model, tokenizer = tiny_model("bert"), tokenizer_like("bert")
    with pytest.raises(ValueError, match="dtype='int8' is no floating-point type of torch"):
        FillMask(model, tokenizer, dtype="int8")
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="has no mask token"):
        FillMask(model, bare)
