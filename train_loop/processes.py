"""How the processes of a run exchange messages, and check before training that they hold the same.

All messages go through gloo groups on the CPU. A GPU collective would first wait for all queued work. One group has no
time limit, for work that may take hours.
"""

import platform
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, distributed

T = TypeVar("T")

# For preparing and saving. When a process dies, its connections break and the others notice at once.
_PATIENCE = timedelta(days=7)


class AgreedError(ValueError):
    """A user error that all processes raise together, so it is printed once."""


class Processes:
    """Communication between the processes of a run.

    All processes call the same methods, in the same order. Those that call ``build`` raise as `together` does.
    """

    def __init__(self, accelerator: Accelerator, timeout: float, stop_requested: Callable[[], bool]) -> None:
        """Make the groups; ``timeout`` is the time limit of `any`, in seconds."""
        self._stop_requested = stop_requested
        self.rank, self.number = accelerator.process_index, accelerator.num_processes
        self.is_main = accelerator.is_main_process
        self._is_first_of_machine = accelerator.is_local_main_process
        if self.number > 1:
            self._votes = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            self._patient = distributed.new_group(backend="gloo", timeout=_PATIENCE)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.number == 1:
            return flag
        num_up = torch.tensor(int(flag))
        distributed.all_reduce(num_up, group=self._votes)
        return bool(num_up)

    def stop(self) -> bool:
        """Whether any process was told to stop."""
        return self.any(self._stop_requested())

    def wait(self) -> None:
        """Wait for all processes, without a time limit."""
        if self.number > 1:
            distributed.barrier(group=self._patient)

    def close(self) -> None:
        """Leave the groups when all processes are done: threads of a group left at the exit abort it now and then."""
        if self.number > 1:
            self.wait()
            for group in (self._votes, self._patient):
                distributed.destroy_process_group(group)
            del self._votes, self._patient

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.number == 1:
            return [value]
        values: list[Any] = [None] * self.number
        distributed.all_gather_object(values, value, group=self._patient)
        return values

    def together(self, build: Callable[[], T]) -> T:
        """Call ``build`` on every process.

        Where it raises ValueError or OSError on some, all raise AgreedError, so that none waits for another. A single
        process raises the original error.
        """
        try:
            result, problem = build(), None
        except (ValueError, OSError) as error:
            if self.number == 1:
                raise
            problem = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        problems = {rank: text for rank, text in enumerate(self.gather(problem)) if text is not None}
        if not problems:
            return result
        texts = {*problems.values()}
        if len(texts) == 1 and 0 in problems:
            raise AgreedError(*texts)
        raise AgreedError("; ".join(f"process {rank}: {text}" for rank, text in problems.items()))

    def first_of_machine_first(self, build: Callable[[], T]) -> T:
        """Call ``build`` on the first process of each machine, then on the others, which use its caches."""
        nothing: Any = None
        first = self.together(build if self._is_first_of_machine else lambda: nothing)
        return self.together(lambda: first if self._is_first_of_machine else build())

    def from_main(self, build: Callable[[], T]) -> T:
        """The result of ``build`` on the main process, for all processes."""
        nothing: Any = None
        value = [self.together(build if self.is_main else lambda: nothing)]
        if self.number > 1:
            distributed.broadcast_object_list(value, group=self._patient)
        return value[0]

    def tensors_from_main(self, build: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors by name that ``build`` returns on the main process, for all processes, on the CPU."""
        tensors: dict[str, Tensor] = {}

        def shapes() -> dict[str, tuple[torch.Size, torch.dtype]]:
            tensors.update((name, tensor.detach().cpu().contiguous()) for name, tensor in build().items())
            return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

        for name, (shape, dtype) in self.from_main(shapes).items():
            if not self.is_main:
                tensors[name] = torch.empty(shape, dtype=dtype)
            if self.number > 1:
                distributed.broadcast(tensors[name], 0, group=self._patient)
        return tensors

    def require_same(self, facts: Mapping[str, object]) -> None:
        """Raise AgreedError, naming the process, its machine and both values, if processes hold different ones."""
        held = self.gather((platform.node(), dict(facts)))
        for rank, (machine, others) in enumerate(held):
            for name, value in held[0][1].items():
                if others.get(name) != value:
                    raise AgreedError(
                        f"process {rank} (on {machine}) has {name}={others.get(name)!r}, and process 0 "
                        f"(on {held[0][0]}) has {value!r}: all processes of a run need the same"
                    )
