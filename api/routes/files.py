"""Data files: upload, list, read, download, delete."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse

from api.auth import Editor, Viewer
from api.bodies import drain
from api.control import Control
from api.errors import Refusal, documented
from api.leftovers import Removal
from api.routes.again import Again
from api.routes.parameters import TEXT, After, IdempotencyKey, Limit, refusing
from api.routes.stored import of_store
from api.store import again, audit, files, idempotency, projects
from api.store.ids import new_id
from api.store.pages import Slice
from api.uploads import FORM_OVERHEAD, PURPOSE, Form, Receiver, receive, too_large
from api.views import FileView, Page

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=Again)
FileId = Annotated[str, Path(max_length=64, pattern=TEXT, examples=["file-k3v7qd2mzxna"])]
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"type": "string", "pattern": PURPOSE},
                        "file": {"type": "string", "format": "binary", "description": "JSON lines"},
                    },
                }
            }
        },
    }
}


@router.post(
    "",
    status_code=201,
    openapi_extra=_UPLOAD,
    responses={
        200: {"model": FileView, "description": "What the Idempotency-Key has made before"},
        **documented(400, 403, 413, 415, 422, 507),
    },
)
async def upload(
    request: Request,
    response: Response,
    control: Control,
    caller: Editor,
    idempotency_key: IdempotencyKey = None,
) -> FileView:
    """Takes JSON lines as multipart `purpose` and `file`. Each line is checked as it comes; the first that is no row
    ends the upload, and nothing is kept."""
    # A stream is there once.
    again.only_once()
    limit = control.settings.max_file
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit + FORM_OVERHEAD:
        await drain(request)
        raise too_large(limit)
    id = new_id("file")
    path = f"files/{id}.jsonl"
    store = control.store
    arriving = await store.run(store.upload, id)
    try:
        form = Form(request.headers.get("content-type", ""), Receiver(arriving, limit))
        done = await receive(request.stream(), form, store)
        with refusing():
            async with control.database.transaction() as session:
                if idempotency_key:
                    mark = idempotency.fingerprint("files", f"{done.purpose} {done.filename} {done.sha256}".encode())
                    owner = await idempotency.claim(session, caller.project, idempotency_key, mark, id)
                    if owner != id:
                        response.status_code = 200
                        return FileView.model_validate(await files.get(session, owner, caller.project))
                await projects.require_room(session, caller.project, done.bytes)
                row = await files.add(
                    session,
                    id=id,
                    project=caller.project,
                    filename=done.filename,
                    purpose=done.purpose,
                    kind=done.kind,
                    rows=done.rows,
                    bytes=done.bytes,
                    sha256=done.sha256,
                    path=path,
                )
                audit.note(session, caller, "file.create", id, filename=row.filename, bytes=row.bytes)
                await store.run(arriving.keep)
        await store.run(arriving.settle)
    except (Refusal, OSError):
        # A full disk, too, is said once all was sent: see `errors`.
        await drain(request)
        raise
    except ClientDisconnect:
        raise Refusal(400, "the upload ended too early") from None
    finally:
        await store.run(arriving.discard)
    response.headers["Location"] = f"/v1/files/{id}"
    return FileView.model_validate(row)


@router.get("", responses=documented(422))
async def listed(
    control: Control,
    caller: Viewer,
    limit: Limit = 50,
    after: After = None,
    purpose: Annotated[str | None, Query(max_length=32, pattern=TEXT)] = None,
) -> Page[FileView]:
    """A page of files, the newest first."""
    with refusing():
        async with control.database.reading() as session:
            rows, following = await files.listed(session, caller.project, purpose, Slice(limit, after))
    return Page[FileView](data=[FileView.model_validate(row) for row in rows], next=following)


@router.get("/{file}", responses=documented(404, 422))
async def read(file: FileId, control: Control, caller: Viewer) -> FileView:
    """One file's description."""
    with refusing():
        async with control.database.reading() as session:
            return FileView.model_validate(await files.get(session, file, caller.project))


@router.get(
    "/{file}/content",
    response_class=FileResponse,
    responses={200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}}, **documented(404, 422)},
)
async def content(file: FileId, control: Control, caller: Viewer) -> Response:
    """The rows, as they were uploaded."""
    with refusing():
        async with control.database.reading() as session:
            row = await files.get(session, file, caller.project)
    found = await of_store(control.store, row.path, media_type="application/jsonl", filename=row.filename)
    if found is None:
        raise Refusal(404, f"the bytes of {file} are not in the store any more")
    return found


@router.delete("/{file}", status_code=204, responses=documented(404, 409, 422))
async def delete(file: FileId, control: Control, caller: Editor) -> None:
    """Deletes a file that no unfinished job needs."""
    with refusing():
        async with control.database.reading() as session:
            row = await files.get(session, file, caller.project)
        removal = Removal(control.store, "files", file, row.path)
        await removal.mark()
        async with control.database.transaction() as session:
            row = await files.delete(session, file, caller.project)
            audit.note(session, caller, "file.delete", file, filename=row.filename)
            await idempotency.forget(session, file)
    await removal.carry_out()
