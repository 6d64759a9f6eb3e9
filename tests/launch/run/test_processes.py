"""Which launchers and settings are refused, and how threads are set; tests/distributed starts several processes."""

from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from launch.run.processes import check_compiler, device_notes, requested_processes, start_accelerator
from train_loop.config import TrainConfig


@pytest.mark.parametrize(("device", "used", "is_said"), [("cuda", 1, True), ("cuda", 8, False), ("cpu", 1, False)])
def test_idle_gpus_are_named_with_the_line_that_uses_them(
    device: str, used: int, is_said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of GPUs that are not at hand."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(used))
    accelerator: Any = SimpleNamespace(device=torch.device(device), mixed_precision="bf16")
    lines = list(device_notes(accelerator))
    assert len(lines) == is_said
    for line in lines:
        assert line.startswith("7 of this machine's 8 GPUs are idle")
        assert "mlm train --num_processes 8" in line


@pytest.mark.parametrize(
    ("known", "precision", "is_said"),
    [
        ({"avx512_bf16": True}, "no", True),
        ({"amx_bf16": True, "avx512_bf16": False}, "no", True),
        ({"neon": True, "bf16": True}, "no", True),
        ({"avx512_bf16": True}, "bf16", False),
        ({"avx512_bf16": False, "avx512_f": True}, "no", False),
    ],
)
def test_bf16_arithmetic_that_is_not_used_is_said(
    known: dict[str, bool], precision: Literal["no", "bf16"], is_said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of processors that are not at hand."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: known)
    accelerator = start_accelerator(TrainConfig(cpu_threads=1, mixed_precision=precision))
    assert any("--mixed_precision bf16" in line for line in device_notes(accelerator)) == is_said


def test_nothing_was_requested_where_no_launcher_did() -> None:
    assert requested_processes() is None


@pytest.mark.parametrize("local_processes", [1, 2])
def test_the_cores_are_shared_out(local_processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_processes))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)), raising=False)
    before = torch.get_num_threads()
    try:
        start_accelerator(TrainConfig())
        assert torch.get_num_threads() == 6 // local_processes
        start_accelerator(TrainConfig(cpu_threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("USE_FSDP", "true", "FSDP is not supported: use distributed_type MULTI_GPU"),
        ("USE_DEEPSPEED", "true", "DEEPSPEED is not supported: use distributed_type MULTI_GPU"),
        ("USE_MEGATRON_LM", "true", "MEGATRON_LM is not supported: use distributed_type MULTI_GPU"),
        ("MIXED_PRECISION", "fp8", "mixed_precision fp8 is not supported: use bf16"),
        ("DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend INDUCTOR is not supported: .* and use --torch_compile true"),
    ],
)
def test_a_world_or_mode_that_the_loop_does_not_drive_is_refused(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{variable}", value)
    with pytest.raises(ValueError, match=message) as caught:
        start_accelerator(TrainConfig())
    assert "\n" not in str(caught.value)


def test_what_accelerate_launch_sets_where_nothing_is_compiled_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers are constants, so they are not sent to all processes at each forward."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert not start_accelerator(TrainConfig(cpu_threads=1)).ddp_handler.broadcast_buffers


def test_a_compiler_that_is_not_there_is_named_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"a C\+\+ compiler, and no-such-compiler is not there: .* CXX, or use"):
        check_compiler()
