"""Classification in texts a second, ours against transformers' Trainer: `python -m benchmarks.classify`.

MiniLM, all of its weights, on the topics of real dialogues; batch 16, fp32 on both sides, the same threads, rows,
optimizer and clipping. Each round trains a few steps of both, one after the other, so that whatever else the machine
does falls on both alike; the first step of a turn is not timed. Prints the median ratio over the rounds and its spread.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset as Rows
from datasets import disable_progress_bars
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from examples.topics import TOPICS, minilm, write
from worker.classify.classes import classes_of
from worker.classify.examples import collating, examples
from worker.classify.model import load_classifier
from worker.classify.objective import classifying
from worker.contract.check import parse_spec
from worker.contract.classify import ClassifyStage
from worker.contract.manifest import tree_hash
from worker.contract.order import Input
from worker.data import read_rows
from worker.dataset import Dataset
from worker.distributed import Ranks
from worker.engine import Engine, Setting
from worker.feed import Feed
from worker.state import Position

BATCH, LENGTH, LR = 16, 128, 5e-5
Turn = Callable[[int], float]
"""Trains so many steps, after one that is not timed; gives texts a second."""


def ours(data: Path, folder: Path) -> Turn:
    """A turn of ours, on one engine."""
    stage: dict[str, Any] = {"type": "classify", "model": str(minilm()), "data": "files/x", "max_length": LENGTH}
    stage |= {"batch": BATCH, "steps": 10_000, "optimizer": {"lr": LR, "schedule": "constant"}}
    spec = parse_spec({"stage": stage, "deepspeed": {"precision": "fp32"}})
    settings = spec.stage
    assert isinstance(settings, ClassifyStage)
    model = Input(reference="x", kind="path", location=str(minilm()), sha256=tree_hash(minilm()))
    rows = list(read_rows(data, settings.traits.rows))
    loaded, classes = load_classifier(
        spec, {"stage.model": model}, folder, lambda known: classes_of(rows, settings, known)
    )
    items = examples(rows, classes, loaded.tokenizer, max_length=LENGTH, truncate=True)
    pad_id: Any = loaded.tokenizer.pad_token_id
    feed = Feed(Dataset(items, [], False, "", collating(classes)), spec, rank=0, world=1, pad_id=pad_id)
    Ranks(0, 1)
    # DeepSpeed asks for it; accelerate would take it as the word that it runs distributed.
    os.environ["LOCAL_RANK"] = "0"
    engine = Engine(loaded.model, classifying(), Setting.of(spec))
    del os.environ["LOCAL_RANK"]
    position = Position(0, 0)

    def turn(steps: int) -> float:
        nonlocal position
        texts, began = 0.0, 0.0
        for step in range(steps + 1):
            if step == 1:
                texts, began = 0.0, time.perf_counter()
            update = feed.at(position)
            for number, batch in enumerate(update.micro_batches, start=1):
                last = number == len(update.micro_batches)
                engine.train_micro(batch, weight=1 / update.trained, last=last)[0].item()
            engine.step(LR)
            position = feed.after(position)
            texts += update.trained
        return texts / (time.perf_counter() - began)

    return turn


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each of the trainer's steps ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def theirs(data: Path, folder: Path) -> Turn:
    """A turn of transformers' trainer, told as much as ours is."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    encoded = [
        {
            "input_ids": tokenizer(row["text"], truncation=True, max_length=LENGTH)["input_ids"],
            "labels": TOPICS.index(row["label"]),
        }
        for row in rows
    ]
    clock, seen = Clock(), list[int]()
    padding = DataCollatorWithPadding(tokenizer)

    def counted(some: list[dict[str, Any]]) -> Any:
        seen.append(len(some))
        return padding(some)

    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            minilm(), num_labels=len(TOPICS), dtype=torch.float32, use_safetensors=True
        ),
        args=TrainingArguments(
            output_dir=str(folder / "trainer"),
            per_device_train_batch_size=BATCH,
            learning_rate=LR,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            max_steps=1,
        ),
        train_dataset=Rows.from_list(encoded),
        data_collator=counted,
        callbacks=[clock],
    )
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
    parser.add_argument("--steps", type=int, default=8, help="timed steps a turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        data = write(Path(name)).train
        turns = {"ours": ours(data, Path(name)), "Trainer": theirs(data, Path(name))}
        speeds: dict[str, list[float]] = {who: [] for who in turns}
        for number in range(given.rounds):
            for who in list(turns) if number % 2 == 0 else list(reversed(turns)):
                speeds[who].append(turns[who](given.steps))
            print(
                f"round {number + 1}: " + ", ".join(f"{who} {found[-1]:.1f}" for who, found in speeds.items()),
                flush=True,
            )
    ratios = sorted(a / b for a, b in zip(speeds["ours"], speeds["Trainer"], strict=True))
    for who, found in speeds.items():
        print(f"{who:>8}: {statistics.median(found):6.1f} texts a second")
    print(f"ours / Trainer: {statistics.median(ratios):.2f} times ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
