"""What the docs show is true: every spec in them is one, and every page that is made is current."""

import re
from pathlib import Path
from typing import Any

import pytest

from client.specfiles import parse, read
from examples import demo, dialogues, rlhf
from scripts.describe_spec import page
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


def test_what_the_demos_post_are_specs_whose_rows_fit(tmp_path: Path) -> None:
    written = dialogues.write(tmp_path)._asdict()
    references_to = {name: f"files/file-{name:a<12.12}".replace("_", "a") for name in written}
    kinds = {}
    for name, path in written.items():
        with path.open("rb") as lines:
            kinds[references_to[name]] = check_rows(lines).kind
    model = Path("/models/smollm2.gguf")
    posted = parse_pipeline(rlhf.pipeline(model, references_to, steps=2, iterations=1))
    ids = [references_to[name].removeprefix("files/") for name in ("train", "held_out")]
    for spec in [*posted.steps.values(), parse_spec(demo.spec(model, *ids, 2))]:
        for wanted in references(spec):
            assert wanted.kind != "data" or kinds[wanted.reference] in wanted.rows
    assert not set(written["prompts"].read_text().splitlines()) & set(written["test"].read_text().splitlines())


def test_there_are_examples() -> None:
    assert {"tiny.json", "rehearse.yaml", "pipeline.yaml"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("block", [text for _, text in _blocks()], ids=[name for name, _ in _blocks()])
def test_every_spec_in_the_docs_is_one(block: str) -> None:
    value = parse(block, "block")
    if isinstance(value, dict) and ("stage" in value or "steps" in value):
        _specs(value)


def test_the_page_of_the_spec_is_current() -> None:
    assert (ROOT / "docs/specs.md").read_text() == page(), "python -m scripts.describe_spec > docs/specs.md"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_every_link_to_a_file_leads_somewhere(path: Path) -> None:
    for target in _LINK.findall(path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
