"""What an attempt is given when it starts: `spec.json` in its folder. It holds no secret."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.contract.spec import JobSpec

Port = Annotated[int, Field(ge=1, le=65535)]


class Input(BaseModel):
    """A reference, resolved when the job was POSTed: where it lies, and the hash it must still have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reference: str
    kind: Literal["file", "model", "path", "hub"]
    location: str = Field(
        description="a URL or path that the worker opens; for `hub` the repository's name. "
        "Of a `file` or `model` the control plane keeps the path in its store, which may be moved"
    )
    sha256: str = Field(
        description="of the file, of a model's manifest or of its folder (`tree_hash`); a hub's revision"
    )
    rows: int | None = None


class Meeting(BaseModel):
    """Where the nodes of an attempt meet: at node 0, whose index is 0 in JOB_COMPLETION_INDEX."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(min_length=1, description="node 0's name, as every node resolves it, or its address")
    port: Port = Field(default=29400, description="of node 0's launcher, for the other launchers")
    ranks_port: Port = Field(default=29500, description="of rank 0, for the other ranks")


class Order(BaseModel):
    """One attempt's work. All its nodes are given the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: str
    attempt: int = Field(ge=1)
    spec: JobSpec
    inputs: dict[str, Input] = Field(description="by the path in the spec, such as `stage.data.train`")
    store: str = Field(description="the store's URL, such as file:///data/store or s3://bucket/prefix")
    scratch: str | None = Field(
        default=None,
        description="where the store is a bucket: the folder of this machine that the attempt works in, made if it is "
        "not there; none: a temporary one. Inputs of the store are then named by URLs below the store's",
    )
    control_url_file: str = Field(description="a file with the worker listener's URL; read again after a failure")
    token_file: str
    termination_file: str = Field(description="where the launcher writes its Termination, last of all")
    termination_limit: Annotated[int, Field(ge=512)] | None = Field(
        default=None, description="bytes of the Termination at most; the file is then written in place, never replaced"
    )
    log_folder: str = Field(
        description="`rank-N.log` are written here; with `echo` not before the attempt is accepted, so that it may lie "
        "in the store"
    )
    echo: bool = Field(
        default=False, description="what the ranks print also goes to the launcher's own output, as `[rank N] …`"
    )
    meeting: Meeting | None = Field(default=None, description="needed where there are several nodes")

    @property
    def job_folder(self) -> str:
        """The job's folder in the store; its attempts' folders lie in it."""
        return f"jobs/{self.job}"

    @property
    def folder(self) -> str:
        """The attempt's own folder in the store: the only one it writes, but for the cache of converted models."""
        return f"{self.job_folder}/a{self.attempt}"
