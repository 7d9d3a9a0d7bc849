"""The README's picture, from a real run: `python -m scripts.draw_watch URL JOB STEP FILE.svg` draws it at that step."""

import io
import re
import sys
import time
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from client import Client
from client.commands.followed import Followed
from client.commands.picture import Picture


def main() -> None:
    """Follows the job to the step, and saves what `rlhf watch` shows then."""
    url, name, step, file = sys.argv[1:]
    client = Client(url)
    followed = Followed(client, client.jobs.find(name))
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, highlight=False)
    picture = Picture(console)
    while not followed.over:
        followed.look()
        drawn = picture.of(followed)
        if followed.job.progress is not None and followed.job.progress.step >= int(step):
            break
        time.sleep(0.5)
    console.print(f"[bold green]$ [/]rlhf watch {followed.job.name}")
    console.print(drawn)
    # The fonts that rich would load from elsewhere are left out: the viewer's own will do.
    plain = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    Path(file).write_text(console.export_svg(title="rlhf", code_format=plain), encoding="utf-8")


if __name__ == "__main__":
    main()
