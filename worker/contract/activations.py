"""What a model holds of a micro-batch: what its blocks keep for the backward pass, and what passes by.

Counted from what the operations of transformers' models keep under autograd, in eager mode with `sdpa` attention:
no [time, time] matrix, unless attention drops out on the processor, where torch has no kernel that does without one.
"""

from dataclasses import dataclass

from worker.contract.architectures import Architecture, Linear
from worker.contract.parts import Lora

_FULL = 4  # bytes of an fp32 number
_CHUNK = 2**24  # numbers of logits that worker/losses.py upcasts at a time


@dataclass(frozen=True)
class Rows:
    """A micro-batch: `rows` of `time` tokens, of which `labelled` have logits, over all rows."""

    rows: int
    time: int
    labelled: int
    packed: bool = False

    @property
    def tokens(self) -> int:
        """Padding included."""
        return self.rows * self.time


@dataclass(frozen=True)
class Computed:
    """How a model computes: bytes of a number, what of it is trained, and on what kind of device."""

    width: int
    lora: Lora | None = None
    frozen: bool = False
    on_host: bool = True

    @property
    def whole(self) -> bool:
        """All weights are trained."""
        return self.lora is None and not self.frozen


def adapted(linear: Linear, lora: Lora | None) -> bool:
    """Whether a layer gets an adapter."""
    if lora is None:
        return False
    return lora.targets == "all-linear" or any(t.rpartition(".")[2] == linear.name for t in lora.targets)


def adapter_parameters(model: Architecture, lora: Lora) -> int:
    """Numbers in all adapters: for every layer two matrices, of `rank` times its inputs, and its outputs."""
    block = sum(lora.rank * (layer.inputs + layer.outputs) for layer in model.linears if adapted(layer, lora))
    return model.layers * block


def kept_by_a_block(model: Architecture, how: Computed, rows: Rows) -> int:
    """Bytes that one block keeps for the backward pass, of a micro-batch."""
    width, hidden = how.width, model.hidden
    read = {layer.reads for layer in model.linears if how.whole or adapted(layer, how.lora)}
    # Each norm's own, and what the layers behind it read.
    token = 2 * _of_a_norm(model, how) + width * hidden * len(read & {"attention_norm", "mlp_norm"})
    token += _of_attention(model, how, rows) + _of_mlp(model, how, "mlp_product" in read)
    for layer in model.linears:
        if adapted(layer, how.lora):
            assert how.lora is not None
            token += width * how.lora.rank + (width * layer.inputs if how.lora.dropout else 0)
    if model.residual_dropout:
        token += 2 * width * hidden
    return token * rows.tokens + _of_attention_matrix(model, how, rows) + _of_a_mask(how, rows)


def _of_a_norm(model: Architecture, how: Computed) -> int:
    if model.norm == "layer":
        return how.width * model.hidden + 2 * _FULL
    # RMS norms compute in fp32; what is scaled by a trained weight is kept too, in the model's own precision.
    return _FULL * model.hidden + _FULL + (how.width * model.hidden if how.whole else 0)


def _of_attention(model: Architecture, how: Computed, rows: Rows) -> int:
    # Behind a mask, keys and values are repeated for each of the queries that share them.
    keys = model.queries if rows.packed and model.keys < model.queries else model.keys
    if model.norm == "layer" and model.family == "gpt2":
        keys = model.queries
    return how.width * (model.queries + 2 * keys + model.queries) + _FULL * model.heads


def _of_attention_matrix(model: Architecture, how: Computed, rows: Rows) -> int:
    if not (how.on_host and model.attention_dropout):
        return 0
    # The softmax, what is left of it after dropout, and the noise.
    return rows.rows * model.heads * rows.time * rows.time * 3 * how.width


def _of_a_mask(how: Computed, rows: Rows) -> int:
    """What a block keeps of the mask that parts packed samples; the processor's kernel takes it as numbers."""
    return rows.rows * rows.time * rows.time * (how.width if how.on_host else 1) if rows.packed else 0


def _of_mlp(model: Architecture, how: Computed, product_is_read: bool) -> int:
    inner = how.width * model.intermediate
    if any(layer.name == "gate_proj" for layer in model.linears):
        # The gate before and after its activation, and what it is multiplied with.
        return inner * (3 + product_is_read)
    if model.activation in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh_python"):
        return inner * (4 + product_is_read)
    return inner * (1 + product_is_read)


def passing_by(model: Architecture, how: Computed, rows: Rows) -> int:
    """Bytes that come and go in the backward pass of one block, at its widest: gradients of what the MLP made."""
    gated = any(layer.name == "gate_proj" for layer in model.linears)
    token = how.width * model.intermediate * (2 if gated else 1) + 3 * how.width * model.hidden
    return token * rows.tokens


def around_the_blocks(model: Architecture, how: Computed, rows: Rows) -> int:
    """Bytes kept outside the blocks: the embedding's, the last norm's, the table of rotations."""
    token = _of_a_norm(model, how) + how.width * model.hidden
    if not model.learnt_positions:
        token += 2 * how.width * model.head_width
    return token * rows.tokens


def logits(model: Architecture, width: int, labelled: int, *, backward: bool) -> int:
    """Bytes of the logits of `labelled` positions at their widest: themselves, a chunk in fp32, their gradient."""
    numbers = labelled * model.vocabulary
    selected = labelled * model.hidden * width
    return selected + numbers * width * (2 if backward else 1) + 2 * _FULL * min(numbers, _CHUNK)


def without_a_graph(model: Architecture, width: int, rows: Rows) -> int:
    """Bytes at the widest moment of a forward pass that keeps nothing, its logits left aside."""
    gated = any(layer.name == "gate_proj" for layer in model.linears)
    mlp = width * model.intermediate * (3 if gated else 2)
    attention = width * (2 * model.queries + 2 * model.keys)
    norm = 2 * _FULL * model.hidden
    token = 2 * width * model.hidden + max(mlp, attention, norm)
    return token * rows.tokens


def backward_peak(
    model: Architecture, how: Computed, rows: Rows, *, head: int, new_gradients: int, checkpointing: bool
) -> int:
    """Bytes at the widest moment of forward and backward of a micro-batch, weights and standing gradients left aside.

    `head` are the bytes of logits (or of scores) at their widest. `new_gradients` are bytes of gradients that come to
    be in this backward pass: they grow from the last block to the first, while what the blocks keep shrinks.
    """
    block = kept_by_a_block(model, how, rows)
    stays = how.width * model.hidden * rows.tokens if checkpointing else block
    recomputed = block if checkpointing else 0
    outside = around_the_blocks(model, how, rows)
    passing = passing_by(model, how, rows)
    gradients_a_block = new_gradients / max(1, model.layers)
    at_the_head = model.layers * stays + outside + head
    in_the_blocks = max(
        (number + 1) * stays + recomputed + passing + (model.layers - 1 - number) * gradients_a_block
        for number in (0, model.layers - 1)
    )
    return int(max(at_the_head, in_the_blocks, new_gradients))
