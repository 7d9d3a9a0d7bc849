"""References, resolved to what they are when a job is POSTed: a place, and a hash."""

import asyncio
import errno
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from api import hub
from api.fit import unfit
from api.foreseen import foreseen
from api.operator.site import Site
from api.patterns import unfit_patterns
from api.rows import comparing, unfit_rows
from api.runnable import not_runnable
from api.services import unfit_services
from api.settings import Settings
from api.store import files, models
from api.store.database import Database
from api.stores import Store
from api.weights import Config, Known, NotAModel, Weights
from worker.contract.check import InvalidSpec
from worker.contract.manifest import Damaged, file_sha256
from worker.contract.order import Input
from worker.contract.pipeline import PipelineSpec
from worker.contract.problem import Problem
from worker.contract.references import Wanted, references
from worker.contract.rows import BadRow, RowKind, check_rows, first_without_answer
from worker.contract.spec import JobSpec
from worker.contract.steps import PREFIX as STEPS
from worker.contract.steps import need_of
from worker.storage.failures import NotThere, StorageFailure

T = TypeVar("T")


class Unresolved(ValueError):
    """A reference that leads to nothing, with what would be right."""


class _Found(NamedTuple):
    """What the references of a spec lead to, each by its path, and what is wrong."""

    inputs: dict[str, Input]
    models: dict[str, Config]
    rows: dict[str, RowKind]
    problems: list[Problem]


class Resolver:
    """Resolves the references of specs."""

    def __init__(self, settings: Settings, database: Database, store: Store, site: Site | None = None) -> None:
        self._settings, self._database, self._store, self._site = settings, database, store, site
        self._weights = Weights()

    async def resolve(self, spec: JobSpec, project: str, *, data: bool = True) -> dict[str, Input]:
        """The inputs by their path in the spec; without `data` only models. Files and models are the project's.

        Raises InvalidSpec with all problems.
        """
        found = await self._look_up(spec, project, data=data)
        if found.problems:
            raise InvalidSpec(found.problems)
        return found.inputs

    async def resolve_steps(self, pipeline: PipelineSpec, project: str) -> dict[str, dict[str, Input]]:
        """The inputs of all steps from outside, by step and path. Raises InvalidSpec with all problems.

        What steps will hand over to each other is known in part, and checked as far as it is.
        """
        found: dict[str, _Found] = {}
        made: dict[str, dict[str, Config]] = {}
        problems: list[Problem] = []
        for name in pipeline.in_order():
            spec = pipeline.steps[name]
            found[name] = here = await self._look_up(spec, project, made=made)
            made[name] = foreseen(spec, here.inputs, here.models)
            problems += [Problem(f"steps.{name}.{p.path}", p.message) for p in here.problems]
        if problems:
            raise InvalidSpec(problems)
        return {name: found[name].inputs for name in pipeline.steps}

    async def _look_up(
        self,
        spec: JobSpec,
        project: str,
        *,
        data: bool = True,
        made: Mapping[str, Mapping[str, Config]] | None = None,
    ) -> _Found:
        """All that the references lead to. `made` is what earlier steps of a pipeline will hand over."""
        found = _Found({}, {}, {}, unfit_services(spec, self._settings) + unfit_patterns(spec))
        actor: str | None = None
        for wanted in references(spec):
            path, called = wanted.path, wanted.reference
            try:
                if wanted.kind == "data":
                    if data:
                        found.inputs[path], found.rows[path] = await self._data(wanted, spec, project)
                    continue
                if called.startswith(STEPS):  # the model itself is known once that step has succeeded
                    need = need_of(wanted)
                    called, config = f"{need.step}.{need.output}", (made or {}).get(need.step, {}).get(need.output)
                    if config is None:
                        continue
                else:
                    found.inputs[path], known = await self._model(
                        called, project, tokenizer_only=wanted.kind == "tokenizer"
                    )
                    actor = known.sha256 if path == "stage.actor.model" else actor
                    config = known.config
                found.models[path] = config
                found.problems.extend(unfit(spec, wanted, called, config, actor))
            except Unresolved as error:
                found.problems.append(Problem(path, str(error)))
        found.problems.extend(unfit_rows(spec, found.inputs, found.rows, found.models))
        found.problems.extend(not_runnable(spec, found.inputs, self._settings, self._site))
        return found

    async def _data(self, wanted: Wanted, spec: JobSpec, project: str) -> tuple[Input, RowKind]:
        reference = wanted.reference
        if reference.startswith("files/"):
            given, kind = await self._file(reference, project)
        elif reference.startswith(("/", "./")):
            given, kind = await _in_thread(self._data_path, reference)
        else:
            raise Unresolved("data is an uploaded file (`files/ID`), or a path that starts with `/` or `./`")
        if kind not in wanted.rows:
            needed = "` or `".join(wanted.rows)
            raise Unresolved(f"its rows have `{kind}`, but {spec.stage.type} needs rows with `{needed}`")
        term = comparing(spec) if kind == "prompt" else None
        if term is not None and (line := await _in_thread(self._without_answer, given, store=self._store)) is not None:
            said = f"with which the reward's term `{term}` compares; give one in every row, or leave the term out"
            raise Unresolved(f"line {line} has no `answer`, {said}")
        return given, kind

    async def _file(self, reference: str, project: str) -> tuple[Input, RowKind]:
        id = reference.removeprefix("files/")
        try:
            async with self._database.reading() as session:
                row = await files.get(session, id, project)
        except files.NoSuchFile:
            raise Unresolved(f"there is no file {id!r}; upload it with POST /v1/files") from None
        given = Input(reference=reference, kind="file", location=row.path, sha256=row.sha256, rows=row.rows)
        return given, cast(RowKind, row.kind)

    def _without_answer(self, given: Input) -> int | None:
        if given.kind == "file":
            return first_without_answer(self._store.lines(given.location))
        with Path(given.location).open("rb") as lines:
            return first_without_answer(lines)

    def _data_path(self, reference: str) -> tuple[Input, RowKind]:
        path = self._allowed(reference)
        if not path.is_file():
            raise Unresolved("is not a file; data is one file of JSON lines")
        if (size := path.stat().st_size) > self._settings.max_file:
            raise Unresolved(f"has {size} bytes, and data may have {self._settings.max_file}")
        try:
            with path.open("rb") as lines:
                summary = check_rows(lines)
        except BadRow as error:
            raise Unresolved(str(error)) from None
        given = Input(reference=reference, kind="path", location=str(path), sha256=file_sha256(path), rows=summary.rows)
        return given, summary.kind

    async def _model(self, reference: str, project: str, *, tokenizer_only: bool) -> tuple[Input, Known]:
        if reference.startswith("models/"):
            return await self._registered(reference, project, tokenizer_only=tokenizer_only)
        if reference.startswith(("/", "./")):
            return await _in_thread(self._model_path, reference, tokenizer_only)
        try:
            found = await hub.find(reference, self._settings.hub_timeout)
        except hub.NotFound as error:
            raise Unresolved(str(error)) from None
        return Input(reference=reference, kind="hub", location=reference, sha256=found.sha256), found

    async def _registered(self, reference: str, project: str, *, tokenizer_only: bool) -> tuple[Input, Known]:
        name = reference.removeprefix("models/")
        try:
            async with self._database.reading() as session:
                row = await models.get(session, name, project)
        except models.NoSuchModel:
            raise Unresolved(f"there is no model {name!r}; GET /v1/models lists them") from None
        try:
            look = partial(self._store.look, row.path, tokenizer_only=tokenizer_only)
            known = await _in_thread(look, store=self._store)
        except NotAModel as error:
            raise Unresolved(str(error)) from None
        except Damaged as error:
            raise Unresolved(f"{name!r} is damaged in the store: {error}") from None
        if known.sha256 != row.sha256:
            raise Unresolved(f"{name!r} is damaged in the store: its files do not have their hashes any more")
        return models.as_input(row), known

    def _model_path(self, reference: str, tokenizer_only: bool) -> tuple[Input, Known]:
        path = self._allowed(reference)
        known = self._look(path, tokenizer_only)
        return Input(reference=reference, kind="path", location=str(path), sha256=known.sha256), known

    def _look(self, path: Path, tokenizer_only: bool) -> Known:
        try:
            return self._weights.look(path, tokenizer_only=tokenizer_only)
        except NotAModel as error:
            raise Unresolved(str(error)) from None

    def _allowed(self, reference: str) -> Path:
        """The path, symbolic links followed; it and all in it must lie under an allowed folder."""
        folders = [_real(folder) for folder in self._settings.allowed_paths]
        named = ", ".join(map(str, folders)) or "none"
        path = _real(Path(reference))
        if not any(path.is_relative_to(folder) for folder in folders):
            raise Unresolved(f"does not lie under an allowed folder; allowed (ALLOWED_PATHS): {named}")
        if self._is_kept(path):
            raise Unresolved("lies where the control plane keeps what projects have; write files/ID or models/NAME")
        if not path.exists():
            raise Unresolved("there is nothing at this path")
        if path.is_dir():
            for entry in path.rglob("*"):
                if not entry.is_symlink():
                    continue
                target = _real(entry)
                if self._is_kept(target) or not any(target.is_relative_to(folder) for folder in folders):
                    raise Unresolved(f"{entry.name} in it is a link out of the allowed folders: {named}")
        return path

    def _is_kept(self, path: Path) -> bool:
        """Whether it may be another project's: by a path, the data folder and the store would be open to all keys."""
        settings = self._settings
        if settings.auth != "keys":
            return False
        kept = [settings.data] if settings.in_bucket else [settings.data, settings.store_path]
        return any(path.is_relative_to(_real(folder)) for folder in kept)


def _real(path: Path) -> Path:
    """The path with all links followed. Raises OSError for links in a circle, which pathlib tells otherwise."""
    try:
        return path.resolve()
    except RuntimeError:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None


async def _in_thread(call: Callable[..., T], *args: object, store: Store | None = None) -> T:
    """Runs what blocks; what the disk refuses is the reference's fault, in a sentence."""
    try:
        return await (store.run(call, *args) if store is not None else asyncio.to_thread(call, *args))
    except NotThere:
        raise Unresolved("is not in the store any more") from None
    except StorageFailure:
        raise  # nobody's reference is to blame
    except OSError as error:
        raise Unresolved(f"cannot be read: {error.strerror or error}") from None
