"""What runs inside the ranks of a pool: the peak of real tensors under the real stages, by torch's profiler."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.engine.jobs import attempt


def model_folder(folder: Path, config: dict[str, Any]) -> str:
    """A model on disk, in fp32, with the tokenizer of bytes; made once."""
    import torch

    from worker.contract.parts import Scratch
    from worker.scratch import from_scratch
    from worker.tokenizers import bytes_tokenizer

    if not (folder / "config.json").is_file():
        tokenizer = bytes_tokenizer()
        model = from_scratch(Scratch(config=config), tokenizer, seed=1, dtype=torch.float32)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def saved_model(rank: int, world: int, folder: str, config: dict[str, Any]) -> str:
    """`model_folder` in a rank that has torch loaded already."""
    return model_folder(Path(folder), config) if rank == 0 else ""


def saved_reward_model(rank: int, world: int, folder: str, actor: str) -> str:
    """A reward model on the weights of `actor`."""
    from tests.rl.ppo_jobs import reward_folder

    return str(reward_folder(Path(folder), Path(actor), positions=512))


def parameters(rank: int, world: int, config: dict[str, Any]) -> tuple[int, int]:
    """Parameters by transformers itself, without their memory: of the model that writes, and of the one that scores."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    made = AutoConfig.for_model(**config, num_labels=1, pad_token_id=0)
    counts = []
    with torch.device("meta"):
        for kind in (AutoModelForCausalLM, AutoModelForSequenceClassification):
            counts.append(sum(p.numel() for p in kind.from_config(made).parameters()))
    return counts[0], counts[1]


def peak_of_tensors(rank: int, world: int, job: Any) -> int:
    """Bytes of tensors at the widest moment of an attempt, from the moment at which each engine has taken a step."""
    from tests.rl.held import Held

    # What an earlier case left is none of this one's.
    gc.collect()
    with Held() as held, _stepping(held):
        ended = attempt(rank, world, job, 1)
    assert ended.outcome == "Finished", ended.message
    return held.peak


def peak_of_process(rank: int, world: int, job: Any) -> int:
    """The most memory that this process ever had resident, in bytes, after an attempt: VmHWM."""
    ended = attempt(rank, world, job, 1)
    assert ended.outcome == "Finished", ended.message
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@contextmanager
def _stepping(held: Any) -> Iterator[None]:
    """A block in which the peak is counted anew once each engine has the state that its first step makes."""
    from worker.engine import Engine

    engines: list[Engine] = []
    stepped: set[int] = set()
    begin, step = Engine.__init__, Engine.step

    def begin_and_count(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        engines.append(self)

    def step_and_forget(self: Any, lr: float) -> float:
        norm = step(self, lr)
        if len(stepped) < len(engines):
            stepped.add(id(self))
            held.peak = held.now
        return norm

    Engine.__init__, Engine.step = begin_and_count, step_and_forget  # type: ignore[method-assign]
    try:
        yield
    finally:
        Engine.__init__, Engine.step = begin, step  # type: ignore[method-assign]
