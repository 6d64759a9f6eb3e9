"""How much arithmetic an update needs, and how much the machine can do."""

import time

import torch
from torch import nn
from transformers import PreTrainedModel

_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def flops_per_token(model: PreTrainedModel, length: int, masked_share: float) -> float:
    """Floating-point operations that forward and backward need for a token, whoever computes more than that.

    A matrix of P parameters costs 2P in the forward and 4P in the backward. The
    encoder's are used at every token, the head's at the masked ones only.
    Attention adds two products of length L and width D in each layer, 12 L D with
    the backward. Norms, activations, embeddings and the optimizer are left out.

        6 P_encoder + 12 layers L D + masked_share * 6 P_head
    """
    encoder = _matrix_parameters(model.base_model)
    head = _matrix_parameters(model) - encoder
    config = model.config
    attention = 12 * config.num_hidden_layers * length * config.hidden_size
    return 6 * encoder + attention + masked_share * 6 * head


def _matrix_parameters(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def matmul_rate(precision: str) -> float:
    """Floating-point operations per second of a large matrix product; for a child process."""
    on_gpu = torch.cuda.is_available()
    size, repeats = (8192, 50) if on_gpu else (2048, 10)
    a, b = (torch.randn(size, size, device="cuda" if on_gpu else "cpu").to(_DTYPES[precision]) for _ in range(2))

    def seconds(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            a @ b
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds(3)
    return 2 * size**3 * repeats / seconds(repeats)
