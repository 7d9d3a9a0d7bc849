"""What an attempt is given when it starts: `spec.json` in its folder. It holds no secret."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.contract.spec import JobSpec


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


class Order(BaseModel):
    """One attempt's work."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: str
    attempt: int = Field(ge=1)
    spec: JobSpec
    inputs: dict[str, Input] = Field(description="by the path in the spec, such as `stage.data.train`")
    store: str = Field(description="the store's URL, such as file:///data/store")
    control_url_file: str = Field(description="a file with the worker listener's URL; read again after a failure")
    token_file: str
    termination_file: str = Field(description="where the launcher writes its Termination, last of all")
    log_folder: str = Field(description="`rank-N.log` are written here")

    @property
    def job_folder(self) -> str:
        """The job's folder in the store; its attempts' folders lie in it."""
        return f"jobs/{self.job}"

    @property
    def folder(self) -> str:
        """The attempt's own folder in the store: the only one it writes, but for the cache of converted models."""
        return f"{self.job_folder}/a{self.attempt}"
