"""Run the commands of tutorial pages and write their output after them: ``python tools/transcripts.py docs/tutorial_*.md``.

A ``console`` block holds one command after ``$ ``; the text after it is its output as on a terminal, shortened by :func:`shortened`.
A ``python`` block is run as a script. The blocks of a page share one folder, empty at first; an error stops the page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.M | re.S)
SHOWN = 40
"""Largest number of output lines to show whole."""
HEAD, TAIL = 10, 3
"""First and last lines to show of a longer output."""


def commands(page: Path) -> list[str]:
    """Shell commands of the page's blocks, in order."""
    return [_command(*found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def _command(kind: str, text: str) -> str:
    return text.partition("\n")[0].removeprefix("$ ") if kind == "console" else f"python - <<'SCRIPT'\n{text}SCRIPT"


def run(command: str, folder: Path) -> str:
    """Results and progress of a command in ``folder``, in the order printed; RuntimeError with the end of it if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {
        "PATH": path,
        "NO_COLOR": "1",
        "COLUMNS": "100",
        "PYTHONUNBUFFERED": "1",
        "ZOO_CACHE": str(folder / "cache"),
        "ZOO_RUNS": str(folder / "runs"),
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{command}\nexit {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout


def shortened(output: str) -> str:
    """The output with ``...`` for the epochs between the first and the last, and for the middle of what is still too long."""
    lines = without_epochs([line.rstrip() for line in output.splitlines()])
    if len(lines) > SHOWN:
        lines = [*lines[:HEAD], "...", *lines[-TAIL:]]
    return "".join(f"{line}\n" for line in lines)


def without_epochs(lines: list[str]) -> list[str]:
    """The lines with ``...`` for those between the first and the last finished epoch."""
    epochs = [at for at, line in enumerate(lines) if line.startswith("train    epoch")]
    done = [lines[at] for at in epochs if " · train " in lines[at]]  # the others are progress within an epoch
    return [*lines[: epochs[0]], done[0], "...", done[-1], *lines[epochs[-1] + 1 :]] if len(done) > 2 else lines


def rewritten(page: Path) -> str:
    """The page's text with the current output of each command."""
    with tempfile.TemporaryDirectory() as place:

        def replaced(found: re.Match[str]) -> str:
            kind, text = found.groups()
            output = run(_command(kind, text), Path(place))
            if kind == "python":
                return found[0]
            return f"```console\n{text.partition(chr(10))[0]}\n{shortened(output.replace(place + '/', ''))}```"

        return BLOCK.sub(replaced, page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(rewritten(Path(name)), encoding="utf-8")
