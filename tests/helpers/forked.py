"""Runs a script many times, each in a child of one process that has imported it: `python forked.py NAME < RUNS`.

RUNS is a JSON list of lists of arguments. Prints a JSON list of [exit code, stdout, stderr].
"""

import importlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def start(main: Any, arguments: list[str], out: int, err: int) -> int:
    """Starts the main function of a script in a child, with these file descriptors; its process id."""
    from vdt_jax import cli

    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.argv = arguments
        cli.run(main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_all(name: str, runs: list[list[str]]) -> list[tuple[int, str, str]]:
    """One after the other; exit code, stdout and stderr of each."""
    main, results = importlib.import_module(name).main, []
    for arguments in runs:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            _, status = os.waitpid(start(main, [f"{name}.py", *arguments], out.fileno(), err.fileno()), 0)
            out.seek(0), err.seek(0)
            results.append((os.waitstatus_to_exitcode(status), out.read(), err.read()))
    return results


if __name__ == "__main__":
    print(json.dumps(run_all(sys.argv[1], json.load(sys.stdin))))
