"""Fill the masks of texts.

mlm fill --model DIR_OR_ID "The default <mask> is None."
mlm fill --model DIR_OR_ID --file texts.jsonl > fills.jsonl
mlm fill --model DIR_OR_ID          # asks for texts
"""

import itertools
import json
import sys

from launch.run.errors import one_line_errors
from launch.terminal.fills import print_fills, prompt, target_words
from launch.terminal.texts import as_json, open_texts, text_parser


@one_line_errors
def main(arguments: list[str]) -> None:
    """Print the fills of each mask."""
    parser = text_parser("mlm fill", f"{__doc__}\n<mask> and [MASK] both stand for the model's own mask token.")
    parser.add_argument("--top_k", type=int, metavar="K", help="fills for each mask (default: 5; all targets)")
    parser.add_argument("--targets", metavar="WORD,WORD", help="score these words instead of finding the best")
    parser.add_argument(
        "--joint",
        choices=("left_to_right", "confidence", "beam"),
        help="fill several masks so that they fit each other, with the joint score:\n"
        "one after another, the surest first, or with a search of --num_beams",
    )
    parser.add_argument("--num_beams", type=int, default=10, metavar="N", help="kept by --joint beam (default: 10)")
    parser.add_argument("--truncation", action="store_true", help="cut a text that is too long around its masks")
    options = parser.parse_args(arguments)
    texts = open_texts(options)
    from transformers.utils import logging

    from train_loop.inference.fill_mask import FillMask
    from train_loop.inference.probes import own_mask

    logging.disable_progress_bar()
    fill_mask = FillMask.from_pretrained(options.model, device=options.device, dtype=options.dtype)
    settings = {name: getattr(options, name) for name in ("top_k", "joint", "num_beams", "batch_size", "truncation")}
    settings["targets"] = target_words(options.targets, fill_mask.tokenizer) if options.targets else None
    if not options.texts and options.file is None and sys.stdin.isatty():
        prompt(fill_mask, settings)
        return
    asked, shown = itertools.tee(own_mask(text, fill_mask.tokenizer) for text in texts)
    for fills, text in zip(fill_mask(asked, **settings), shown, strict=True):
        if as_json(options):
            print(json.dumps(fills, ensure_ascii=False))
        else:
            print_fills(text, fills)


if __name__ == "__main__":
    main(sys.argv[1:])
