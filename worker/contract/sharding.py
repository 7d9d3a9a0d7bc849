"""What an engine holds of weights, gradients and optimizer on each rank: as DeepSpeed 0.19 does it, not as papers do.

T: trained numbers, F: frozen ones, R: ranks, w: bytes of a weight. Told is AdamW, with two moments in fp32 everywhere.

| runs | weights | optimizer | gradients | while they are reduced |
|---|---|---|---|---|
| fp32, ZeRO 0 | 4 (T+F) | 8 T | 4 T | |
| bf16, ZeRO 1 (and 0, which runs as 1) | 2 (T+F) | 12 T/R, with master weights | 4 T in fp32, and 2 T | |
| fp32, ZeRO 1 | 4 (T+F) | 12 T/R | 4 T | a bucket of 4 bytes |
| ZeRO 2 | w (T+F) | 12 T/R | 4 T/R | a bucket of w bytes |
| ZeRO 3 | w (T+F)/R, and what is gathered | 12 T/R | 4 T/R | a bucket of w bytes, which stays |

A bucket has `reduce_bucket_size` numbers however small the model is; of one that lies on the host, only what is
written to takes memory.
"""

from dataclasses import dataclass, replace

from worker.contract.parts import DeepSpeed

BUCKET = 50_000_000
"""Numbers in a bucket, where `deepspeed.config` does not say: gathered, and reduced, at a time."""
WIDTHS = {"fp32": 4, "bf16": 2}
_PERSISTENT = 100_000  # numbers in a weight that ZeRO-3 never shards, where not told
_LIVE = 1_000_000_000  # numbers that ZeRO-3 keeps gathered, where not told


@dataclass(frozen=True)
class Held:
    """Bytes of one engine on one rank."""

    weights: int = 0
    optimizer: int = 0
    gradients: int = 0
    """That stand from one micro-batch to the next, and are there when the widest backward pass begins."""
    lasting: int = 0
    """Of `gradients`, what stands from one update to the next too."""
    new_gradients: int = 0
    """That come to be in a backward pass, beside `gradients`."""
    left: int = 0
    """Gradients that stand when a backward pass is over."""
    bucket: int = 0
    """Where gradients are put together to be reduced."""
    untouched: int = 0
    """Of `bucket`, what is never written to."""
    bucket_stays: bool = False
    gathered: int = 0
    """Weights that ZeRO-3 has whole: what the forward pass gathered stays while the backward pass gathers anew."""
    on_host: int = 0
    """What is offloaded. It is in none of the others."""


def effective_zero(deepspeed: DeepSpeed) -> int:
    """The ZeRO stage that runs.

    In bf16 without ZeRO, DeepSpeed adds gradients up in bf16, which loses most of what a micro-batch of a long
    accumulation says; its stage 1 adds them up in fp32 and computes the same otherwise.
    """
    return 1 if deepspeed.zero == 0 and deepspeed.precision == "bf16" else deepspeed.zero


def trained(
    deepspeed: DeepSpeed,
    *,
    trained: int,
    frozen: int,
    ranks: int,
    accumulation: int,
    largest: int,
    small: int,
    moments: int = 2,
) -> Held:
    """What an engine with an optimizer holds, which keeps so many `moments` of each weight.

    `largest`: numbers in the largest trained weight; `small`: numbers in all weights that ZeRO-3 leaves whole.
    """
    zero, width = effective_zero(deepspeed), WIDTHS[deepspeed.precision]
    told = deepspeed.config.zero_optimization
    size = told.reduce_bucket_size or BUCKET
    weights, share, offload = width * (trained + frozen), -(-trained // ranks), deepspeed.offload == "cpu"
    again, kept = accumulation > 1, 4 * moments
    untouched = max(0, size - trained)
    if zero == 0:
        standing, new = (4 * trained, 4 * largest) if again else (0, 4 * trained)
        return Held(weights, kept * trained, standing, 0, new, left=4 * trained)
    if zero == 1 and width == 2 and not offload:
        standing, new = (6 * trained, 2 * largest) if again else (4 * trained, 2 * trained)
        return Held(weights, (4 + kept) * share, standing, 4 * trained, new, left=6 * trained)
    if zero == 3:
        live = min(told.stage3_max_live_parameters or _LIVE, trained + frozen - small)
        shards = width * -(-(trained + frozen) // ranks) + width * small
        held = Held(
            shards,
            (4 + kept) * share,
            4 * share,
            4 * share,
            width * largest,
            4 * share,
            width * size,
            width * untouched,
            bucket_stays=True,
            gathered=2 * width * live,
        )
    elif zero == 2:
        standing, new = (4 * share, width * largest) if again else (0, 4 * share)
        held = Held(weights, (4 + kept) * share, standing, 0, new, 4 * share, width * size, width * untouched)
    else:
        held = Held(
            weights,
            (4 + kept) * share,
            4 * trained,
            4 * trained,
            width * largest,
            4 * trained,
            4 * size,
            4 * untouched,
            bucket_stays=again,
        )
    if not offload:
        return held
    # The copy of the weights that is sent back to the device, and a gradient in fp32, lie on the host too.
    on_host = held.optimizer + (4 + width) * share
    on_device = width * largest + (4 * trained if zero == 1 and again else 0)
    return replace(held, optimizer=0, gradients=on_device, lasting=width * largest, left=on_device, on_host=on_host)


def asked(deepspeed: DeepSpeed, *, numbers: int, ranks: int, small: int) -> Held:
    """What a frozen model holds: no gradients, no optimizer. Only ZeRO-3 shards it."""
    width = WIDTHS[deepspeed.precision]
    if deepspeed.zero < 3:
        return Held(width * numbers)
    live = min(deepspeed.config.zero_optimization.stage3_max_live_parameters or _LIVE, numbers - small)
    shard = width * -(-numbers // ranks)
    if deepspeed.offload == "cpu":
        return Held(width * small, gathered=width * live, on_host=shard)
    return Held(shard + width * small, gathered=width * live)


def persistent(deepspeed: DeepSpeed) -> int:
    """Numbers up to which ZeRO-3 leaves a weight whole on every rank."""
    told = deepspeed.config.zero_optimization.stage3_param_persistence_threshold
    return _PERSISTENT if told is None else told
