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
    """Bytes of tensors at the widest moment of an attempt, from the second step on.

    Every allocation is seen from the moment at which an engine is made, also those inside operations.
    """
    from torch.profiler import ProfilerActivity, profile

    # What an earlier case left would be freed under the profiler's eyes, and be missed.
    gc.collect()
    with _watched() as count, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        ended = attempt(rank, world, job, 1)
    assert ended.outcome == "Finished", ended.message
    assert profiled.profiler is not None
    # When a memory event or a mark was, and the bytes that it took (or gave back).
    moments = sorted(
        (event.start_ns(), event.nbytes() if event.name() == "[memory]" else None)
        for event in profiled.profiler.kineto_results.events()
        if event.name() in ("[memory]", _MARK)
    )
    held = peak = steps = 0
    for _, change in moments:
        held += change or 0
        steps += change is None
        # Each engine has taken its first step.
        peak = max(peak, held) if steps >= count["engines"] else 0
    return peak


def peak_of_process(rank: int, world: int, job: Any) -> int:
    """The most memory that this process ever had resident, in bytes, after an attempt: VmHWM."""
    ended = attempt(rank, world, job, 1)
    assert ended.outcome == "Finished", ended.message
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


_MARK = "a step is over"


@contextmanager
def _watched() -> Iterator[dict[str, int]]:
    """A block in which each optimizer's step leaves a mark, and engines copy their weights as they take them over.

    What is loaded by threads of transformers' own is not seen by the profiler; the copies are.
    """
    from torch.profiler import record_function

    from worker.engine import Engine
    from worker.rl.frozen import Frozen

    count = {"engines": 0}
    begin, ask, step = Engine.__init__, Frozen.__init__, Engine.step

    def copied(model: Any) -> None:
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.data.clone()

    def begin_and_copy(self: Any, model: Any, *arguments: Any) -> None:
        copied(model)
        begin(self, model, *arguments)
        count["engines"] += 1

    def ask_and_copy(self: Any, model: Any, *arguments: Any, **more: Any) -> None:
        copied(model)
        ask(self, model, *arguments, **more)

    def step_and_mark(self: Any, lr: float) -> float:
        norm = step(self, lr)
        with record_function(_MARK):
            return norm

    Engine.__init__, Frozen.__init__, Engine.step = begin_and_copy, ask_and_copy, step_and_mark  # type: ignore[method-assign]
    try:
        yield count
    finally:
        Engine.__init__, Frozen.__init__, Engine.step = begin, ask, step  # type: ignore[method-assign]
