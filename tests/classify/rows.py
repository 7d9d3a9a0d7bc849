"""Labelled rows of small words, and tiny models to learn them."""

import random
from typing import Any

from tests.engine.jobs import LLAMA, WORDS

BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
GPT2 |= {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
DISTILBERT = {"model_type": "distilbert", "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
DISTILBERT |= {"max_position_embeddings": 256, "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
MODELS = {"bert": BERT, "distilbert": DISTILBERT, "llama": LLAMA, "gpt2": GPT2}

KINDS = {"cat": "animal", "dog": "animal", "tree": "thing", "house": "thing"}


def labelled(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """One class a text: that of its first word, of which three kinds are not equally frequent."""
    return [{"text": " ".join(said), "label": KINDS.get(said[0], "other")} for said in _said(count, seed)]


def multilabelled(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """All the classes whose words are in a text."""
    rows = []
    for said in _said(count, seed):
        found = {KINDS[word] for word in said if word in KINDS} | ({"colour"} if {"red", "blue"} & set(said) else set())
        rows.append({"text": " ".join(said), "labels": sorted(found)})
    return rows


def numbered(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """How many words a text has."""
    return [{"text": " ".join(said), "label": len(said) / 4} for said in _said(count, seed)]


def tagged(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """What each word is."""
    return [{"tokens": said, "tags": [KINDS.get(word, "O") for word in said]} for said in _said(count, seed)]


ROWS = {"single_label": labelled, "multi_label": multilabelled, "regression": numbered, "tokens": tagged}


def _said(count: int, seed: int) -> list[list[str]]:
    rng = random.Random(seed)
    return [[rng.choice([*WORDS, *list(KINDS) * 3]) for _ in range(rng.randint(2, 9))] for _ in range(count)]
