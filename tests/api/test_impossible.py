"""What would end in an error hours later is refused when it is POSTed."""

import json
from pathlib import Path
from typing import Any

import pytest

from api.settings import Settings
from tests.api.conftest import Plane, write_model
from tests.api.test_inputs import refused

ROWS = {
    "text": '{"text": "a row"}',
    "messages": '{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}',
    "chosen": '{"prompt": "2+2?", "chosen": "4", "rejected": "5"}',
    "answers": '{"prompt": "2+2?", "answers": [{"text": "4", "score": 1}, {"text": "5", "score": 0}]}',
    "prompt": '{"prompt": "2+2?"}',
}
LENGTH = {"terms": [{"function": "length"}]}


@pytest.fixture
def allowed(settings: Settings) -> Path:
    return settings.allowed_paths[0]


@pytest.fixture
def writer(allowed: Path) -> str:
    """A language model."""
    return told(allowed / "writer", "LlamaForCausalLM")


@pytest.fixture
def scorer(allowed: Path) -> str:
    """A reward model."""
    return told(allowed / "scorer", "LlamaForSequenceClassification")


def told(folder: Path, architecture: str) -> str:
    config = {"architectures": [architecture], "max_position_embeddings": 256}
    (write_model(folder) / "config.json").write_text(json.dumps(config))
    return str(folder)


def file(folder: Path, *rows: str) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{row}\n" for row in rows))
    return str(path)


def evaluation(model: str, data: str, **stage: Any) -> dict[str, Any]:
    rollout = {"max_new_tokens": 16}
    return {"stage": {"type": "evaluate", "model": model, "data": data, "max_length": 64, "rollout": rollout, **stage}}


def ppo(model: str, prompts: str, *terms: Any) -> dict[str, Any]:
    role = {"model": model}
    stage = {
        "type": "ppo", "actor": role, "critic": role, "reward": {"terms": list(terms)}, "data": prompts,
        "max_length": 64, "rollout": {"prompts": 8, "max_new_tokens": 16},
    }  # fmt: skip
    return {"stage": stage}


async def upload(plane: Plane, *rows: str) -> str:
    sent = {"file": ("rows.jsonl", "".join(f"{row}\n" for row in rows).encode())}
    answer = await plane.http.post("/v1/files", data={"purpose": "train"}, files=sent)
    assert answer.status_code == 201, answer.text
    return f"files/{answer.json()['id']}"


async def test_a_term_that_is_no_object_is_a_problem_and_no_fault_of_the_servers(
    plane: Plane, writer: str, allowed: Path
) -> None:
    for term in ({"from": "rm.model"}, "length", None, 3, True, []):
        for spec in (ppo(writer, "files/x", term), evaluation(writer, "files/x", reward={"terms": [term]})):
            assert "must be an object" in (await refused(plane, spec))["stage.reward.terms.0"]


async def test_a_pattern_that_re2_does_not_take_is_refused_with_its_own_words(
    plane: Plane, writer: str, allowed: Path
) -> None:
    prompts = file(allowed, ROWS["prompt"])

    def term(pattern: str) -> dict[str, Any]:
        return {"function": "regex", "pattern": pattern, "name": "shape"}

    for pattern, says in (("(", "missing )"), ("(?=x)", "(?="), (r"(a)\1", "escape"), ("((a{999}){999}){999}", "rep")):
        found = await refused(plane, ppo(writer, prompts, {"function": "length"}, term(pattern)))
        assert list(found) == ["stage.reward.terms.1.pattern"] and says in found["stage.reward.terms.1.pattern"], found
    found = await refused(plane, evaluation(writer, prompts, reward={"terms": [term("[")]}))
    assert list(found) == ["stage.reward.terms.0.pattern"]
    await plane.submit(ppo(writer, prompts, term(r"\p{Greek}+|x{2,3}")))


async def test_an_evaluation_needs_the_model_and_the_reward_that_its_rows_are_for(
    plane: Plane, allowed: Path, writer: str, scorer: str
) -> None:
    right: list[tuple[str, str, Any]] = [
        ("text", writer, None), ("messages", writer, None), ("chosen", scorer, None), ("answers", scorer, None),
        ("prompt", writer, LENGTH),
        # One spec for several test sets: where no answers are sampled, their reward is not looked at.
        ("answers", scorer, LENGTH), ("text", writer, LENGTH),
    ]  # fmt: skip
    for kind, model, reward in right:
        await plane.submit(evaluation(model, file(allowed, ROWS[kind]), reward=reward))
    wrong: list[tuple[str, str, Any, dict[str, str]]] = [
        ("prompt", writer, None, {"stage.reward": "such as {terms:"}),
        ("prompt", scorer, LENGTH, {"stage.model": "is a reward model"}),
        ("prompt", scorer, None, {"stage.model": "is a reward model", "stage.reward": "is needed"}),
        ("text", scorer, None, {"stage.model": "is a reward model"}),
        ("messages", scorer, None, {"stage.model": "which are for a language model"}),
        ("chosen", writer, None, {"stage.model": "which are for a reward model"}),
        ("answers", writer, None, {"stage.model": "is a language model"}),
    ]
    for kind, model, reward, says in wrong:
        found = await refused(plane, evaluation(model, file(allowed, ROWS[kind]), reward=reward))
        assert found.keys() == says.keys()
        assert all(part in found[path] for path, part in says.items()), found


@pytest.mark.parametrize(
    ("rollout", "path"),
    [
        ({"max_new_tokens": 64}, "stage.rollout.max_new_tokens"),
        ({"max_new_tokens": 4, "min_new_tokens": 5}, "stage.rollout.min_new_tokens"),
    ],
)
async def test_answers_that_leave_no_room_are_refused_where_there_are_prompts(
    plane: Plane, allowed: Path, writer: str, rollout: dict[str, int], path: str
) -> None:
    asked = {"reward": LENGTH, "rollout": rollout}
    assert list(await refused(plane, evaluation(writer, file(allowed, ROWS["prompt"]), **asked))) == [path]
    await plane.submit(evaluation(writer, file(allowed, ROWS["text"]), **asked))


async def test_a_model_that_does_not_tell_what_it_is_for_is_left_to_the_worker(plane: Plane, allowed: Path) -> None:
    model = str(write_model(allowed / "silent"))
    for kind in ("text", "chosen"):
        await plane.submit(evaluation(model, file(allowed, ROWS[kind])))


async def test_another_model_is_compared_on_prompts_alone(plane: Plane, allowed: Path, writer: str) -> None:
    spec = evaluation(writer, file(allowed, ROWS["text"]), against=writer, reward=LENGTH)
    assert set(await refused(plane, spec)) == {"stage.against"}


async def test_a_term_that_compares_with_the_answer_needs_one_in_every_row(
    plane: Plane, allowed: Path, writer: str
) -> None:
    with_answer, null = '{"prompt": "2+2?", "answer": "4"}', '{"prompt": "1+1?", "answer": null}'
    match = {"function": "exact_match", "name": "right"}
    for bad in (ROWS["prompt"], null):
        for prompts in (file(allowed, with_answer, bad), await upload(plane, with_answer, bad)):
            found = await refused(plane, ppo(writer, prompts, match))
            assert list(found) == ["stage.data.prompts"]
            assert found["stage.data.prompts"].startswith(
                "line 2 has no `answer`, with which the reward's term `right`"
            )
            found = await refused(plane, evaluation(writer, prompts, reward={"terms": [match]}))
            assert list(found) == ["stage.data.test"]
            await plane.submit(ppo(writer, prompts, {"function": "length"}))
    good = await upload(plane, with_answer, "", with_answer)
    await plane.submit(ppo(writer, good, match))
    held_out = {"data": await upload(plane, ROWS["prompt"])}
    assert list(await refused(plane, ppo(writer, good, match) | {"evaluate": held_out})) == ["evaluate.data"]


async def test_one_row_cannot_be_parted_into_two(plane: Plane, allowed: Path, writer: str) -> None:
    held_out = {"evaluate": {"held_out": 0.5}}
    sft = {"stage": {"type": "sft", "model": writer, "data": file(allowed, ROWS["messages"]), "max_length": 64}}
    assert "one row" in (await refused(plane, sft | held_out))["evaluate.held_out"]
    prompts = file(allowed, ROWS["prompt"])
    assert list(await refused(plane, ppo(writer, prompts, {"function": "length"}) | held_out)) == ["evaluate.held_out"]
    await plane.submit(ppo(writer, file(allowed, *[ROWS["prompt"]] * 2), {"function": "length"}) | held_out)


async def test_rows_and_a_model_that_are_not_for_classification_are_told(
    plane: Plane, allowed: Path, writer: str, scorer: str
) -> None:
    (allowed / "tags").mkdir()
    labels, tags = (
        file(allowed, '{"text": "a", "label": 1}'),
        file(allowed / "tags", '{"tokens": ["a"], "tags": ["X"]}'),
    )
    stage = {"type": "classify", "model": writer, "data": labels, "max_length": 64}
    await plane.submit({"stage": stage, "evaluate": {"data": labels}})
    assert (
        "`tokens`" in (await refused(plane, {"stage": stage | {"data": tags, "regression": True}}))["stage.regression"]
    )
    said = await refused(plane, {"stage": stage, "evaluate": {"data": tags}})
    assert said["evaluate.data"] == "its rows have `tokens`, and those of stage.data.train `label`"
    assert (
        "is a reward model; give an encoder"
        in (await refused(plane, {"stage": stage | {"model": scorer}}))["stage.model"]
    )
    config = {"architectures": ["BertForTokenClassification"], "id2label": {"0": "O", "1": "X"}}
    (write_model(allowed / "tagger") / "config.json").write_text(json.dumps(config))
    taught = stage | {"type": "reward", "model": str(allowed / "tagger"), "data": "./x"}
    assert "is a classifier; give" in (await refused(plane, {"stage": taught}))["stage.model"]
