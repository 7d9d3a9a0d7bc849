"""What attempts hand over: each output is a model once its job has succeeded, where it lies and whole."""

from sqlalchemy import select

from api.domain.job import Phase, Reason
from api.store import models
from api.store.tables import ModelRow
from tests.operator.builders import NOW, wishes
from tests.operator.conftest import Plane
from tests.operator.written import end, saved
from worker.contract.order import Input, Order


async def test_outputs_become_models_with_their_lineage(plane: Plane) -> None:
    jobs = []
    for _ in range(2):
        job = await plane.post(name="talks", **wishes(seconds=600))
        await plane.runs(job)
        step = saved(plane, job, "checkpoints", "step-000000003")
        await plane.report(job, seq=2, checkpoints=[{"step": 3, "at": NOW, **step}])
        outputs = [{"kind": kind, **saved(plane, job, "outputs", kind)} for kind in ("model", "adapter")]
        end(plane, job, outputs)
        await plane.reaches(job, Phase.SUCCEEDED)
        jobs.append((job, step))
    async with plane.database.reading() as session:
        models = (await session.scalars(select(ModelRow).order_by(ModelRow.version, ModelRow.kind))).all()
    assert [(m.name, m.version, m.kind) for m in models] == [
        ("talks", 1, "adapter"), ("talks", 1, "model"), ("talks", 2, "adapter"), ("talks", 2, "model"),
    ]  # fmt: skip
    job, step = jobs[0]
    lineage = models[0].lineage
    assert (lineage["job"], lineage["attempt"], lineage["step"]) == (job, 1, 3)
    assert lineage["checkpoint"] == {"attempt": 1, "step": 3, "sha256": step["sha256"]}


async def test_the_version_of_a_deleted_model_is_not_given_again(plane: Plane) -> None:
    for version in (1, 2):
        job = await plane.post(name="talks", **wishes(seconds=600))
        await plane.runs(job)
        end(plane, job, [{"kind": "model", **saved(plane, job, "outputs", "model")}])
        await plane.reaches(job, Phase.SUCCEEDED)
        async with plane.database.transaction() as session:
            model = await models.delete(session, "talks", "default")
        assert (model.name, model.version) == ("talks", version)


async def test_what_lies_in_the_store_is_found_where_the_store_is_now(plane: Plane) -> None:
    given = {
        "stage.data.train": Input(reference="files/f", kind="file", location="files/f.jsonl", sha256="0" * 64, rows=1),
        "stage.model": Input(reference="/m", kind="path", location="/m", sha256="0" * 64),
    }
    stage = {"type": "sft", "model": "/m", "data": "files/f", "steps": 1}
    inputs = {path: one.model_dump() for path, one in given.items()}
    job = await plane.post(stage=stage, inputs=inputs, **wishes(seconds=600))
    await plane.runs(job)
    order = Order.model_validate_json((plane.data / "attempts" / f"{job}-a1" / "spec.json").read_bytes())
    assert order.inputs["stage.data.train"].location == str(plane.store.resolve() / "files" / "f.jsonl")
    assert order.inputs["stage.model"] == given["stage.model"]


async def test_outputs_that_are_damaged_or_lie_elsewhere_make_no_success(plane: Plane) -> None:
    for spoil in ("bit", "place"):
        job = await plane.post(**wishes(seconds=600), retry={"max_attempts": 1})
        await plane.runs(job)
        output = {"kind": "model", **saved(plane, job, "outputs", "model")}
        if spoil == "bit":
            (plane.store / output["path"] / "weights").write_text("mode1")
        else:
            output = {"kind": "model", **saved(plane, "job-other", "outputs", "model")}
        end(plane, job, [output])
        row = await plane.reaches(job, Phase.FAILED)
        assert row.reason == Reason.WORKER_ERROR
        assert "output" in row.message
    async with plane.database.reading() as session:
        assert (await session.scalars(select(ModelRow))).all() == []
