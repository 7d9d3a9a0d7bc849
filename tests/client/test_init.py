"""`rlhf init`: specs to begin with."""

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.problems import ApiError
from client.specfiles import parse
from worker.contract.check import parse_spec
from worker.contract.spec import STAGES
from worker.contract.template import begin, template

pytestmark = pytest.mark.quick


def uncommented(text: str) -> str:
    """The spec with each comment that is a field with a value, or that holds some, as a field."""
    lines = []
    for line in text.splitlines():
        found = re.match(r"( *)# ( *[a-z_0-9]+:(?: .*)?)$", line)
        code = found[1] + found[2] if found else line
        lines.append(code)
    return "\n".join(lines)


@pytest.mark.parametrize("stage", STAGES)
def test_a_spec_to_begin_with_is_right_as_it_is(stage: str) -> None:
    spec = parse_spec(parse(template(stage), "spec"))
    assert spec.stage.type == stage
    assert spec == parse_spec(parse(begin(stage), "spec"))


@pytest.mark.parametrize("stage", STAGES)
def test_its_comments_are_the_defaults_under_their_names(stage: str) -> None:
    given: Any = parse(uncommented(template(stage)), "spec")
    # What is absent until somebody chooses it, whole.
    given.pop("evaluate")
    given["stage"].pop("lora", None)
    given["stage"].get("reference", {}).pop("deepspeed", None)
    assert parse_spec(given) == parse_spec(parse(begin(stage), "spec"))


def test_it_is_written_to_a_file_and_over_none(tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    done = CliRunner().invoke(app, ["init", "sft", str(file)])
    assert done.exit_code == 0, done.output
    assert file.read_text() == template("sft")
    file.write_text("mine")
    again = CliRunner().invoke(app, ["init", "sft", str(file)])
    assert isinstance(again.exception, ApiError)
    assert "is there already" in str(again.exception)
    assert file.read_text() == "mine"


def test_a_stage_that_there_is_not_is_told_with_those_that_there_are() -> None:
    done = CliRunner().invoke(app, ["init", "stf"])
    assert isinstance(done.exception, ApiError)
    assert "write one of pretrain, sft, reward" in str(done.exception)
