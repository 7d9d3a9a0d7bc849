"""What the docs show is true: every spec in them is one, and every page that is made is current."""

import re
from pathlib import Path

import pytest

from client.specfiles import parse, read
from scripts.describe_spec import page
from worker.contract.check import parse_spec
from worker.contract.rows import ROWS_OF, check_rows
from worker.contract.stages import PretrainStage, SftStage

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


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_every_example_is_a_spec_whose_data_are_there_and_fit(path: Path) -> None:
    spec = parse_spec(read(str(path)))
    if isinstance(spec.stage, PretrainStage | SftStage) and spec.stage.data.train.startswith("./"):
        with (ROOT / spec.stage.data.train).open("rb") as lines:
            assert check_rows(lines).kind in ROWS_OF[spec.stage.type]


def test_there_are_examples() -> None:
    assert {"tiny.json", "rehearse.yaml"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("block", [text for _, text in _blocks()], ids=[name for name, _ in _blocks()])
def test_every_spec_in_the_docs_is_one(block: str) -> None:
    value = parse(block, "block")
    if isinstance(value, dict) and "stage" in value:
        parse_spec(value)


def test_the_page_of_the_spec_is_current() -> None:
    assert (ROOT / "docs/specs.md").read_text() == page(), "python -m scripts.describe_spec > docs/specs.md"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_every_link_to_a_file_leads_somewhere(path: Path) -> None:
    for target in _LINK.findall(path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
