"""All it takes to go on bit for bit, beside the engine's own state: random states, the data position, the threads."""

import contextlib
import os
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from worker.contract.spec import JobSpec


@dataclass(frozen=True)
class Position:
    """Where in the data the next update begins."""

    epoch: int = 0
    update: int = 0  # updates of this epoch that are done


@dataclass(frozen=True)
class Progress:
    """How far training is, after a whole number of updates."""

    step: int = 0
    position: Position = Position()
    tokens: int = 0  # real tokens trained on, over all ranks
    evaluated: int | None = None  # the step of the last evaluation, so that a resume does not repeat it

    @classmethod
    def of(cls, stored: dict[str, Any]) -> "Progress":
        """Reads what `dataclasses.asdict` wrote."""
        return cls(**{**stored, "position": Position(**stored["position"])})


@dataclass(frozen=True)
class Circumstances:
    """What must be the same for a resumed run to be exact."""

    torch: str
    deepspeed: str
    transformers: str
    world: int
    zero: int
    precision: str
    device: str
    threads: int
    tokenizers: str = "unknown"
    numpy: str = "unknown"
    peft: str = "unknown"
    operator: str = "unknown"

    @classmethod
    def now(cls, spec: JobSpec, world: int) -> "Circumstances":
        """This attempt's. The versions come from the installed packages' metadata, which imports nothing."""
        return cls(
            torch=torch.__version__,
            deepspeed=version("deepspeed"),
            transformers=version("transformers"),
            world=world,
            zero=spec.deepspeed.zero,
            precision=spec.deepspeed.precision,
            device=_device_name(),
            threads=torch.get_num_threads(),
            tokenizers=version("tokenizers"),
            numpy=np.__version__,
            peft=version("peft"),
            operator=version("rlhf-operator"),
        )

    def differences(self, other: "Circumstances") -> list[str]:
        """What differs, as `name: theirs -> ours`, threads aside: they are restored."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{k}: {theirs[k]} -> {mine[k]}" for k in mine if k != "threads" and mine[k] != theirs[k]]


def random_states() -> dict[str, Any]:
    """The states of all generators that training draws from, as plain values and tensors."""
    kind, keys, at, has_gauss, gauss = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), at, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Puts back what `random_states` took."""
    random.setstate(states["python"])
    kind, keys, at, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), at, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A block that leaves all random states as they were, whatever it draws."""
    states = random_states()
    try:
        yield
    finally:
        restore_random_states(states)


def seed_everything(seed: int, rank: int) -> None:
    """Seeds this rank's generators: each rank draws its own dropout."""
    own = (seed * 1_000_003 + rank) % 2**32
    random.seed(own)
    np.random.seed(own)
    torch.manual_seed(own)


def _device_name() -> str:
    if os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"
