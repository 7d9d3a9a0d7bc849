"""The test cluster, by hand: `python -m tests.cluster --help`."""

import argparse
import sys

from tests.cluster import cluster
from tests.cluster.build import build
from tests.cluster.layout import ADMIN
from tests.cluster.machine import ClusterError, prepare


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="A real Kubernetes on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="install and compile what it needs (the first time some 15 minutes)")
    up = commands.add_parser("up", help="start it, for as long as the machine runs; tests then use it, and leave it up")
    up.add_argument("nodes", type=int, nargs="?", default=2)
    down = commands.add_parser("down", help="stop it, and leave nothing behind")
    down.add_argument("--force", action="store_true", help="even while tests use it")
    for command, does in (("freeze", "stop a node's kubelet, as if its machine were gone"), ("thaw", "let it go on")):
        commands.add_parser(command, help=does).add_argument("node", type=int)
    commands.add_parser("queue", help="start Kueue on it, and make the queue `team-a` in the namespace `default`")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except ClusterError as error:
        print(f"✗ {error}", file=sys.stderr)
        sys.exit(1)


def run(arguments: argparse.Namespace) -> None:
    if arguments.command == "build":
        prepare(print)
        build(print)
        return
    if arguments.command == "up":
        cluster.up(arguments.nodes, keep=True)
        print(f"export KUBECONFIG={ADMIN}")
        return
    if arguments.command == "down":
        cluster.down(force=arguments.force)
        return
    found = cluster.kept()
    if found is None:
        raise ClusterError("No cluster is up: `python -m tests.cluster up 2`.")
    if arguments.command == "queue":
        found.start_kueue()
        found.local_queue("default")
    elif arguments.command == "freeze":
        found.freeze(arguments.node)
    else:
        found.thaw(arguments.node)


if __name__ == "__main__":
    main()
