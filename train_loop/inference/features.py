"""Probes on frozen features: how much of a text's label can be read off an encoder's hidden states?"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from train_loop.inference.pairs import T_95, Score
from train_loop.inference.predictor import tokenize
from train_loop.model import max_positions
from train_loop.objectives.checks import without_dropout

Pooling = Literal["mean", "first"]

_BATCH = 32
_NUM_FOLDS = 5


@torch.no_grad()
def features(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pooling: Pooling = "mean"
) -> np.ndarray:
    """``[N, D]`` fp32: the last hidden states of each text, their mean over its tokens or that of the first token.

    A text longer than the model is cut.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # similar lengths share a batch
    rows: list[np.ndarray] = [np.zeros(0)] * len(texts)
    options = {"truncation": True, "max_length": max_positions(model), "padding": True, "return_tensors": "pt"}
    with without_dropout(model):
        for start in range(0, len(order), _BATCH):
            indices = order[start : start + _BATCH]
            inputs = tokenize(tokenizer, [texts[i] for i in indices], **options).to(model.device)
            mask_BL = inputs["attention_mask"]
            states_BLD = model.base_model(inputs["input_ids"], attention_mask=mask_BL)[0].float()
            mean_BD = (states_BLD * mask_BL[..., None]).sum(1) / mask_BL.sum(1, keepdim=True)
            pooled_BD = mean_BD if pooling == "mean" else states_BLD[:, 0]
            for i, row in zip(indices, pooled_BD.cpu().numpy(), strict=True):
                rows[i] = row
    return np.stack(rows)


def probe(features_ND: np.ndarray, labels: Sequence[str]) -> Score:
    """The accuracy of a logistic regression, over 5 folds that are always the same, with the interval of their mean.

    It needs scikit-learn. Raises ValueError if a label occurs less than 5 times.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2 or counts.min() < _NUM_FOLDS:
        found = dict(zip(names.tolist(), counts.tolist(), strict=True))
        raise ValueError(f"labels={found}: give two or more, 5 of each")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(_NUM_FOLDS, shuffle=True, random_state=0)
    accuracies = cross_val_score(classifier, features_ND, labels, cv=folds)
    mean, half = float(accuracies.mean()), T_95[_NUM_FOLDS] * float(accuracies.std(ddof=1)) / math.sqrt(_NUM_FOLDS)
    return Score(len(labels), mean, mean - half, mean + half)
