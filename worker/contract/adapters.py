"""Adapters as they lie on disk, in peft's form: what they were trained with, and on which model."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from worker.contract.architectures import UnknownArchitecture
from worker.contract.manifest import LINEAGE
from worker.contract.parts import Lora

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
SCORES = "SEQ_CLS"
"""The task of an adapter whose model scores texts."""
# Peft's settings that change what an adapter computes, and what they are of one that is plain LoRA.
_PLAIN = {
    "use_dora": False, "use_rslora": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {},
    "layers_to_transform": None, "exclude_modules": None, "alora_invocation_tokens": None, "target_parameters": None,
}  # fmt: skip


def adapter_of(config: dict[str, Any]) -> Lora:
    """The settings in an `adapter_config.json`. Raises UnknownArchitecture for what is no plain LoRA."""
    if config.get("peft_type") != "LORA":
        raise UnknownArchitecture(f"it is an adapter of the kind {config.get('peft_type')}, not LORA")
    for name, plain in _PLAIN.items():
        if config.get(name) not in (plain, None):
            raise UnknownArchitecture(f"its adapter has {name}, which is not taken here")
    targets = config.get("target_modules")
    if isinstance(targets, list):
        targets = sorted(targets)
    try:
        return Lora.model_validate(
            {"rank": config.get("r"), "alpha": config.get("lora_alpha"), "targets": targets, "dropout": 0.0}
        )
    except ValidationError as error:
        raise UnknownArchitecture(f"its adapter's settings cannot be: {error.errors()[0]['msg']}") from None


def base_of(folder: Path) -> str | None:
    """The hash of the model that an adapter was trained on, by its `lineage.json`; None: it does not say."""
    return _told(folder, "inputs", "stage.model", "sha256")


def stage_of(folder: Path) -> str | None:
    """The type of the stage that has made an adapter, by its `lineage.json`; None: it does not say."""
    return _told(folder, "spec", "stage", "type")


def _told(folder: Path, *names: str) -> str | None:
    try:
        found = json.loads((folder / LINEAGE).read_bytes())
        for name in names:
            found = found[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
