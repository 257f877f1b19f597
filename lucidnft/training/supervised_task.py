"""What differs between the runs that learn from targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lucidnft.training.evaluation import Evaluation

if TYPE_CHECKING:  # reading a run file must not load accelerate
    from accelerate import Accelerator


class SupervisedTask(ABC):
    """Samples, loss and evaluation of a module; `SupervisedTrainer` has the loop."""

    name: str
    module: nn.Module  # trained whole; parameters with requires_grad off are left out

    @abstractmethod
    def describe(self) -> str:
        """What is learned from, for the start of a run."""

    def prepare(self, accelerator: Accelerator) -> None:  # noqa: B027  most tasks have nothing to prepare
        """Work that is worth minutes, before the first step of a run; called by every process.  Default: none."""

    @abstractmethod
    def batch(self, step: int, rows: range, num_rows: int) -> Any:
        """These rows of the step's samples, a pure function of (seed, step, row)."""

    def probe(self, num_rows: int) -> Any:
        """Rows shaped as those of a run, for the memory estimate, without what `prepare` makes."""
        return self.batch(0, range(num_rows), num_rows)

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) losses and detached scalars."""

    @abstractmethod
    def evaluate(self) -> Evaluation:
        """On held-out data, of the module as it stands."""

    @abstractmethod
    def export(self, path: str, **card: Any) -> None:
        """Write the shippable weights, of the module as it stands."""
