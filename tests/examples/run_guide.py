# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs the code blocks of a guide in order, in the current folder: `python run_guide.py BLOCKS.json`.

Bash reads the blocks, with its globs, quotes and here-documents, but hands over what follows `python`. Each script
gets a process of its own the first time; its later commands run here, where torch is imported once.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path


# A command's arguments after their number, each ended by a zero byte.
HAND_OVER = 'python() { printf "%s\\0" "$#" "$@" >> "$COMMANDS"; }\n'


def commands_of(code: str) -> list[list[str]]:
    """Runs a bash block without its `python` commands; the arguments of these."""
    with tempfile.NamedTemporaryFile() as stream:
        command = ["bash", "-euo", "pipefail", "-c", HAND_OVER + code]
        subprocess.run(
            command, env={**os.environ, "COMMANDS": stream.name}, stdin=subprocess.DEVNULL, check=True, text=True
        )
        words = stream.read().decode().split("\0")[:-1]
    commands = []
    while words:
        count = int(words[0])
        commands.append(words[1 : 1 + count])
        words = words[1 + count :]
    return commands


def run_here(script: str, arguments: list[str]) -> int:
    """Runs a script as `__main__` of this process. Its exit code."""
    before, sys.argv = (sys.argv, list(sys.path)), [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        return ended.code or 0
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.argv, sys.path[:] = before
    return 0


def run_block(language: str, code: str, seen: set[str]) -> None:
    """Runs one block.

    Raises:
        SystemExit: naming the command that failed.
    """
    if language == "python":
        subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, check=True)
        return
    for script, *arguments in commands_of(code):
        if script in seen:
            exit_code = run_here(script, arguments)
        else:
            seen.add(script)
            command = [sys.executable, script, *arguments]
            exit_code = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
        if exit_code != 0:
            sys.exit(f"exit code {exit_code}: python {script} {' '.join(arguments)}")


def main() -> None:
    # Nothing is imported from beside this file.
    del sys.path[0]
    seen: set[str] = set()
    for language, code in json.loads(Path(sys.argv[1]).read_text()):
        print(code, file=sys.stderr, flush=True)
        run_block(language, code, seen)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
