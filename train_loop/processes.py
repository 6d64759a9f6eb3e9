"""How the processes of a run agree: who tells whom what, and that all hold the same before they train.

Everything here goes through gloo groups on the CPU. A GPU collective would first
wait for all queued work, and one with the run's time limit would end a process
that waits for another to prepare or to save for long.
"""

import hashlib
import platform
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn

T = TypeVar("T")

# Of what may take hours. A process that dies breaks its connections, and the others know at once.
_PATIENCE = timedelta(days=7)


class AgreedError(ValueError):
    """A user error that every process raises alike, so it is printed once."""


class Processes:
    """The processes of a run, as they agree.

    Every method is to be called by all processes, in the same order.
    """

    def __init__(self, accelerator: Accelerator, timeout: float, stop_requested: Callable[[], bool]) -> None:
        """Make the groups.

        Args:
            timeout: Seconds that `any` waits for another process.
            stop_requested: Whether this process was told to stop.
        """
        self._stop_requested = stop_requested
        self.rank, self.number = accelerator.process_index, accelerator.num_processes
        self.is_main = accelerator.is_main_process
        self._is_first_of_machine = accelerator.is_local_main_process
        if self.number > 1:
            self._votes = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            self._patient = distributed.new_group(backend="gloo", timeout=_PATIENCE)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any process."""
        if self.number == 1:
            return flag
        num_up = torch.tensor(int(flag))
        distributed.all_reduce(num_up, group=self._votes)
        return bool(num_up)

    def stop(self) -> bool:
        """Whether any process was told to stop."""
        return self.any(self._stop_requested())

    def wait(self) -> None:
        """Return when all processes have come here, however long that takes."""
        if self.number > 1:
            distributed.barrier(group=self._patient)

    def close(self) -> None:
        """Leave the groups when all processes are done.

        Groups that live as long as the process have threads at its end, and now and then that aborts it.
        """
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

        Raises:
            AgreedError: It raised ValueError or OSError on some process; all raise, so that none waits for another.
                A single process raises what ``build`` raised.
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
        """Call ``build`` on each machine's first process, then on the others, which find its caches.

        Raises:
            AgreedError: See `together`.
        """
        nothing: Any = None
        first = self.together(build if self._is_first_of_machine else lambda: nothing)
        return self.together(lambda: first if self._is_first_of_machine else build())

    def from_main(self, build: Callable[[], T]) -> T:
        """What ``build`` returns on the main process; it is not called on the others.

        Raises:
            AgreedError: See `together`.
        """
        nothing: Any = None
        value = [self.together(build if self.is_main else lambda: nothing)]
        if self.number > 1:
            distributed.broadcast_object_list(value, group=self._patient)
        return value[0]

    def tensors_from_main(self, build: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors by name, on the CPU, that ``build`` returns on the main process.

        Raises:
            AgreedError: See `together`.
        """
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

    def weights_from_main(self, model: nn.Module) -> None:
        """Give every process's model the weights and buffers of the main process's."""
        if self.number > 1:
            model.load_state_dict(self.tensors_from_main(model.state_dict))

    def require_same(self, facts: Mapping[str, object]) -> None:
        """Make sure that all processes hold the same.

        Args:
            facts: What is compared, by the name that an error gives it; of the first machine if nothing differs.

        Raises:
            AgreedError: A fact differs; it names the process, its machine, and both values.
        """
        held = self.gather((platform.node(), dict(facts)))
        for rank, (machine, others) in enumerate(held):
            for name, value in held[0][1].items():
                if others.get(name) != value:
                    raise AgreedError(
                        f"process {rank} (on {machine}) has {name}={others.get(name)!r}, and process 0 "
                        f"(on {held[0][0]}) has {value!r}: all processes of a run need the same"
                    )


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
