"""Classifiers: a backbone with transformers' own head for texts or for words, and its classes' names in its config.

What is saved loads in transformers' pipelines. A head that was learnt for the same classes is kept; any other model
gets a new one, drawn from the stage's seed.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, TaskType
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from worker.classify.classes import PROBLEMS, Classes
from worker.classify.examples import Example, collating
from worker.classify.objective import class_logits
from worker.contract.classify import ClassifyStage
from worker.contract.order import Input
from worker.contract.parts import Lora, Scratch
from worker.contract.spec import JobSpec
from worker.errors import BadSpec
from worker.lora import with_adapters
from worker.models import (
    DTYPES,
    Loaded,
    located,
    named,
    pads_with,
    read_config,
    read_tokenizer,
    read_weights,
    ready,
    separate_padding,
    tokenizer_of,
)
from worker.scratch import KINDS, from_scratch

_PATH = "stage.model"
_TEXTS, _WORDS = "ForSequenceClassification", "ForTokenClassification"
# Logits of a row may differ by this share of their largest with what pads it: rounding, not the padding itself.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}


def load_classifier(
    spec: JobSpec,
    inputs: dict[str, Input],
    store: Path,
    classes_for: Callable[[tuple[str, ...] | None], Classes],
    *,
    waiting: Callable[[], None] = lambda: None,
) -> tuple[Loaded, Classes]:
    """The stage's classifier and its tokenizer, the same on every rank, and what it tells apart.

    `classes_for` gives the classes, when told those of the model to begin with (None: it tells none apart). Raises
    BadSpec, and what `classes_for` raises. The rest is as in `worker.models.load`.
    """
    stage = spec.stage
    assert isinstance(stage, ClassifyStage)
    notes: list[str] = []
    dtype, fresh = DTYPES[spec.deepspeed.precision], list[str]()
    if isinstance(stage.model, Scratch):
        name, classes = "the model from scratch", classes_for(None)
        tokenizer = tokenizer_of(stage.model, inputs, store, waiting)
        auto, label = _auto(classes), partial(_label, classes=classes)
        model = from_scratch(stage.model, tokenizer, seed=stage.seed, dtype=dtype, auto=auto, labelled=label)
    else:
        name = stage.model
        where = located(inputs[_PATH], store, notes, waiting)
        config = read_config(where, name, _PATH)
        classes = classes_for(told_by(config))
        _check_head(config, classes, name)
        _label(config, classes)
        tokenizer = read_tokenizer(where, name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage.seed)  # of what is new
            model, missing = read_weights(_auto(classes), where, config, name, dtype, _PATH)
        fresh = sorted({weight.rpartition(".")[0] for weight in missing})
        if fresh:
            notes.append(f"The head of {name} is new, and begins at random: {', '.join(fresh)}.")
    separate_padding(tokenizer, name, notes)
    pads_with(model, tokenizer)
    if model.config.is_encoder_decoder:
        raise BadSpec(
            f"{_PATH}: {name} ({model.config.model_type}) has an encoder and a decoder; give one of them alone"
        )
    check_positions(model, stage.max_length)
    check_padding(model, classes, name, int(tokenizer.pad_token_id))
    return ready(model, tokenizer, stage, name, notes, adapted=partial(_adapted, classes=classes, fresh=fresh)), classes


def told_by(config: PreTrainedConfig) -> tuple[str, ...] | None:
    """The classes that a configuration's model has learnt to tell apart; None: it has learnt none."""
    if not any(kind.endswith((_TEXTS, _WORDS)) for kind in named(config)) or config.num_labels == 1:
        return None
    return tuple(config.id2label[number] for number in range(config.num_labels))


def _auto(classes: Classes) -> Any:
    return AutoModelForTokenClassification if classes.task == "tokens" else AutoModelForSequenceClassification


def _label(config: PreTrainedConfig, classes: Classes) -> None:
    config.num_labels = classes.outputs
    if classes.names:
        config.id2label = dict(enumerate(classes.names))
        config.label2id = dict(classes.numbers)
    config.problem_type = PROBLEMS.get(classes.task)


def _check_head(config: PreTrainedConfig, classes: Classes, name: str) -> None:
    """Raises BadSpec where the model has another head already, or transformers has none for it."""
    kinds, called = KINDS[_auto(classes)]
    if config.model_type not in kinds:
        raise BadSpec(f"{_PATH}: {name} is a {config.model_type}, of which transformers makes no {called[2:]}")
    heads = [kind for kind in named(config) if kind.endswith((_TEXTS, _WORDS, "ForMultipleChoice"))]
    if not heads:
        return
    if not heads[0].endswith(_WORDS if classes.task == "tokens" else _TEXTS):
        has = "words" if heads[0].endswith(_WORDS) else "texts"
        raise BadSpec(f"{_PATH}: {name} classifies {has} already ({heads[0]}), and the rows ask for {called}")
    if config.num_labels == 1 and (classes.task != "regression" or config.problem_type != PROBLEMS["regression"]):
        raise BadSpec(f"{_PATH}: {name} is a reward model: it has one score, and no classes")
    known = told_by(config) or ()
    if set(known) != set(classes.names):
        raise BadSpec(
            f"{_PATH}: {name} tells other classes apart, {', '.join(known[:20])}, than the rows have, "
            f"{', '.join(classes.names[:20])}; give a model of the same classes, or one without such a head"
        )
    if known != classes.names:
        raise BadSpec(f"stage.labels: {name} has these classes in another order: {', '.join(known[:20])}")
    if config.problem_type not in (None, PROBLEMS.get(classes.task)):
        raise BadSpec(f"{_PATH}: {name} was trained for {config.problem_type}, and the rows are of another task")


def check_positions(model: PreTrainedModel, max_length: int) -> None:
    """Raises BadSpec where the model counts positions from behind the padding's id (RoBERTa), and has too few so."""
    for name, module in model.named_modules():
        offset = getattr(module, "padding_idx", None)
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings") and offset is not None:
            room = module.num_embeddings - offset - 1
            if max_length > room:
                raise BadSpec(f"stage.max_length: the model has {max(0, room)} positions; write at most {room}")


def check_padding(model: PreTrainedModel, classes: Classes, name: str, pad_id: int) -> None:
    """Raises BadSpec if what a row is padded with changes its logits. Two forward passes of a few tokens."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    usable = [token for token in range(min(vocabulary, 64)) if token != pad_id]

    def example(count: int) -> Example:
        ids = np.array([usable[(3 + 7 * n) % len(usable)] for n in range(count)], dtype=np.int32)
        nothing = collating(classes)([], pad_id=pad_id).labels.numpy()
        return Example(
            ids, np.array([count - 1]), np.zeros((1, *nothing.shape[1:]), nothing.dtype), np.ones(1, np.float32)
        )

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = class_logits(model, collating(classes)([[example(5)]], pad_id=pad_id))[0]
            padded = class_logits(model, collating(classes)([[example(5)], [example(9)]], pad_id=pad_id))[0]
    except (TypeError, IndexError, ValueError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadSpec(f"{_PATH}: {name} ({model.config.model_type}) cannot be run as a classifier: {first}") from None
    finally:
        model.train(was_training)
    if (alone - padded).abs().max() > alone.abs().max() * _TOLERANCE.get(model.dtype, 0.2):
        raise BadSpec(
            f"{_PATH}: padding changes what {name} ({model.config.model_type}) says of a text; "
            "give an encoder such as bert or roberta, or a decoder such as llama, qwen2, mistral, gpt2 or gpt_neox"
        )


def _adapted(model: PreTrainedModel, lora: Lora, seed: int, *, classes: Classes, fresh: Sequence[str]) -> PeftModel:
    task = TaskType.TOKEN_CLS if classes.task == "tokens" else TaskType.SEQ_CLS
    return with_adapters(model, lora, seed, head=True, task=task, whole=fresh)
