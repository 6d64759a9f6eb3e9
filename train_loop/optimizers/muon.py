"""Muon (Jordan et al. 2024), for matrices between hidden states."""

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan et al. 2024), which on a CPU iterates in fp32.

    torch iterates in bf16 everywhere. On a CPU without bf16 instructions that makes a product of two matrices of width
    768 fifty times slower.

    Like torch's fused optimizers, it changes nothing while ``found_inf`` is not 0, and reads that on the device.
    """

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        found_inf = getattr(self, "found_inf", None)

        def put(target: Tensor, value: Tensor) -> None:
            target.copy_(value if found_inf is None else torch.where(found_inf > 0, target, value))

        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                buffer = state["momentum_buffer"].lerp(p.grad, 1 - momentum)
                update = p.grad.lerp(buffer, momentum)  # Nesterov's
                update = orthogonalize(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                scaled_lr = lr * max(1, p.shape[0] / p.shape[1]) ** 0.5
                put(state["momentum_buffer"], buffer)
                put(p, (p * (1 - lr * group["weight_decay"])).add_(update, alpha=-scaled_lr))


def orthogonalize(matrix: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float) -> Tensor:
    """The matrix with all singular values near 1, by a quintic Newton-Schulz iteration."""
    a, b, c = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide.float() if matrix.device.type == "cpu" else wide.bfloat16()
    x = x / x.norm().clamp(min=eps)
    for _ in range(num_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T
