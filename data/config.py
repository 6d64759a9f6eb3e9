"""Settings of the data half: which text, which tokenizer, which blocks, which masks."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal

from data.batches.masking import MASK_RATES, MASKINGS, Choose, MaskRate, check_choice, check_replacement, needs_words
from data.blocks.grouping import GROUPINGS, Grouping, check_grouped
from data.functions import find

PYTHON_DOCS = "python-docs"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """From a source of text to masked batches. Raises ValueError for a value that cannot work.

    A setting marked "identity" decides what the next step is: a run does not resume from a checkpoint with another
    value. One marked "identity of a stream" does so only when streaming. One marked "of the machine" may
    differ between the machines of a run.
    """

    dataset: Annotated[str, "of the machine"] = PYTHON_DOCS
    """A Hub dataset id, a local file, folder or glob (.txt .jsonl .json .csv .tsv .arrow, also .gz and .zst;
    .parquet), or 'python-docs', the embedded corpus."""
    mixture: Annotated[dict[str, float], "of the machine"] = field(default_factory=dict)
    """Several sources with their weights, in place of dataset: wiki.jsonl=0.7 books/=0.3."""
    mixture_stopping_strategy: Literal["first_exhausted", "all_exhausted"] = "all_exhausted"
    """When an epoch of a mixture ends: when the first source runs out, or when all have (shorter ones repeat)."""
    streaming: Annotated[bool, "identity"] = False
    """Read while training, with no pass over the text before the first step; needs max_steps."""
    num_streams: Annotated[int, "identity of a stream"] = 16
    """Logical streams that a streamed source is divided into; at least as many as processes."""
    shuffle_buffer_size: Annotated[int, "identity of a stream"] = 10000
    """Blocks in the buffers from which streaming draws at random, over all streams."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do with a row that cannot be read or holds no text: stop, or skip it and count it."""
    dataset_config: str | None = None
    """Configuration name of a Hub dataset."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    dataset_split: str = "train"
    """Split to train on; slices such as 'train[:5000]' work."""
    eval_dataset: Annotated[str | None, "of the machine"] = None
    """Source of the evaluation text. Default: the training dataset."""
    eval_split: str | None = None
    """Split to evaluate on. Default: 'validation' if the evaluation dataset has it, else a held-out part; for a
    mixture always a held-out part."""
    eval_fraction: float | None = None
    """Fraction of the training documents to hold out for evaluation, chosen by a hash of their text. Default:
    0.05 if there is no evaluation split."""
    max_eval_blocks: int | None = None
    """Evaluate on at most this many blocks, the first ones. Default: all; 1,000 when streaming."""
    text_column: str | None = None
    """Column of the text; a dotted path names a nested one ('answers.text'), unless a column has that very name;
    lists are joined by a space. Default: 'text' or 'answers.text', whichever exists."""
    tokenizer_name_or_path: Annotated[str | None, "of the machine"] = None
    """Hub id or folder of the tokenizer. Default: the model's."""
    train_tokenizer: bool = False
    """Train a byte-level BPE tokenizer on the training text."""
    vocab_size: int = 8192
    """Size of the trained tokenizer's vocabulary."""
    block_size: Annotated[int, "identity"] = 128
    """Tokens in a block."""
    grouping: Annotated[str, "identity"] = "concatenate"
    """How texts become blocks: concatenate (all texts end to end, cut), line_by_line (one text a block, padded) or
    pack (whole texts side by side, padded); a text that is longer than a block is cut. Or path/to/file.py:name."""
    document_attention: Annotated[bool, "identity"] = False
    """Let a token attend to its own document only, and count positions from the start of each document."""
    last_block: Literal["drop", "pad"] = "drop"
    """The tokens after the last full block of grouping=concatenate: drop them, or pad them to a block."""
    masking: Annotated[str, "identity"] = "token"
    """What is chosen to be predicted: token, whole_word, span (of words), fixed_count (the same share of each block)
    or diffusion (any number in each block); or path/to/file.py:name. Evaluation chooses tokens, so that runs can be
    compared; with diffusion it is the bound on the text's likelihood."""
    diffusion_warmup: Annotated[float | None, "identity"] = None
    """Share of the run over which the blocks' rates of masking=diffusion spread from mlm_probability to all."""
    mlm_probability: Annotated[float, "identity"] = 0.15
    """Probability that a token is chosen to be predicted."""
    mlm_probability_schedule: Annotated[str, "identity"] = "constant"
    """How the probability moves from mlm_probability to mlm_probability_end over the run: constant, linear, cosine
    or path/to/file.py:name."""
    mlm_probability_end: Annotated[float | None, "identity"] = None
    """Probability at the end of the run."""
    eval_mlm_probability: float | None = None
    """Probability in evaluation. Default: mlm_probability."""
    mask_replace_prob: Annotated[float, "identity"] = 0.8
    """Fraction of the chosen tokens that become the mask token."""
    random_replace_prob: Annotated[float, "identity"] = 0.1
    """Fraction of the chosen tokens that become a random token; the rest stay as they are."""
    dataloader_num_workers: Annotated[int, "of the machine"] = 0
    """Processes that prepare batches; 0 prepares them in the training process."""
    dataloader_timeout: Annotated[float, "of the machine"] = 600.0
    """Seconds to wait for a worker's batch before the run stops with an error."""
    cache_dir: Annotated[str, "of the machine"] = "~/.cache/mlm-train-loop"
    """Where tokenized blocks and the embedded corpus are kept."""

    @property
    def needs_words(self) -> bool:
        """Whether the masking needs to know where words begin."""
        return needs_words(self.choose)

    @property
    def is_diffusion(self) -> bool:
        """Whether each block has a masking rate of its own, and each prediction a weight."""
        return getattr(self.choose, "by_block", False)

    @property
    def most_masked(self) -> float:
        """The largest share of a block's tokens that is predicted."""
        return 1.0 if self.is_diffusion else max(self.mlm_probability, self.mlm_probability_end or 0)

    @property
    def has_padding(self) -> bool:
        """Whether blocks may be shorter than ``block_size``."""
        return self.grouping != "concatenate" or self.last_block == "pad"

    # Cached, so that a run uses one content of a user's file throughout.

    @cached_property
    def choose(self) -> Choose:
        """The function that ``masking`` names."""
        return find("masking", self.masking, MASKINGS, check_choice)

    @cached_property
    def group(self) -> Grouping:
        """The function that ``grouping`` names."""
        return find("grouping", self.grouping, GROUPINGS, check_grouped)

    @cached_property
    def mask_rate(self) -> MaskRate:
        """The function that ``mlm_probability_schedule`` names."""
        return find("mlm_probability_schedule", self.mlm_probability_schedule, MASK_RATES)

    def __post_init__(self) -> None:
        for name in ("mlm_probability", "mlm_probability_end", "eval_mlm_probability", "eval_fraction"):
            if (value := getattr(self, name)) is not None and not 0 < value < 1:
                raise ValueError(f"{name}={value} must be between 0 and 1, both excluded")
        check_replacement(self.mask_replace_prob, self.random_replace_prob)
        least = {"num_streams": 1, "shuffle_buffer_size": 1, "max_eval_blocks": 1, "dataloader_num_workers": 0}
        for name, smallest in {**least, "block_size": 2}.items():
            if (value := getattr(self, name)) is not None and value < smallest:
                raise ValueError(f"{name}={value} must be at least {smallest}")
        if self.dataloader_timeout <= 0:
            raise ValueError(f"dataloader_timeout={self.dataloader_timeout} must be a positive number")
        weights = self.mixture.values()
        if weights and not min(weights) >= sum(weights) / 1000 > 0:
            raise ValueError(f"mixture={self.mixture}: each weight must be at least a thousandth of their sum")
        _ = self.choose, self.group, self.mask_rate  # errors in their names are raised now
        if self.is_diffusion and self.mask_replace_prob < 1:
            raise ValueError(f"masking={self.masking} needs --mask_replace_prob 1 --random_replace_prob 0: add them")
        if (warmup := self.diffusion_warmup) is not None and not (self.is_diffusion and 0 <= warmup <= 1):
            raise ValueError(f"diffusion_warmup={self.diffusion_warmup} must be from 0 to 1, with --masking diffusion")
        if (self.mlm_probability_end is None) != (self.mlm_probability_schedule == "constant"):
            raise ValueError(
                f"mlm_probability_schedule={self.mlm_probability_schedule} and mlm_probability_end="
                f"{self.mlm_probability_end}: a schedule other than constant needs an end, and only that"
            )
        if self.eval_fraction is not None and (self.eval_split or self.eval_dataset):
            raise ValueError(
                f"eval_fraction={self.eval_fraction} holds out training text, and eval_split or eval_dataset names "
                "other text: give one of them"
            )
        if self.train_tokenizer and self.tokenizer_name_or_path:
            raise ValueError(
                f"train_tokenizer makes a tokenizer and tokenizer_name_or_path={self.tokenizer_name_or_path!r} "
                "loads one: give one of them"
            )
