"""docs/stages.md, from the contract: `python -m scripts.describe_stages > docs/stages.md`."""

from pydantic import BaseModel

from worker.contract.rows import EXAMPLES
from worker.contract.spec import STAGES
from worker.contract.steps import SAID
from worker.contract.template import begin
from worker.contract.traits import Kind, Traits

HEAD = """# The stages

What a job does is its stage. `rlhf init STAGE FILE` writes a spec to begin with, in which all that may be said is
there as a comment with its default; all fields are in [the job spec](specs.md), and a stage of your own is told of in
[working on it](development.md).

This page is made from the code (`python -m scripts.describe_stages`), and a test holds that it is current.
"""

_BEGINS: dict[Kind, str] = {
    "model": "a language model",
    "any_model": "a language model, or one that scores",
    "classifiable": "an encoder, a language model, or a classifier of the same classes",
}


def page() -> str:
    """The whole page, as Markdown."""
    rows = [f"| [{name}](#{name}) | {_sentence(stage)} |" for name, stage in STAGES.items()]
    parts = [HEAD, "| stage | |\n|---|---|\n" + "\n".join(rows) + "\n"]
    for name, stage in STAGES.items():
        parts += [f"## {name}\n", " ".join((stage.__doc__ or "").split()) + "\n"]
        if (traits := getattr(stage, "traits", None)) is not None:
            parts.append(_of(traits))
        parts.append(f"```yaml\n{begin(name)}```\n")
    return "\n".join(parts)


def _sentence(stage: type[BaseModel]) -> str:
    return " ".join((stage.__doc__ or "").split()).partition(". ")[0].removesuffix(".").replace("|", "\\|")


def _of(traits: Traits) -> str:
    rows = " or ".join(f"`{EXAMPLES[kind]}`" for kind in traits.rows)
    lines = [
        f"A row: {rows}",
        f"Begins with {_BEGINS[traits.begins_with]}; hands over {SAID[traits.gives]}, and with LoRA its adapter, too",
        f"Learning rate, where none is given: {traits.lr:g}; with LoRA {traits.lr_of_lora:g}",
    ]
    return "".join(f"- {line}\n" for line in lines)


if __name__ == "__main__":
    print(page(), end="")
