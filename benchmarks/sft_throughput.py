"""SFT in real tokens a second, ours against TRL's SFTTrainer, on real dialogues: `python benchmarks/sft_throughput.py`.

SmolLM2-135M with LoRA, batch 8, fp32 on both sides, the same threads, rows, optimizer and clipping. Each round trains a
few steps of every variant, one after the other, so that whatever else the machine does falls on all of them alike; the
first step of a turn is not timed. Padding is no token. Prints the median ratio over the rounds, and its spread.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from datasets import Dataset as Rows
from datasets import disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging

from examples.dialogues import rows as dialogues
from tests.model.conftest import smollm2_gguf
from tests.model.test_losses import MARKED
from worker.contract.check import parse_spec
from worker.contract.manifest import tree_hash
from worker.contract.order import Input
from worker.contract.spec import JobSpec
from worker.contract.stages import SftStage
from worker.data import load_samples
from worker.dataset import Dataset
from worker.distributed import Ranks
from worker.engine import Engine, Setting
from worker.feed import Feed
from worker.gguf import converted
from worker.losses import token_loss_sum
from worker.models import load
from worker.state import Position

BATCH, LENGTH, RANK, LR = 8, 256, 16, 2e-4
SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
SYSTEM += "trained by Hugging Face<|im_end|>\n' }}{% endif %}"
Turn = Callable[[int], float]
"""Trains so many steps, after one that is not timed; gives real tokens a second."""


def spec_of(model: Path, *, packing: bool, micro_batch: int | None = None) -> JobSpec:
    """What a person would write: how many rows are taken at a time is the spec's own choice, unless told."""
    stage = {"type": "sft", "model": str(model), "data": "files/x", "packing": packing, "max_length": LENGTH}
    stage |= {"batch": BATCH, "micro_batch": micro_batch, "lora": {"rank": RANK}, "steps": 10_000}
    stage["optimizer"] = {"lr": LR, "schedule": "constant"}
    return parse_spec({"stage": stage, "deepspeed": {"precision": "fp32"}})


def ours(model: Path, data: Path, folder: Path) -> dict[bool, Turn]:
    """Our turns: unpacked and packed, on one engine."""
    spec = spec_of(model, packing=False)
    source = {
        name: Input(reference="x", kind="path", location=str(path), sha256=tree_hash(path))
        for name, path in (("stage.model", model), ("stage.data.train", data))
    }
    loaded = load(spec, source, folder)
    assert isinstance(spec.stage, SftStage)
    samples = load_samples(source["stage.data.train"], spec.stage, loaded.tokenizer)
    Ranks(0, 1)
    # DeepSpeed asks for it; TRL's accelerate would take it as the word that it runs distributed.
    os.environ["LOCAL_RANK"] = "0"
    engine = Engine(loaded.model, token_loss_sum, Setting.of(spec))
    del os.environ["LOCAL_RANK"]

    def turn_of(packing: bool) -> Turn:
        pad_id: Any = loaded.tokenizer.pad_token_id
        feed = Feed(Dataset(samples, [], False, ""), spec_of(model, packing=packing), rank=0, world=1, pad_id=pad_id)
        position = Position(0, 0)

        def turn(steps: int) -> float:
            nonlocal position
            tokens, began = 0, 0.0
            for step in range(steps + 1):
                if step == 1:
                    tokens, began = 0, time.perf_counter()
                update = feed.at(position)
                for number, batch in enumerate(update.micro_batches, start=1):
                    last = number == len(update.micro_batches)
                    engine.train_micro(batch, weight=1 / update.trained, last=last).item()
                engine.step(LR)
                position = feed.after(position)
                tokens += update.tokens
            return tokens / (time.perf_counter() - began)

        return turn

    return {packing: turn_of(packing) for packing in (False, True)}


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each of the trainer's steps ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def theirs(model: Path, data: Path, folder: Path, *, packing: bool) -> Turn:
    """A turn of TRL's trainer, told as much as ours is."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = SYSTEM + MARKED
    clock = Clock()
    settings = SFTConfig(
        output_dir=str(folder / f"trl-{packing}"),
        per_device_train_batch_size=BATCH,
        assistant_only_loss=True,
        packing=packing,
        max_length=LENGTH,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        max_steps=1,
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=settings,
        train_dataset=Rows.from_list([json.loads(line) for line in data.read_text().splitlines()]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    seen: list[int] = []
    collate = trainer.data_collator

    def counted(examples: list[dict[str, Any]]) -> Any:
        seen.append(sum(len(example["input_ids"]) for example in examples))
        return collate(examples)

    trainer.data_collator = counted
    turns = 0

    def turn(steps: int) -> float:
        nonlocal turns
        trainer.args.max_steps = steps + 1
        trainer.args.seed = trainer.args.data_seed = 100 + turns  # other rows each time, as on our side
        turns += 1
        clock.ends.clear()
        seen.clear()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        # The loader fetches ahead of the trainer; batches come in the order in which they are trained.
        return sum(seen[1 : steps + 1]) / (clock.ends[-1] - clock.ends[0])

    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="unpacked steps a turn; packed turns take one")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    model, _ = converted(smollm2_gguf(), Path.home() / ".cache" / "rlhf-operator" / "models")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "train.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in dialogues()))
        mine = ours(model, data, folder)
        turns: dict[str, tuple[Turn, int]] = {
            "ours": (mine[False], given.steps),
            "TRL": (theirs(model, data, folder, packing=False), given.steps),
            "ours, packed": (mine[True], 1),
            "TRL, packed": (theirs(model, data, folder, packing=True), 1),
        }
        speeds: dict[str, list[float]] = {who: [] for who in turns}
        for number in range(given.rounds):
            order = list(turns) if number % 2 == 0 else list(reversed(turns))
            for who in order:
                turn, steps = turns[who]
                speeds[who].append(turn(steps))
            print(f"round {number + 1}: " + ", ".join(f"{w} {s[-1]:.0f}" for w, s in speeds.items()), flush=True)
    print("\nreal tokens a second, median: " + ", ".join(f"{w} {statistics.median(s):.0f}" for w, s in speeds.items()))
    for one, other, goal in (
        ("ours", "TRL", 1.15),
        ("ours, packed", "TRL, packed", 1.15),
        ("ours, packed", "ours", 1.5),
    ):
        ratios = sorted(a / b for a, b in zip(speeds[one], speeds[other], strict=True))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"{one} / {other}: {statistics.median(ratios):.2f} ({spread}; aimed at {goal})")


if __name__ == "__main__":
    main()
