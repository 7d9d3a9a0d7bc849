"""The losses of a PPO step: a forward by torch for logits and values, all else worked out in numpy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from worker import losses
from worker.logprobs import log_probabilities, with_entropy
from worker.packing import IGNORED
from worker.rl.objectives import (
    POLICY_SUMS,
    VALUE_SUMS,
    AnswerBatch,
    PolicyBatch,
    ValueBatch,
    answer_batch,
    policy_sums,
    value_sums,
)

VOCABULARY = 23
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"vocab_size": VOCABULARY, "initializer_range": 0.3, "pad_token_id": 0}
PROMPTS = [[3, 4, 5, 6], [7], [8, 9]]
ANSWERS = [[10, 11], [12, 13, 14, 15, 2], [2]]
CLIP, TEMPERATURE, BONUS = 0.2, 0.7, 0.03
Floats = NDArray[np.float64]


def config(**more: Any) -> Any:
    return AutoConfig.for_model("llama", **SIZES | more)


@pytest.fixture
def actor() -> PreTrainedModel:
    torch.manual_seed(5)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config()).eval()
    return model


@pytest.fixture
def critic() -> PreTrainedModel:
    torch.manual_seed(6)
    return AutoModelForSequenceClassification.from_config(config(num_labels=1)).eval()  # type: ignore[no-any-return]


def batch_of(rows: slice = slice(None), pad_id: int = 0) -> AnswerBatch:
    return answer_batch(PROMPTS[rows], ANSWERS[rows], pad_id=pad_id)


def noise(batch: AnswerBatch, seed: int, scale: float) -> Tensor:
    return torch.randn(batch.labels.shape, generator=torch.Generator().manual_seed(seed)) * scale


def policy_batch(model: nn.Module, batch: AnswerBatch | None = None, moved: float = 0.5) -> PolicyBatch:
    """A batch whose old log-probabilities are off by some noise, with any advantages."""
    batch = batch or batch_of()
    with torch.no_grad():
        old = log_probabilities(model, batch, TEMPERATURE) + noise(batch, 1, moved)
    return PolicyBatch(**vars(batch), old_logprobs=old, advantages=noise(batch, 2, 1.0))


def value_batch(batch: AnswerBatch | None = None) -> ValueBatch:
    batch = batch or batch_of()
    return ValueBatch(**vars(batch), old_values=noise(batch, 3, 0.5), returns=noise(batch, 4, 1.0))


def all_logits(model: nn.Module, batch: AnswerBatch) -> Tensor:
    """Of every position, without any choice of positions: [rows, time, vocabulary]."""
    logits: Tensor = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    return logits


def choices() -> list[tuple[int, int, int]]:
    """(row, position, token) of every token of every answer, by counting."""
    return [
        (row, len(prompt) - 1 + n, token)
        for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True))
        for n, token in enumerate(answer)
    ]


def softmax(z: Floats) -> Floats:
    e = np.exp(z - z.max())
    return np.asarray(e / e.sum())


def numpy_policy(logits: Floats, batch: PolicyBatch, bonus: float) -> tuple[dict[str, float], Floats]:
    """(sums, d loss / d logits), token by token from the formulas."""
    told = dict.fromkeys(POLICY_SUMS, 0.0)
    gradient = np.zeros_like(logits)
    for row, t, token in choices():
        p = softmax(logits[row, t] / TEMPERATURE)
        advantage, old = float(batch.advantages[row, t]), float(batch.old_logprobs[row, t])
        ratio = float(np.exp(np.log(p[token]) - old))
        kept = min(max(ratio, 1 - CLIP), 1 + CLIP)
        entropy = float(-(p * np.log(p)).sum())
        free = -advantage * ratio >= -advantage * kept
        told["policy_loss"] += max(-advantage * ratio, -advantage * kept)
        told["clipped"] += not free
        told["tokens"] += 1
        told["entropy"] += entropy
        told["step_kl"] += ratio - 1 - np.log(ratio)
        told["ratio_error"] = max(told["ratio_error"], abs(ratio - 1))
        one_hot = np.eye(VOCABULARY)[token]
        if free:
            gradient[row, t] += -advantage * ratio * (one_hot - p) / TEMPERATURE
        gradient[row, t] -= bonus * -(p * (np.log(p) + entropy)) / TEMPERATURE
    told["loss"] = told["policy_loss"] - bonus * told["entropy"]
    return told, gradient


@pytest.mark.parametrize("bonus", [0.0, BONUS])
@pytest.mark.parametrize("chunk", [losses._CHUNK, 3 * VOCABULARY])
def test_the_actors_step_is_that_of_numpy(
    actor: PreTrainedModel, bonus: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_CHUNK", chunk)
    batch = policy_batch(actor)
    logits = all_logits(actor, batch)
    wanted, by_logits = numpy_policy(logits.detach().double().numpy(), batch, bonus)
    assert 0 < wanted["clipped"] < wanted["tokens"]  # both branches of the loss are seen
    found = policy_sums(actor, batch, clip=CLIP, temperature=TEMPERATURE, entropy=bonus)
    assert dict(zip(POLICY_SUMS, found.tolist(), strict=True)) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    # From the logits on back it is torch's chain rule.
    parameters = list(actor.parameters())
    ours = torch.autograd.grad(found[0], parameters)
    theirs = torch.autograd.grad(logits, parameters, torch.from_numpy(by_logits).float())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert relative(ours, theirs) < 1e-5


def relative(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """|difference| / |theirs|, over all parameters."""
    one, other = (torch.cat([part.flatten() for part in parts]) for parts in (ours, theirs))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_critics_step_is_that_of_numpy(critic: PreTrainedModel, clip: float | None) -> None:
    batch = value_batch()
    hidden = critic.model(input_ids=batch.input_ids, position_ids=batch.position_ids).last_hidden_state
    values = critic.score(hidden)[..., 0]
    plain = values.detach()
    told, by_values = dict.fromkeys(VALUE_SUMS, 0.0), np.zeros(values.shape)
    for row, t, _ in choices():
        now, old, wanted = float(plain[row, t]), float(batch.old_values[row, t]), float(batch.returns[row, t])
        kept = now if clip is None else min(max(now, old - clip), old + clip)
        free = (now - wanted) ** 2 >= (kept - wanted) ** 2
        told["loss"] += max((now - wanted) ** 2, (kept - wanted) ** 2) / 2
        told["clipped"] += not free
        told["tokens"] += 1
        by_values[row, t] = (now - wanted) if free else 0.0
    assert clip is None or 0 < told["clipped"] < told["tokens"]
    found = value_sums(critic, batch, value_clip=clip)
    assert dict(zip(VALUE_SUMS, found.tolist(), strict=True)) == pytest.approx(told, rel=1e-5)
    parameters = [p for name, p in critic.named_parameters()]
    ours = torch.autograd.grad(found[0], parameters)
    theirs = torch.autograd.grad(values, parameters, torch.from_numpy(by_values).float())
    assert relative(ours, theirs) < 1e-5


class Fixed(nn.Module):
    """Gives the logits ln 1, ln 2, ln 3, ln 4 everywhere: probabilities .1 .2 .3 .4."""

    def forward(self, **given: Any) -> Any:
        shape = (*given["input_ids"].shape, 4)
        return type("Out", (), {"logits": torch.tensor([1.0, 2, 3, 4]).log().expand(shape)})()


def test_the_clip_keeps_only_those_tokens_from_learning_that_went_their_way_already() -> None:
    batch = answer_batch([[0]], [[3, 3, 3, 3, 3]], pad_id=0)
    ratios = torch.tensor([[1.5, 1.5, 1.5, 0.5, 0.5, 1]])
    advantages = torch.tensor([[1.0, -1, -1, 1, -1, 9]])
    old = (0.4 / ratios).log()
    found = policy_sums(
        Fixed(), PolicyBatch(**vars(batch), old_logprobs=old, advantages=advantages), clip=0.2, temperature=1.0
    )
    # -1.2 (clipped), 1.5, 1.5, -.5 and .8 (clipped); by k3: 3 (.5 - ln 1.5) + 2 (-.5 - ln .5)
    wanted = {"loss": 2.1, "policy_loss": 2.1, "clipped": 2, "tokens": 5, "ratio_error": 0.5}
    wanted |= {"entropy": 5 * 1.279854, "step_kl": 0.669899}
    assert dict(zip(POLICY_SUMS, found.tolist(), strict=True)) == pytest.approx(wanted, rel=1e-5)


def test_before_any_update_the_ratio_is_exactly_1_and_the_loss_is_less_the_advantages(actor: PreTrainedModel) -> None:
    batch = policy_batch(actor, moved=0.0)
    told = dict(zip(POLICY_SUMS, policy_sums(actor, batch, clip=CLIP, temperature=TEMPERATURE).tolist(), strict=True))
    assert told["ratio_error"] == told["step_kl"] == told["clipped"] == 0
    assert told["loss"] == pytest.approx(-float(batch.advantages[batch.mask].sum()), rel=1e-6)


def test_another_temperature_in_one_pass_alone_shows_in_the_ratio(actor: PreTrainedModel) -> None:
    batch = policy_batch(actor, moved=0.0)
    assert policy_sums(actor, batch, clip=CLIP, temperature=1.0).tolist()[-1] > 0.01


def test_log_probabilities_are_those_of_all_logits_and_0_off_the_answers(actor: PreTrainedModel) -> None:
    batch = batch_of()
    found = log_probabilities(actor, batch, TEMPERATURE)
    whole = (all_logits(actor, batch) / TEMPERATURE).log_softmax(-1)
    wanted = torch.zeros_like(found)
    for row, t, token in choices():
        wanted[row, t] = whole[row, t, token]
    torch.testing.assert_close(found, wanted)


OTHERS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "initializer_range": 0.3},
    "qwen2": {**SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gemma2": {**SIZES, "head_dim": 8, "num_key_value_heads": 2, "final_logit_softcapping": 3.0},
    "gpt_neox": {**SIZES},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_log_probabilities_of_other_architectures_are_of_the_logits_that_they_give(kind: str) -> None:
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **OTHERS[kind])).eval()
    batch = batch_of()
    whole = (all_logits(model, batch) / TEMPERATURE).log_softmax(-1)
    wanted = torch.stack([whole[choice] for choice in choices()])
    torch.testing.assert_close(log_probabilities(model, batch, TEMPERATURE)[batch.mask], wanted, rtol=1e-5, atol=1e-5)


def test_an_actor_without_its_adapters_is_the_model_that_it_was(actor: PreTrainedModel) -> None:
    batch = batch_of()
    before = log_probabilities(actor, batch, TEMPERATURE)
    adapted = get_peft_model(actor, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    assert not torch.allclose(log_probabilities(adapted, batch, TEMPERATURE), before, atol=1e-2)
    with adapted.disable_adapter():
        assert torch.equal(log_probabilities(adapted, batch, TEMPERATURE), before)


def test_for_the_backward_pass_the_logits_are_kept_once(actor: PreTrainedModel) -> None:
    batch = policy_batch(actor)
    tokens = int(batch.mask.sum())
    kept: dict[int, int] = {}  # bytes of tensors with a number for each token of the vocabulary, by where they lie

    def note(tensor: Tensor) -> Tensor:
        if tensor.shape == (tokens, VOCABULARY):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        policy_sums(actor, batch, clip=CLIP, temperature=TEMPERATURE, entropy=BONUS)
    assert list(kept.values()) == [tokens * VOCABULARY * 4]


def test_in_bf16_the_softmax_is_still_fp32(actor: PreTrainedModel) -> None:
    batch, low = batch_of(), actor.to(torch.bfloat16)
    found = log_probabilities(low, batch, 1.0)
    whole = all_logits(low, batch).float().log_softmax(-1)
    assert found.dtype == torch.float32
    # A softmax in bf16 would be off by up to 1 in 256.
    wanted = torch.stack([whole[choice] for choice in choices()])
    torch.testing.assert_close(found[batch.mask], wanted, rtol=1e-6, atol=1e-6)


def test_the_head_makes_logits_for_the_answers_alone(actor: PreTrainedModel) -> None:
    seen: list[tuple[int, ...]] = []
    actor.get_output_embeddings().register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape)))
    policy_sums(actor, policy_batch(actor), clip=CLIP, temperature=1.0)
    assert seen == [(8, VOCABULARY)] * 2


def sums_of(model: nn.Module, batch: PolicyBatch) -> Tensor:
    return policy_sums(model, batch, clip=CLIP, temperature=TEMPERATURE, entropy=BONUS)


def part(batch: Any, rows: slice, time: int) -> Any:
    """Some rows of a batch, with less padding."""
    return type(batch)(**{k: (v[rows] if v.dim() == 1 else v[rows, :time]) for k, v in vars(batch).items()})


@pytest.mark.parametrize("which", ["actor", "critic"])
def test_micro_batches_of_any_split_add_up_to_the_same_sums_and_gradient(
    which: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(which)
    batch: Any = policy_batch(model) if which == "actor" else value_batch()
    objective: Callable[..., Tensor] = sums_of if which == "actor" else lambda m, b: value_sums(m, b, value_clip=0.2)
    parameters = [p for p in model.parameters()]
    whole = objective(model, batch)
    wanted = torch.autograd.grad(whole[0], parameters)
    split = [objective(model, part(batch, slice(0, 1), 6)), objective(model, part(batch, slice(1, 3), 6))]
    found = torch.autograd.grad(split[0][0] + split[1][0], parameters)
    count = len(POLICY_SUMS) - 1 if which == "actor" else len(VALUE_SUMS)
    torch.testing.assert_close((split[0] + split[1])[:count], whole[:count], rtol=1e-5, atol=1e-6)
    assert relative(found, wanted) < 1e-5


@pytest.mark.parametrize("pad_id", [0, 2, 13], ids=["pad", "what ends an answer", "any token"])
def test_what_pads_and_what_stands_off_the_answers_changes_nothing(actor: PreTrainedModel, pad_id: int) -> None:
    batch = policy_batch(actor)
    padded = batch_of(pad_id=pad_id)
    other = replace(
        batch,
        input_ids=padded.input_ids,
        old_logprobs=torch.where(batch.mask, batch.old_logprobs, torch.nan),
        advantages=torch.where(batch.mask, batch.advantages, torch.nan),
    )
    torch.testing.assert_close(sums_of(actor, other), sums_of(actor, batch), rtol=1e-6, atol=1e-6)


def test_a_batch_without_rows_takes_part_and_adds_nothing(actor: PreTrainedModel, critic: PreTrainedModel) -> None:
    none = answer_batch([], [], pad_id=0)
    nothing = torch.zeros(none.labels.shape)
    found = sums_of(actor, PolicyBatch(**vars(none), old_logprobs=nothing, advantages=nothing))
    values = value_sums(critic, ValueBatch(**vars(none), old_values=nothing, returns=nothing), value_clip=0.2)
    for model, sums in ((actor, found), (critic, values)):
        sums[0].backward()
        assert not sums.any()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_gradient_of_log_probability_and_entropy_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 4, 2, 2])
    weights, bonus = torch.randn(4), torch.randn(4)

    def objective(z: Tensor) -> Tensor:
        chosen, entropy = with_entropy(z, labels, TEMPERATURE)
        return (chosen * weights + entropy * bonus).sum()

    (found,) = torch.autograd.grad(objective(logits), logits)
    width = 1e-2
    for row, column in np.ndindex(4, 5):
        off = torch.zeros(4, 5)
        off[row, column] = width
        with torch.no_grad():
            slope = (objective(logits + off) - objective(logits - off)) / (2 * width)
        assert float(found[row, column]) == pytest.approx(float(slope), abs=1e-3)


def test_a_token_that_the_model_rules_out_leaves_entropy_and_gradient_finite() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf]], requires_grad=True)
    chosen, entropy = with_entropy(logits, torch.tensor([1]))
    (gradient,) = torch.autograd.grad((chosen + entropy).sum(), logits)
    p = softmax(np.array([1.0, 2.0]))
    assert float(entropy.detach()) == pytest.approx(float(-(p * np.log(p)).sum()), abs=1e-6)
    assert gradient[0, 2] == 0 and gradient.isfinite().all()


def test_a_batch_puts_each_answers_tokens_at_the_positions_that_choose_them() -> None:
    batch = batch_of()
    assert batch.input_ids.tolist() == [[3, 4, 5, 6, 10, 11], [7, 12, 13, 14, 15, 2], [8, 9, 2, 0, 0, 0]]
    assert batch.labels[0].tolist() == [IGNORED, IGNORED, IGNORED, 10, 11, IGNORED]
    assert batch.labels[1].tolist() == [12, 13, 14, 15, 2, IGNORED]
    assert batch.labels[2].tolist() == [IGNORED, 2, IGNORED, IGNORED, IGNORED, IGNORED]
    assert batch.lengths.tolist() == [6, 6, 3]
