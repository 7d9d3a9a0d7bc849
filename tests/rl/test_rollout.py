"""Answers sampled side by side are those that each prompt would have had by itself."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tests.rl.models import CONFIGS, VOCABULARY, adapted, model_of
from worker.contract.ppo import Rollout
from worker.errors import BadSpec, Diverged
from worker.rl.rollout import Answer, sample

LLAMA = CONFIGS["llama with grouped queries"]
ENDS = frozenset({2, 3})


def prompts_of(count: int, longest: int = 12, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(4, VOCABULARY) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def answers(
    model: nn.Module, prompts: Sequence[Sequence[int]], *, slots: int = 4, seed: int = 0, **more: Any
) -> list[Answer]:
    settings: dict[str, Any] = {"seeds": [seed * 1000 + n for n in range(len(prompts))], "ends": ENDS, "pad_id": 0}
    settings |= {
        key: more.pop(key) for key in ("seeds", "ends", "between", "greedy", "pad_id", "limits") if key in more
    }
    rollout = Rollout(**({"max_new_tokens": 20} | more))
    return sample(model, prompts, rollout=rollout, slots=slots, device=torch.device("cpu"), **settings)


def generated(model: Any, prompt: Sequence[int], limit: int, ends: frozenset[int] = ENDS) -> Answer:
    """What `generate` answers greedily to one prompt by itself."""
    ids = torch.tensor([list(prompt)])
    said = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False,
        eos_token_id=sorted(ends), pad_token_id=0,
    )[0, ids.shape[1] :].tolist()  # fmt: skip
    return Answer(said, said[-1] in ends)


@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_answers_are_those_of_generate_for_each_prompt_by_itself(kind: str) -> None:
    model = model_of(CONFIGS[kind])
    prompts = prompts_of(11)
    # An untrained model repeats itself: many ends, so that some come early and some late.
    ends = frozenset(range(2, VOCABULARY, 6))
    found = answers(model, prompts, greedy=True, ends=ends)
    assert found == [generated(model, prompt, 20, ends) for prompt in prompts]
    assert len({len(answer.ids) for answer in found}) > 2, "all answers are of one length: the test shows little"


def test_a_model_wrapped_by_peft_answers_with_its_adapters() -> None:
    model = adapted(model_of(LLAMA))
    prompts = prompts_of(6)
    found = answers(model, prompts, greedy=True)
    assert found == [generated(model, prompt, 20) for prompt in prompts]
    with model.disable_adapter():
        assert found != [generated(model, prompt, 20) for prompt in prompts]


@pytest.mark.parametrize("slots", [1, 2, 5, 7, 64])
def test_the_number_of_slots_changes_no_sampled_answer(slots: int) -> None:
    model, prompts = model_of(LLAMA), prompts_of(9)
    assert answers(model, prompts, slots=slots) == answers(model, prompts, slots=3)


def test_an_answer_depends_on_its_prompt_and_seed_and_on_no_other() -> None:
    model, prompts = model_of(LLAMA), prompts_of(8)
    seeds = [100 + n for n in range(8)]
    whole = answers(model, prompts, seeds=seeds)
    turned = answers(model, prompts[::-1], seeds=seeds[::-1])
    assert turned[::-1] == whole
    assert [answers(model, [p], seeds=[s])[0] for p, s in zip(prompts, seeds, strict=True)] == whole
    assert answers(model, prompts, seed=7) != whole


def test_very_uneven_prompts_are_read_right() -> None:
    model = model_of(LLAMA)
    prompts = [[5], list(range(4, 40)) * 5, [7, 8], [9] * 100, [6] * 3, [11] * 40]
    assert answers(model, prompts, slots=3, greedy=True) == [generated(model, prompt, 20) for prompt in prompts]


def test_a_limit_of_one_token_gives_one() -> None:
    found = answers(model_of(LLAMA), prompts_of(7), max_new_tokens=1)
    assert [len(answer.ids) for answer in found] == [1] * 7


def test_answers_that_reach_the_limit_have_not_ended() -> None:
    found = answers(model_of(LLAMA), prompts_of(7), ends=frozenset(), max_new_tokens=9)
    assert [(len(answer.ids), answer.ended) for answer in found] == [(9, False)] * 7


def test_each_answer_may_have_a_limit_of_its_own() -> None:
    model, prompts, limits = model_of(LLAMA), prompts_of(7), [3, 1, 9, 20, 2, 4, 1]
    found = answers(model, prompts, ends=frozenset(), limits=limits)
    assert [len(answer.ids) for answer in found] == limits
    longer = answers(model, prompts, ends=frozenset())
    assert [answer.ids for answer in found] == [a.ids[:n] for a, n in zip(longer, limits, strict=True)]


def test_an_answer_holds_the_token_that_ended_it_once_and_last() -> None:
    found = answers(model_of(LLAMA), prompts_of(40), slots=8)
    assert {answer.ended for answer in found} == {True, False}
    for answer in found:
        assert answer.ended == (answer.ids[-1] in ENDS)
        assert not ENDS & set(answer.ids[:-1])


def test_no_answer_ends_before_its_fewest_tokens() -> None:
    model, prompts = model_of(LLAMA), prompts_of(40)
    for greedy in (False, True):
        found = answers(model, prompts, min_new_tokens=6, max_new_tokens=9, greedy=greedy)
        assert all(len(answer.ids) > 6 or not answer.ended for answer in found)
        assert all(len(answer.ids) >= 6 for answer in found)
    # The sixth token itself may not be an end, the seventh may.
    assert any(len(answer.ids) == 7 and answer.ended for answer in found)


def test_no_prompts_give_no_answers() -> None:
    assert answers(model_of(LLAMA), []) == []


def test_what_is_drawn_has_the_model_s_probabilities() -> None:
    model, prompt, temperature = model_of(LLAMA), [5, 6, 7], 2.0
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1)
    draws = 4000
    found = answers(model, [prompt] * draws, slots=1000, max_new_tokens=1, temperature=temperature)
    counts = torch.zeros(VOCABULARY)
    for answer in found:
        counts[answer.ids[0]] += 1
    # A count's standard deviation is the root of n p (1 - p): five of them, and one for tokens that hardly occur.
    allowed = 5 * (draws * expected * (1 - expected)).sqrt() + 1
    assert bool(((counts - draws * expected).abs() <= allowed).all())
    other = torch.softmax(logits, -1)
    assert not bool(((counts - draws * other).abs() <= allowed).all()), "the temperature made no difference"


def test_between_is_called_before_every_step_and_ends_the_rollout() -> None:
    calls = 0

    def between() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answers(model_of(LLAMA), prompts_of(3), ends=frozenset(), between=between)
    calls = -100
    answers(model_of(LLAMA), [[5], [6]], ends=frozenset(), max_new_tokens=10, between=between)
    assert calls == -90


def test_slots_of_finished_answers_go_to_those_that_wait() -> None:
    """Steps needed are near the tokens a slot has to make, and far from the batches' longest answers added up."""
    model, prompts = model_of(LLAMA), prompts_of(64)
    steps = 0

    def between() -> None:
        nonlocal steps
        steps += 1

    found = answers(model, prompts, slots=8, max_new_tokens=100, between=between)
    lengths = [len(answer.ids) for answer in found]
    batches = sum(max(lengths[n : n + 8]) for n in range(0, 64, 8))
    assert steps < 0.75 * batches


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**LLAMA, "model_type": "mistral", "sliding_window": 8}, "its last 8 tokens"),
        ({"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 1}, "state"),
    ],
)
def test_models_that_keep_more_than_keys_and_values_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSpec, match=words):
        answers(model_of(config), prompts_of(3))


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval"):
        answers(model_of(LLAMA).train(), prompts_of(3))


@pytest.mark.parametrize("greedy", [False, True])
def test_logits_that_are_no_numbers_are_told(greedy: bool) -> None:
    model = model_of(LLAMA)
    with torch.no_grad():
        model.get_input_embeddings().weight[5, 0] = float("nan")
    with pytest.raises(Diverged):
        answers(model, [[4], [5]], greedy=greedy)


def test_a_rollout_leaves_torch_s_own_random_numbers_alone() -> None:
    model = model_of(LLAMA)
    before = torch.get_rng_state()
    answers(model, prompts_of(3))
    assert torch.equal(torch.get_rng_state(), before)
