"""DPO in comparisons a second, ours against TRL's DPOTrainer, on real dialogues: `python benchmarks/dpo_throughput.py`.

SmolLM2-135M with LoRA, batch 8, fp32 on both sides, the same threads, rows, optimizer and clipping. What the reference
says is counted on both sides: ours is asked before the steps, TRL's within them. Each round trains a few steps of both,
one after the other, so that whatever else the machine does falls on both alike; the first step of a turn is not timed.
Prints the median ratio over the rounds, and its spread.
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
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from datasets import Dataset as Rows
from datasets import disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from benchmarks.sft_throughput import Clock, Turn
from examples import dialogues, rlhf
from tests.model.conftest import smollm2_gguf
from worker.contract.check import parse_spec
from worker.contract.manifest import tree_hash
from worker.contract.order import Input, Order
from worker.contract.preference import DpoStage
from worker.distributed import Ranks
from worker.engine import Engine, Setting
from worker.feed import Feed
from worker.gguf import converted
from worker.models import load
from worker.preference.pairs import told
from worker.stages.dpo import Dpo
from worker.state import Position
from worker.training import dataset_of

BATCH, LENGTH, RANK, LR, BETA = 8, 256, 16, 1e-5, 0.1
GOAL = 1.2


def ours(model: Path, data: Path, folder: Path) -> Turn:
    """Trains so many steps, after one that is not timed, the reference's part among them; gives rows a second."""
    stage = {"type": "dpo", "model": str(model), "data": "files/x", "max_length": LENGTH, "beta": BETA}
    stage |= {"batch": BATCH, "lora": {"rank": RANK}, "steps": 10_000, "optimizer": {"lr": LR, "schedule": "constant"}}
    spec = parse_spec({"stage": stage, "deepspeed": {"precision": "fp32"}})
    inputs = {
        name: Input(reference="x", kind="path", location=str(path), sha256=tree_hash(path))
        for name, path in (("stage.model", model), ("stage.data.train", data))
    }
    order = Order(
        job="it", attempt=1, spec=spec, inputs=inputs, store=f"file://{folder}", control_url_file="", token_file="",
        termination_file="", log_folder="",
    )  # fmt: skip
    loaded = load(spec, inputs, folder)
    assert isinstance(spec.stage, DpoStage)
    method = Dpo(spec.stage)
    method.check(loaded)
    pad_id: Any = loaded.tokenizer.pad_token_id
    feed = Feed(dataset_of(order, method, loaded.tokenizer), spec, rank=0, world=1, pad_id=pad_id)
    Ranks(0, 1)
    # DeepSpeed asks for it; TRL's accelerate would take it as the word that it runs distributed.
    os.environ["LOCAL_RANK"] = "0"
    engine = Engine(loaded.model, method.objective, Setting.of(spec))
    del os.environ["LOCAL_RANK"]
    position = Position(0, 0)

    def turn(steps: int) -> float:
        nonlocal position
        rows, began = 0, 0.0
        for step in range(steps + 1):
            if step == 1:
                rows, began = 0, time.perf_counter()
            update = feed.at(position)
            for batch in update.micro_batches:  # the cost of `Reference.ask`, whose part it is in a job
                engine.eval_micro(batch, lambda model, batch: told(model, batch).answers)
            for number, batch in enumerate(update.micro_batches, start=1):
                last = number == len(update.micro_batches)
                engine.train_micro(batch, weight=1 / update.trained, last=last)
            engine.step(LR)
            position = feed.after(position)
            rows += update.trained
        return rows / (time.perf_counter() - began)

    return turn


def theirs(model: Path, data: Path, folder: Path) -> Turn:
    """The same of TRL's trainer, told as much as ours is."""
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    clock = Clock()
    settings = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=BATCH,
        beta=BETA,
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
    read = [json.loads(line) for line in data.read_text().splitlines()]
    rows = [
        {"prompt": row["prompt"]}
        | {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
        for row in read
    ]
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=settings,
        train_dataset=Rows.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    turns = 0

    def turn(steps: int) -> float:
        nonlocal turns
        trainer.args.max_steps = steps + 1
        trainer.args.seed = trainer.args.data_seed = 100 + turns  # other rows each time, as on our side
        turns += 1
        clock.ends.clear()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
        return steps * BATCH / (clock.ends[-1] - clock.ends[0])

    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    model, _ = converted(smollm2_gguf(), Path.home() / ".cache" / "rlhf-operator" / "models")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = dialogues.write(folder, rlhf.SYSTEM).comparisons
        turns = {"ours": ours(model, data, folder), "TRL": theirs(model, data, folder)}
        speeds: dict[str, list[float]] = {who: [] for who in turns}
        for number in range(given.rounds):
            for who in list(turns) if number % 2 == 0 else list(reversed(turns)):
                speeds[who].append(turns[who](given.steps))
            print(f"round {number + 1}: " + ", ".join(f"{w} {s[-1]:.2f}" for w, s in speeds.items()), flush=True)
    ratios = sorted(a / b for a, b in zip(speeds["ours"], speeds["TRL"], strict=True))
    print("\nrows a second, median: " + ", ".join(f"{w} {statistics.median(s):.2f}" for w, s in speeds.items()))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"ours / TRL: {statistics.median(ratios):.2f} ({spread}; aimed at {GOAL})")


if __name__ == "__main__":
    main()
