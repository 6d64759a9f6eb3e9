from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import TrainState as TrainState
from .config import (
    BatchPlan as BatchPlan,
)
from .config import (
    ModelConfig as ModelConfig,
)
from .config import (
    TrainConfig as TrainConfig,
)
from .config import (
    plan_batches as plan_batches,
)
from .evaluate import EvalMetrics as EvalMetrics
from .evaluate import unigram_perplexity as unigram_perplexity
from .fill_mask import FillMask as FillMask
from .loop import Run as Run
from .loop import Stopped as Stopped
from .loop import train as train
from .model import open_model as open_model
from .model_card import build_card as build_card
from .model_card import write_card as write_card
from .objective import (
    MaskedLMObjective as MaskedLMObjective,
)
from .objective import (
    check_document_attention as check_document_attention,
)
from .objective import (
    freeze_unused as freeze_unused,
)
from .objective import gather_in_last_layer as gather_in_last_layer
from .optim import build_optimizers as build_optimizers
from .optim import build_schedule as build_schedule
from .publish import BackgroundPush as BackgroundPush
from .publish import PublishError as PublishError
from .publish import Repository as Repository
from .publish import open_repository as open_repository
from .publish import publish_command as publish_command
from .publish import push_model as push_model
from .scoring import TextScore as TextScore
from .scoring import TextScorer as TextScorer
from .scoring import pseudo_perplexity as pseudo_perplexity
from .step import NonFiniteError as NonFiniteError
from .step import StepMetrics as StepMetrics
from .step import train_step as train_step
from .trackers import open_trackers as open_trackers
