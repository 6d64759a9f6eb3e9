"""Fill masks: ``python -m launch.fill_mask --model DIR_OR_ID "The default <mask> is None."``."""

import argparse
import json
import sys

from transformers.utils import logging

from launch.cli import OneLineParser, fail
from train_loop import FillMask
from train_loop.fill_mask import Fill


def main(arguments: list[str]) -> None:
    """Print the top fills of each mask; exit 2 with one line for what the user can mend."""
    parser = OneLineParser(
        prog="python -m launch.fill_mask", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="text with a mask token; <mask> and [MASK] both work")
    parser.add_argument(
        "--model", required=True, metavar="DIR_OR_ID", help="folder or Hub id of a masked language model"
    )
    parser.add_argument("--top_k", type=int, default=5, metavar="K", help="fills for each mask (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON line a text, with the pipeline's fields")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    try:
        fill_mask = FillMask.from_pretrained(options.model)
        texts = [_own_mask(text, str(fill_mask.tokenizer.mask_token)) for text in options.texts]
        results = fill_mask(texts, top_k=options.top_k)
    except (ValueError, OSError) as error:
        fail(error)
    for text, fills in zip(texts, results, strict=True):
        if options.json:
            print(json.dumps(fills, ensure_ascii=False))
        else:
            print(text)
            masks = [fills] if isinstance(fills[0], dict) else fills
            for number, fills_of_mask in enumerate(masks, start=1):
                if len(masks) > 1:
                    print(f"  mask {number}")
                print_table(fills_of_mask)


def _own_mask(text: str, mask_token: str) -> str:
    """Whichever of the two usual mask tokens was typed becomes the tokenizer's own."""
    return text.replace("<mask>", mask_token).replace("[MASK]", mask_token)


def print_table(fills: list[Fill]) -> None:
    """One fill a line: probability, word, the sentence with it."""
    width = max(len(fill["token_str"].strip()) for fill in fills)
    for fill in fills:
        print(f"  {fill['score']:6.1%}  {fill['token_str'].strip():<{width}}  {fill['sequence']}")


if __name__ == "__main__":
    main(sys.argv[1:])
