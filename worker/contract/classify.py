"""Classification: what a text is, how much of something it has, or what each of its words is."""

from typing import Annotated, Literal

from pydantic import Field

from worker.contract.problem import Problem
from worker.contract.stages import TrainStage
from worker.contract.traits import Traits

Task = Literal["single_label", "multi_label", "regression", "tokens"]
"""One class a text, any number of them, a number, or one class a word."""

MOST_CLASSES = 1000
"""More would make a confusion matrix that nobody stores."""

ClassName = Annotated[str, Field(min_length=1, max_length=200)]
Weight = Annotated[float, Field(gt=0, le=1e6)]


class ClassifyStage(TrainStage):
    """Fine-tuning of an encoder (BERT) or a decoder (GPT) to tell classes apart.

    What is learnt follows from the rows. `{text, label}`: one class a text; with `regression` a number. `{text,
    labels}`: any number of classes. `{tokens, tags}`: one class a word, read at its first piece; words are joined by
    blanks.
    Evaluated are the loss, accuracy, F1 and a confusion matrix, which also lie in the model's `evaluation.json`.
    """

    traits = Traits(
        rows=("label", "labels", "tokens"), lr=3e-5, head="score", begins_with="classifiable", gives="classifier",
        worded=False,
    )  # fmt: skip
    begun = {"model": "google-bert/bert-base-uncased", "data": "./rows.jsonl"}
    type: Literal["classify"]
    packing: Literal[False] = False
    max_length: Annotated[int, Field(ge=2, le=2**20)] = Field(default=512, description="tokens a row")
    regression: bool = Field(default=False, description="`label` is a number to come near to, not a class")
    labels: Annotated[list[ClassName], Field(min_length=2, max_length=MOST_CLASSES)] | None = Field(
        default=None,
        description="the classes in their order; absent: the model's, if it tells classes apart already, else those of "
        "the training rows, sorted",
    )
    class_weights: Literal["balanced"] | Annotated[dict[ClassName, Weight], Field(min_length=1)] | None = Field(
        default=None,
        description="how much a row of a class weighs in the loss: `{class: weight}`, 1 where none is given, or "
        "`balanced`: the rarer, the more, so that all classes weigh the same. Of rows with several `labels`: how much "
        "having a class weighs against not having it",
    )

    def mixes(self) -> list[Problem]:
        found = []
        if self.regression and self.labels is not None:
            found.append(Problem("stage.labels", "a regression has no classes; leave it out"))
        if self.regression and self.class_weights is not None:
            found.append(Problem("stage.class_weights", "a regression has no classes; leave it out"))
        if self.labels is None:
            return found
        twice = sorted({name for name in self.labels if self.labels.count(name) > 1})
        if twice:
            found.append(Problem("stage.labels", f"`{twice[0]}` is there twice"))
        if isinstance(self.class_weights, dict):
            unknown = [name for name in self.class_weights if name not in self.labels]
            if unknown:
                found.append(Problem("stage.class_weights", f"`{unknown[0]}` is none of stage.labels"))
        return found
