"""What the docs show is true: every spec in them is one, and every page that is made is current."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from client.specfiles import parse, read
from examples import dialogues, rlhf
from scripts.describe_spec import page
from scripts.describe_stages import page as stages
from worker.contract.check import parse_spec
from worker.contract.pipeline import parse_pipeline
from worker.contract.references import references
from worker.contract.rows import check_rows
from worker.contract.spec import JobSpec

pytestmark = pytest.mark.quick
ROOT = Path(__file__).parents[2]
EXAMPLES = sorted([*ROOT.glob("examples/*.yaml"), *ROOT.glob("examples/*.json")])
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
_BLOCK = re.compile(r"^```(yaml|json)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def _blocks() -> list[tuple[str, str]]:
    return [
        (f"{page.name}:{i}", found[2]) for page in PAGES for i, found in enumerate(_BLOCK.finditer(page.read_text()))
    ]


def _specs(document: dict[str, Any]) -> list[JobSpec]:
    """The spec, or those of a pipeline's steps."""
    return list(parse_pipeline(document).steps.values()) if "steps" in document else [parse_spec(document)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_every_example_is_a_spec_whose_data_are_there_and_fit(path: Path) -> None:
    for spec in _specs(read(str(path))):
        for wanted in references(spec):
            if wanted.kind == "data" and wanted.reference.startswith("./"):
                with (ROOT / wanted.reference).open("rb") as lines:
                    assert check_rows(lines).kind in wanted.rows


def test_what_the_demo_posts_is_a_pipeline_whose_rows_fit(tmp_path: Path) -> None:
    written = dialogues.write(tmp_path, rlhf.SYSTEM)._asdict()
    files = {name: f"files/file-{letter * 12}" for name, letter in zip(written, "abcde", strict=True)}
    kinds = {}
    for name, path in written.items():
        with path.open("rb") as lines:
            kinds[files[name]] = check_rows(lines).kind
    posted = parse_pipeline(rlhf.pipeline(Path("/models/smollm2.gguf"), files, steps=2, iterations=1, seed=17))
    assert set(rlhf.EVALUATIONS) <= set(posted.steps)
    for spec in posted.steps.values():
        for wanted in references(spec):
            assert wanted.kind != "data" or kinds[wanted.reference] in wanted.rows


def test_the_demo_holds_out_prompts_that_nothing_is_learnt_from(tmp_path: Path) -> None:
    written = dialogues.write(tmp_path, rlhf.SYSTEM)

    def openings(path: Path) -> set[str]:
        turns = [row.get("prompt", row.get("messages")) for row in map(json.loads, path.read_text().splitlines())]
        return {next(turn["content"] for turn in said if turn["role"] == "user").lower() for said in turns}

    held_out = openings(written.held_out_prompts) | openings(written.held_out_comparisons)
    learnt_from = openings(written.dialogues) | openings(written.comparisons) | openings(written.prompts)
    assert len(openings(written.held_out_prompts)) >= 64
    assert not held_out & learnt_from


def test_there_are_examples() -> None:
    assert {"tiny.json", "rehearse.yaml", "pipeline.yaml"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("block", [text for _, text in _blocks()], ids=[name for name, _ in _blocks()])
def test_every_spec_in_the_docs_is_one(block: str) -> None:
    value = parse(block, "block")
    if isinstance(value, dict) and ("stage" in value or "steps" in value):
        _specs(value)


def test_the_page_of_the_spec_is_current() -> None:
    assert (ROOT / "docs/specs.md").read_text() == page(), "python -m scripts.describe_spec > docs/specs.md"


def test_the_page_of_the_stages_is_current() -> None:
    assert (ROOT / "docs/stages.md").read_text() == stages(), "python -m scripts.describe_stages > docs/stages.md"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_every_link_to_a_file_leads_somewhere(path: Path) -> None:
    for target in _LINK.findall(path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
