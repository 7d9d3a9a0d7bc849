"""`python -m api`: starts the control plane, or a part of it."""

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path
from types import FrameType

# Seconds that a thread waits for a busy one before it takes over. The threads that ask SQLite give Python's lock away
# at every statement: with the default of 5 ms, each of a report's statements would wait so long for a busy event loop.
_SWITCH = 0.0005


def main() -> int:
    """The exit status: 0 after SIGTERM or SIGINT, 2 for settings that are refused, 1 where it cannot start.

    What was asked to end before it serves, or in the midst of a command, ends with 143.
    """
    # A container's first process has no default for signals: it would go on until it is killed. Imports take a second.
    signal.signal(signal.SIGTERM, _end)

    import uvloop

    from api.data_folder import CannotStart
    from api.domain.access import Role
    from api.main import VERSION
    from api.once import create_key, migrated
    from api.serve import serve
    from api.settings import BadSettings, load

    parser = argparse.ArgumentParser(prog="python -m api", description="The control plane of rlhf-operator.")
    parser.add_argument("--version", action="version", version=f"rlhf-operator {VERSION}")
    parser.add_argument("--role", dest="part", choices=["all", "api", "operator"], default="all")
    parser.add_argument("--host", help="loopback only; default 127.0.0.1")
    parser.add_argument("--port", type=int, help="0: any free one; default 8000")
    parser.add_argument("--data", type=Path, help="the folder for all that is kept; default ./rlhf-data")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("migrate", help="bring the database to this release's tables, and end")
    key = commands.add_parser("create-key", help="make an API key, and print it")
    key.add_argument("--admin", action="store_true", help="the same as --role admin")
    key.add_argument("--role", choices=list(Role), default=Role.EDITOR)
    key.add_argument("--name", default="first", help="for whom, or for what; default: first")
    key.add_argument("--project", default="default", help="by its name, which must exist; default: default")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(_SWITCH)
    try:
        settings = load(host=given.host, port=given.port, data=given.data)
        # Its sockets and its journeys to threads and back cost half of what asyncio's own do.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            match given.command:
                case "migrate":
                    runner.run(migrated(settings))
                case "create-key":
                    role = Role.ADMIN if given.admin else Role(given.role)
                    print(runner.run(create_key(settings, given.project, given.name, role)))
                case _:
                    runner.run(serve(settings, given.part))
    except BadSettings as error:
        print(error, file=sys.stderr)
        return 2
    except CannotStart as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
