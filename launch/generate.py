"""Write text by filling in masks step by step, with a model trained by masked diffusion.

mlm generate --model runs/diffusion --num_tokens 24 "If the argument is"
mlm generate --model runs/diffusion "The default <mask> <mask> <mask> <mask>." --num_texts 3
"""

import json
import sys
from pathlib import Path

from launch.run.errors import one_line_errors
from launch.terminal.texts import as_json, open_texts, text_parser
from launch.terminal.token_text import visible
from train_loop.watching.columns import excerpt, say, terminal_columns

_MOST_WATCHED = 20  # texts


@one_line_errors
def main(arguments: list[str]) -> None:
    """Print the texts; in a terminal they are watched while they fill in."""
    parser = text_parser("mlm generate", f"{__doc__}\n<mask> and [MASK] both stand for the model's own mask token.")
    parser.add_argument("--num_tokens", type=int, default=0, metavar="N", help="to write behind each text (default: 0)")
    parser.add_argument("--num_texts", type=int, default=1, metavar="N", help="to write from each text (default: 1)")
    parser.add_argument("--num_steps", type=int, metavar="N", help="forwards for a text (default: one for each token)")
    orders = "what a step fills: the surest; those, and what was less sure is masked again; any; the first"
    choices = ("confidence", "remask", "random", "left_to_right")
    parser.add_argument("--order", default="confidence", choices=choices, help=f"{orders} (default: confidence)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="of the draws (default: 1)")
    parser.add_argument("--top_k", type=int, default=20, metavar="K", help="tokens that are drawn from (default: 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    options = parser.parse_args(arguments)
    if options.num_texts < 1:
        raise ValueError(f"--num_texts {options.num_texts} must be 1 or more")
    prompts = [text for text in open_texts(options) for _ in range(options.num_texts)]
    from transformers.utils import logging

    from train_loop.inference.fill_mask import FillMask
    from train_loop.inference.probes import own_mask
    from train_loop.sharing.locate import model_folder
    from train_loop.watching.run_record import read_record

    logging.disable_progress_bar()
    writer = FillMask.from_pretrained(options.model, device=options.device, dtype=options.dtype)
    settings = read_record(Path(model_folder(options.model))).settings
    if (masking := settings.get("masking", "unknown")) != "diffusion":
        print(f"note: trained with masking={masking}, not diffusion: few words say little to it", file=sys.stderr)
    columns, mask = None if as_json(options) else terminal_columns(), str(writer.tokenizer.mask_token)
    watched = prompts[:_MOST_WATCHED] if columns else []
    clear = f"\x1b[{len(watched)}F\x1b[J" if watched else ""  # the lines of the step before

    def watch(texts: list[str]) -> None:
        lines = [excerpt(visible(text.replace(mask, "░")), columns) for text in texts[: len(watched)]]
        print(clear + "\n".join(lines), flush=True)

    names = ("num_tokens", "num_steps", "order", "temperature", "top_k", "seed", "batch_size")
    texts = [own_mask(text, writer.tokenizer) for text in prompts]
    how = {name: getattr(options, name) for name in names}
    print("\n" * len(watched), end="")
    written = writer.generate(texts, **how, watch=watch if watched else None)
    print(clear, end="")
    for prompt, text in zip(prompts, written, strict=True):
        if as_json(options):
            print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
        else:
            say(visible(text))


if __name__ == "__main__":
    main(sys.argv[1:])
