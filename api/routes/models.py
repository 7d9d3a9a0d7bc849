"""Models: list, read, lineage, download, delete."""

import tarfile
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import FileResponse, Response, StreamingResponse

from api.auth import Editor, Viewer
from api.control import Control, ControlPlane
from api.domain.access import Caller
from api.errors import Refusal, documented
from api.leftovers import Removal
from api.routes.again import Again
from api.routes.parameters import TEXT, After, Limit, refusing
from api.routes.stored import of_store, pulled
from api.store import audit, models
from api.store.pages import Slice
from api.store.tables import ModelRow
from api.stores import Store
from api.views import LineageView, ModelFile, ModelView, Page
from worker.contract.manifest import MANIFEST, Damaged, Manifest

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=Again)
_BLOCK = tarfile.BLOCKSIZE
ModelId = Annotated[
    str, Path(max_length=80, pattern=TEXT, description="an id, `NAME` (the newest version) or `NAME@version`")
]
Word = Annotated[str | None, Query(max_length=63, pattern=TEXT)]


@router.get("", responses=documented(422))
async def listed(
    control: Control,
    caller: Viewer,
    limit: Limit = 50,
    after: After = None,
    name: Word = None,
    kind: Word = None,
    job: Word = None,
) -> Page[ModelView]:
    """A page of models, the newest first."""
    with refusing():
        async with control.database.reading() as session:
            rows, following = await models.listed(session, caller.project, name, kind, job, Slice(limit, after))
    return Page[ModelView](data=[_view(control, row) for row in rows], next=following)


@router.get("/{model}", responses=documented(404, 422))
async def read(model: ModelId, control: Control, caller: Viewer) -> ModelView:
    """One model."""
    return _view(control, await _get(control, caller, model))


@router.get("/{model}/lineage", responses=documented(404, 422))
async def lineage(model: ModelId, control: Control, caller: Viewer) -> LineageView:
    """What the model was made from: job, attempt, checkpoint, data, and the models that it came from; of each of these
    the same, back to every file's hash, under `ancestors`."""
    row = await _get(control, caller, model)
    return LineageView(**_view(control, row).model_dump(), lineage=row.lineage)


@router.get("/{model}/files", responses=documented(404, 409, 422))
async def listed_files(model: ModelId, control: Control, caller: Viewer) -> Page[ModelFile]:
    """The model's files with their hashes."""
    manifest = await _manifest(control, await _get(control, caller, model))
    return Page[ModelFile](
        data=[ModelFile(path=name, **entry.model_dump()) for name, entry in sorted(manifest.files.items())]
    )


@router.get(
    "/{model}/files/{path:path}",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}}, **documented(404, 409, 422)},
)
async def read_file(
    model: ModelId, path: Annotated[str, Path(max_length=1024, pattern=TEXT)], control: Control, caller: Viewer
) -> Response:
    """One file of the model, or its `manifest.json`."""
    row = await _get(control, caller, model)
    manifest = await _manifest(control, row)
    # Only what the manifest names: no path can lead anywhere else.
    if path not in manifest.files and path != MANIFEST:
        raise Refusal(404, f"the model has no file {path[:200]!r}")
    found = await of_store(
        control.store, f"{row.path}/{path}", media_type="application/octet-stream", filename=path.rpartition("/")[2]
    )
    if found is None:
        raise Refusal(409, f"{path[:200]} is not in the store any more")
    return found


@router.get(
    "/{model}/download",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-tar": {}}}, **documented(404, 409, 422)},
)
async def download(model: ModelId, control: Control, caller: Viewer) -> StreamingResponse:
    """The whole model as a tar archive."""
    row = await _get(control, caller, model)
    manifest = await _manifest(control, row)
    name = f"{row.name}-{row.version}" + ("" if row.kind == "model" else f"-{row.kind}")
    headers = {"Content-Disposition": f'attachment; filename="{name}.tar"'}
    return StreamingResponse(
        _tar(control.store, row.path, name, [MANIFEST, *sorted(manifest.files)]),
        headers=headers,
        media_type="application/x-tar",
    )


@router.delete("/{model}", status_code=204, responses=documented(404, 409, 422))
async def delete(model: ModelId, control: Control, caller: Editor) -> None:
    """Deletes a model that no unfinished job needs."""
    row = await _get(control, caller, model)
    removal = Removal(control.store, "models", row.id, row.path)
    await removal.mark()
    with refusing():
        async with control.database.transaction() as session:
            # By its id: meanwhile its name may stand for a newer version.
            row = await models.delete(session, row.id, caller.project)
            audit.note(session, caller, "model.delete", row.id, name=row.name, version=row.version)
    await removal.carry_out()


async def _get(control: ControlPlane, caller: Caller, model: str) -> ModelRow:
    with refusing():
        async with control.database.reading() as session:
            return await models.get(session, model, caller.project)


async def _manifest(control: ControlPlane, row: ModelRow) -> Manifest:
    try:
        return await control.store.run(control.store.manifest, row.path)
    except Damaged as error:
        raise Refusal(409, f"the model is damaged in the store: {error}") from None


def _view(control: ControlPlane, row: ModelRow) -> ModelView:
    view = ModelView.model_validate(row)
    return view.model_copy(update={"location": control.store.place(row.path)})


async def _tar(store: Store, folder: str, name: str, paths: list[str]) -> AsyncIterator[bytes]:
    """A tar archive of the files, as a stream: each header, then the file, filled up to whole blocks."""
    for path in paths:
        stat = await store.run(store.stat, f"{folder}/{path}")
        if stat is None:
            raise OSError(f"{path} is not in the store any more")
        entry = tarfile.TarInfo(f"{name}/{path}")
        entry.size, entry.mtime, entry.mode = stat.bytes, int(stat.at.timestamp()), 0o644
        yield entry.tobuf(tarfile.PAX_FORMAT)
        left = entry.size
        async for chunk in pulled(store, store.chunks(f"{folder}/{path}", 0, entry.size)):
            left -= len(chunk)
            yield chunk
        if left:
            raise OSError(f"{path} became shorter while it was read")
        yield bytes(-entry.size % _BLOCK)
    yield bytes(2 * _BLOCK)
