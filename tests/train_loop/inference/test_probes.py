"""Probes that are taken from a text: which sentences, and which word of each."""

from transformers import PreTrainedTokenizerBase

from tests.tokenizers import tokenizer_like
from train_loop.inference.probes import choose_probes


def test_a_probe_is_a_short_sentence_without_its_longest_word_of_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [
        "x = f(y) ; z += 1\n>>> the cat",  # code, and too few words
        "the cat saw every unpronounceable dog on town",  # the longest word is many tokens
        "the cat sat on a mat and then it saw two dogs run after one red ball over every hill",  # too long
        "two dogs. the red ball after the cat.",
        "the <mask> ball after the cat then.",
    ]
    assert choose_probes(texts, tokenizer) == (
        "the cat saw <mask> unpronounceable dog on town",
        "the red ball after <mask> cat.",
    )
    assert choose_probes(texts[1:2] * 5, tokenizer) == ("the cat saw <mask> unpronounceable dog on town",)
    assert choose_probes(["日本語の文章です。"], tokenizer) == ()


def test_the_tokenizers_own_mask_is_counted() -> None:
    (probe,) = choose_probes(["the cat sat on a mat"], tokenizer_like("bert"))
    assert probe.count("<mask>") == 1
