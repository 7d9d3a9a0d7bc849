"""What is known of models' configurations: how long their sequences may be, and every parameter by its shape.

Counts are exact for the families named in `FAMILIES`, to the last bias. They are those of the transformers
implementation, which is what runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
"""The names under which `config.json` tells the longest sequence that a model has positions for, in tokens."""

_OLD_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
}


class UnknownArchitecture(ValueError):
    """A configuration of which nothing can be counted, with what is missing."""


@dataclass(frozen=True)
class Linear:
    """A linear layer of every block: by the last part of its name, as LoRA's targets are."""

    name: str
    inputs: int
    outputs: int
    bias: bool
    part: Literal["attention", "mlp"]
    reads: Literal["attention_norm", "attention_output", "mlp_norm", "mlp_product"]
    """Which of the block's activations is its input."""

    @property
    def parameters(self) -> int:
        """Weight and bias."""
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class Architecture:
    """A decoder's sizes. Widths are in numbers, not bytes."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    positions: int | None
    tied: bool
    """The output layer's weight is the input embedding's."""
    linears: tuple[Linear, ...]
    """Those of one block."""
    norm: Literal["rms", "layer"]
    learnt_positions: int
    """Rows of a table of positions; 0: they are rotated in."""
    activation: str
    attention_dropout: float
    residual_dropout: float

    @property
    def queries(self) -> int:
        """Numbers of all heads' queries, a token."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Numbers of all heads' keys (or values), a token."""
        return self.key_value_heads * self.head_width

    @property
    def norm_parameters(self) -> int:
        """Those of one norm."""
        return self.hidden * (2 if self.norm == "layer" else 1)

    @property
    def block_parameters(self) -> int:
        """Those of one block: its linear layers and two norms."""
        return sum(linear.parameters for linear in self.linears) + 2 * self.norm_parameters

    @property
    def embedding_parameters(self) -> int:
        """Those of the tables that ids and positions are looked up in."""
        return (self.vocabulary + self.learnt_positions) * self.hidden

    @property
    def body_parameters(self) -> int:
        """All but the output layer."""
        return self.embedding_parameters + self.layers * self.block_parameters + self.norm_parameters

    def parameters(self, head: Literal["words", "score"] = "words") -> int:
        """All of them: of the model that writes, or of the one that gives one score."""
        if head == "score":
            return self.body_parameters + self.hidden
        return self.body_parameters + (0 if self.tied else self.vocabulary * self.hidden)

    @property
    def largest(self) -> int:
        """Those of the largest single weight."""
        return max(self.vocabulary * self.hidden, *(linear.inputs * linear.outputs for linear in self.linears))


def architecture_of(config: dict[str, Any], vocabulary: int | None = None) -> Architecture:
    """The sizes that a transformers configuration tells; what it leaves out is the family's default.

    `vocabulary` stands in where the configuration has none: a model from scratch takes its tokenizer's. Raises
    UnknownArchitecture.
    """
    if isinstance(inner := config.get("text_config"), dict) and "hidden_size" not in config:
        config = {"model_type": config.get("model_type"), **inner}
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UnknownArchitecture(f"{family} is not counted yet; {', '.join(FAMILIES)} are")
    told = {_OLD_NAMES.get(name, name): value for name, value in config.items()}
    if vocabulary is not None:
        told.setdefault("vocab_size", vocabulary)
    try:
        made = FAMILIES[family](told)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UnknownArchitecture(f"its sizes are not those of a model: {error}") from None
    if min(made.layers, made.hidden, made.heads, made.key_value_heads, made.head_width, made.vocabulary) < 1:
        raise UnknownArchitecture("its sizes are not those of a model: one of them is below 1")
    return made


def _llama(config: dict[str, Any], *, defaults: dict[str, Any], family: str) -> Architecture:
    """LLaMA (Touvron et al., 2023) and those built like it: gated MLP, rotated positions, RMS norms."""
    told = {**defaults, **{name: value for name, value in config.items() if value is not None}}
    hidden, inner, heads = int(told["hidden_size"]), int(told["intermediate_size"]), int(told["num_attention_heads"])
    # Where it is not told, each family's own: as many as heads, or a number.
    key_value_heads = int(told.get("num_key_value_heads") or heads)
    width = int(told.get("head_dim") or hidden // heads)
    # Mistral has no biases and Qwen2 always these, whatever their configurations say.
    on_output = family == "llama" and bool(told["attention_bias"])
    on_queries = family == "qwen2" or on_output
    on_mlp = family == "llama" and bool(told.get("mlp_bias"))
    return Architecture(
        family=family,
        layers=int(told["num_hidden_layers"]),
        hidden=hidden,
        intermediate=inner,
        heads=heads,
        key_value_heads=key_value_heads,
        head_width=width,
        vocabulary=int(told["vocab_size"]),
        positions=_positions(told),
        tied=bool(told["tie_word_embeddings"]),
        linears=(
            Linear("q_proj", hidden, heads * width, on_queries, "attention", "attention_norm"),
            Linear("k_proj", hidden, key_value_heads * width, on_queries, "attention", "attention_norm"),
            Linear("v_proj", hidden, key_value_heads * width, on_queries, "attention", "attention_norm"),
            Linear("o_proj", heads * width, hidden, on_output, "attention", "attention_output"),
            Linear("gate_proj", hidden, inner, on_mlp, "mlp", "mlp_norm"),
            Linear("up_proj", hidden, inner, on_mlp, "mlp", "mlp_norm"),
            Linear("down_proj", inner, hidden, on_mlp, "mlp", "mlp_product"),
        ),
        norm="rms",
        learnt_positions=0,
        activation=str(told["hidden_act"]),
        attention_dropout=float(told.get("attention_dropout") or 0.0),
        residual_dropout=0.0,
    )


def _gpt2(config: dict[str, Any]) -> Architecture:
    """GPT-2 (Radford et al., 2019): learnt positions, one layer for queries, keys and values."""
    told = {**_GPT2, **{name: value for name, value in config.items() if value is not None}}
    hidden, heads = int(told["hidden_size"]), int(told["num_attention_heads"])
    inner = int(told.get("intermediate_size") or 4 * hidden)
    positions = int(told.get("n_positions") or told.get("max_position_embeddings") or 1024)
    return Architecture(
        family="gpt2",
        layers=int(told["num_hidden_layers"]),
        hidden=hidden,
        intermediate=inner,
        heads=heads,
        key_value_heads=heads,
        head_width=hidden // heads,
        vocabulary=int(told["vocab_size"]),
        positions=positions,
        tied=bool(told["tie_word_embeddings"]),
        linears=(
            Linear("c_attn", hidden, 3 * hidden, True, "attention", "attention_norm"),
            Linear("c_proj", hidden, hidden, True, "attention", "attention_output"),
            Linear("c_fc", hidden, inner, True, "mlp", "mlp_norm"),
            Linear("c_proj", inner, hidden, True, "mlp", "mlp_product"),
        ),
        norm="layer",
        learnt_positions=positions,
        activation=str(told["activation_function"]),
        attention_dropout=float(told["attn_pdrop"]),
        residual_dropout=float(told["resid_pdrop"]),
    )


def _gpt_neox(config: dict[str, Any]) -> Architecture:
    """GPT-NeoX (Black et al., 2022), of which Pythia is: attention and MLP side by side, partly rotated positions."""
    told = {**_GPT_NEOX, **{name: value for name, value in config.items() if value is not None}}
    hidden, heads, inner = int(told["hidden_size"]), int(told["num_attention_heads"]), int(told["intermediate_size"])
    on_attention = bool(told["attention_bias"])
    return Architecture(
        family="gpt_neox",
        layers=int(told["num_hidden_layers"]),
        hidden=hidden,
        intermediate=inner,
        heads=heads,
        key_value_heads=heads,
        head_width=hidden // heads,
        vocabulary=int(told["vocab_size"]),
        positions=_positions(told),
        tied=bool(told["tie_word_embeddings"]),
        linears=(
            Linear("query_key_value", hidden, 3 * hidden, on_attention, "attention", "attention_norm"),
            Linear("dense", hidden, hidden, on_attention, "attention", "attention_output"),
            Linear("dense_h_to_4h", hidden, inner, True, "mlp", "mlp_norm"),
            Linear("dense_4h_to_h", inner, hidden, True, "mlp", "mlp_product"),
        ),
        norm="layer",
        learnt_positions=0,
        activation=str(told["hidden_act"]),
        attention_dropout=float(told["attention_dropout"]),
        residual_dropout=float(told["hidden_dropout"]),
    )


def _positions(told: dict[str, Any]) -> int | None:
    return next((int(told[name]) for name in POSITIONS if isinstance(told.get(name), int)), None)


# What a configuration leaves out, as transformers fills it in.
_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "attention_bias": False, "tie_word_embeddings": False, "hidden_act": "silu",
    "max_position_embeddings": 2048,
}  # fmt: skip
_MISTRAL = {
    **_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 4096 * 32
}  # fmt: skip
_QWEN2 = {
    **_LLAMA, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}  # fmt: skip
_GPT2 = {
    "vocab_size": 50257, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "tie_word_embeddings": True, "activation_function": "gelu_new", "attn_pdrop": 0.1, "resid_pdrop": 0.1,
}  # fmt: skip
_GPT_NEOX = {
    "vocab_size": 50432, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44,
    "num_attention_heads": 64, "attention_bias": True, "tie_word_embeddings": False, "hidden_act": "gelu",
    "attention_dropout": 0.0, "hidden_dropout": 0.0, "max_position_embeddings": 2048,
}  # fmt: skip

FAMILIES: dict[str, Callable[[dict[str, Any]], Architecture]] = {
    "llama": lambda config: _llama(config, defaults=_LLAMA, family="llama"),
    "mistral": lambda config: _llama(config, defaults=_MISTRAL, family="mistral"),
    "qwen2": lambda config: _llama(config, defaults=_QWEN2, family="qwen2"),
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
}
"""The families whose parameters are counted, by `model_type`."""
