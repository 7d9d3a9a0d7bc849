"""What a job tells of its answers: anybody who loads its models computes the same of them."""

import math
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.engine.jobs import Ended
from tests.engine.pool import Pool
from tests.rl import ppo_cases, ppo_jobs

TEMPERATURE, PROMPTS, COEF = 0.7, 16, 0.1
TEMPLATE = "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '<|im_end|>' }}{% endfor %}"
ASKS = "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
CHANGES: dict[str, Any] = {
    "stage__reference": {"model": "/reference"},
    "stage__reward": {
        "terms": [
            {"model": "/own", "name": "own", "weight": 2.0},
            {"model": "/other", "name": "other", "weight": -1.5},
            {"function": "length", "weight": -0.1},
        ],
        "scale": "running",
        "clip": 5.0,
        "missing_eos": -0.7,
    },
    "stage__rollout": {"prompts": PROMPTS, "slots": 8, "max_new_tokens": 24, "temperature": TEMPERATURE},
    "stage__ppo": {"minibatches": 2, "kl": {"coef": COEF, "target": 0.4, "horizon": 40.0}},
    "stage__guards": {"length": None},
    "stage__micro_batch": 4,
    "stage__steps": 3,
}


class Run:
    """A job, the answers it sampled as tokens, and what it showed of them."""

    def __init__(self, job: ppo_jobs.Job, ended: Ended, rolled: list[list[Any]]):
        assert ended.outcome == "Finished", ended.message
        self.models, self.ended, self.rolled = job.models, ended, rolled
        shown = [m["sample"] for m in ended.said if m["kind"] == "sample"]
        self.shown = [[one for one in shown if one["step"] == step] for step in (1, 2, 3)]


@pytest.fixture(scope="module")
def run(one: Pool, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Actor, reference and two reward models, of which one reads other tokens than the actor writes."""
    store = tmp_path_factory.mktemp("answers")
    job = ppo_jobs.ppo(store, rows=40, **CHANGES)
    actor, reference = store / "actor", ppo_jobs.actor_folder(store / "reference", seed=2)
    other = ppo_jobs.reward_folder(store / "other", reference, weight=-0.1, template=TEMPLATE + ASKS)
    job.models = {
        "stage.actor.model": actor,
        "stage.reference.model": reference,
        "stage.reward.terms.0.model": ppo_jobs.reward_folder(store / "own", actor),
        "stage.reward.terms.1.model": other,
    }
    return Run(job, *one.run(ppo_cases.answered, job)[0])


def said(tokenizer: Any, answer: list[int]) -> str:
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def log_probabilities(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """What a model gives each token of an answer, by itself."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return (logits / TEMPERATURE).log_softmax(-1)[range(len(answer)), answer]


def test_all_answers_are_shown_with_the_prompts_that_they_answer(run: Run) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run.models["stage.actor.model"])
    for rolled, shown in zip(run.rolled, run.shown, strict=True):
        assert [one["index"] for one in shown] == [one.index for one in rolled] == list(range(PROMPTS))
        for answer, one in zip(rolled, shown, strict=True):
            turn = [{"role": "user", "content": one["prompt"]}]
            asked = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
            assert tokenizer(asked, add_special_tokens=False)["input_ids"] == answer.prompt
            # What no database takes is shown as what it is not.
            assert one["answer"] == said(tokenizer, answer.answer).replace("\0", "\N{REPLACEMENT CHARACTER}")
            assert one["ended"] == (answer.answer[-1] == tokenizer.eos_token_id)
    assert len({one["prompt"] for one in run.shown[0]}) > 4


def test_a_tokens_nats_are_those_between_the_actor_and_the_references_own_model(run: Run) -> None:
    folders = [run.models[f"stage.{role}.model"] for role in ("actor", "reference")]
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders]
    for answer, one in zip(run.rolled[0], run.shown[0], strict=True):
        actor, reference = (log_probabilities(model, answer.prompt, answer.answer) for model in models)
        assert one["kl"] == pytest.approx((actor - reference).tolist(), abs=1e-5)
        assert max(map(abs, one["kl"])) > 0.01


def scores(folder: Path, rows: list[list[int]]) -> list[float]:
    """A reward model's, of rows padded on the right."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    longest, pad = max(map(len, rows)), model.config.pad_token_id
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        found: list[float] = model(ids, attention_mask=real).logits[:, 0].tolist()
    return found


def test_each_answer_has_the_scores_that_transformers_gives_it_by_either_reward_model(run: Run) -> None:
    own, other = (run.models[f"stage.reward.terms.{number}.model"] for number in (0, 1))
    end = AutoTokenizer.from_pretrained(own).eos_token_id
    tokenizer = AutoTokenizer.from_pretrained(other)
    for rolled, shown in zip(run.rolled, run.shown, strict=True):
        ids = [[*a.prompt, *(a.answer[:-1] if a.ended else a.answer), end] for a in rolled]
        answers = [said(tokenizer, a.answer) for a in rolled]
        texts = [
            f"[user] {one['prompt']}<|im_end|>[assistant] {answer}<|im_end|>"
            for one, answer in zip(shown, answers, strict=True)
        ]
        read = tokenizer(texts, add_special_tokens=False)["input_ids"]
        for name, expected in (("own", scores(own, ids)), ("other", scores(other, read))):
            assert [one["terms"][name] for one in shown] == pytest.approx(expected, abs=1e-5)
            assert pstdev(expected) > 0.01


def test_rewards_are_the_terms_by_their_weights_and_the_price_of_a_missing_end(run: Run) -> None:
    every = [one for shown in run.shown for one in shown]
    for one in every:
        terms = one["terms"]
        plain = 2.0 * terms["own"] - 1.5 * terms["other"] - 0.1 * terms["length"]
        assert one["reward"] == pytest.approx(plain - (0.0 if one["ended"] else 0.7), abs=1e-9)
    assert {one["ended"] for one in every} == {True, False}
    for step, shown in enumerate(run.shown, start=1):
        assert run.ended.curve("ppo/reward")[step] == pytest.approx(fmean(one["reward"] for one in shown), abs=1e-9)


def test_what_is_learnt_from_is_scaled_by_all_rewards_so_far_and_clipped_and_pays_for_its_kl(run: Run) -> None:
    coef, seen, clipped = COEF, [], []
    for step, shown in enumerate(run.shown, start=1):
        assert run.ended.curve("ppo/kl_coef")[step] == pytest.approx(coef, rel=1e-6)
        seen += [one["reward"] for one in shown]
        scaled = [one["reward"] / pstdev(seen) for one in shown]
        clipped += [abs(score) > 5.0 for score in scaled]
        kls = [sum(one["kl"]) for one in shown]
        scored = [min(max(score, -5.0), 5.0) for score in scaled]
        worth = fmean(score - coef * kl for score, kl in zip(scored, kls, strict=True))
        assert run.ended.curve("ppo/return")[step] == pytest.approx(worth, abs=1e-5)
        assert run.ended.curve("ppo/kl")[step] == pytest.approx(fmean(kls), abs=1e-4)
        coef *= 1 + min(max(fmean(kls) / 0.4 - 1, -0.2), 0.2) * PROMPTS / 40
    assert True in clipped and False in clipped
    assert not math.isclose(coef, COEF * 0.92**3)
