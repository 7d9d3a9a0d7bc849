"""`rlhf manifest`: what a spec would be on Kubernetes, for people who review it and for kubectl."""

import re
from typing import Any

import typer
import yaml

from client.commands.options import AsJson, Server
from client.commands.submit import Settings, Source
from client.specfiles import change, read
from client.terminal import print_json

app = typer.Typer()
# What every reader of YAML takes for a text without quotes. Others than ours take `1e3` for a number and `y` for true.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9./_:-]+")


class _Dumper(yaml.SafeDumper):
    """Texts are quoted unless they are plain words, and nothing is written as a reference to what came before."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if _PLAIN.fullmatch(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


@app.command()
def manifest(server: Server, source: Source, *, settings: Settings = None, as_json: AsJson = False) -> None:
    """The Kubernetes objects that a spec would be made of, as YAML; nothing is made.

    `rlhf manifest SPEC | kubectl apply --dry-run=server -f -` has a cluster check them.
    """
    objects = server.jobs.manifest(change(read(source), settings or []))
    if as_json:
        print_json({"apiVersion": "v1", "kind": "List", "items": objects})
    else:
        print(as_yaml(objects), end="", flush=True)


def as_yaml(objects: list[dict[str, Any]]) -> str:
    """Objects as YAML documents, which mean the same to readers of YAML 1.1 and 1.2."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=120)
