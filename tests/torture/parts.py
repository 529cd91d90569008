"""All of `make torture`, in parts: a part that is done is not repeated, and what the parts found is summed.

    python tests/torture/parts.py build/torture.jsonl 200       # the file of results, and how many kills

Ends with 1 where a part failed; the file has the end of its output, and the next call runs it again.
"""

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS.parent))
from benchmarks.json_lines import append_line, read_lines  # noqa: E402

SIZES = {"weights": 10_000, "folders": 1_000, "videos": 1_000, "damage": 500, "full": 100, "kills": 10}  # of a part
ALL = {"weights": 100_000, "folders": 20_000, "videos": 10_000, "damage": 2_000, "full": 100}


def command(kind: str, number: int) -> list[str]:
    """What runs a part; its number is the seed."""
    if kind in ("damage", "full"):
        return [str(TESTS / "helpers" / "checkpoint_damage.py"), kind, str(SIZES[kind]), str(number)]
    return [str(TESTS / "torture" / f"{kind}.py"), str(SIZES[kind]), str(number)]


def run(kind: str, number: int) -> dict:
    """Runs a part. The last line of its output is `N things in S s: name number, name number; remark`."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, *command(kind, number)], capture_output=True, text=True, check=False)
    result = {"kind": kind, "number": number, "code": done.returncode, "seconds": round(time.monotonic() - began)}
    if done.returncode:
        return result | {"output": (done.stdout + done.stderr)[-3000:]}
    shown = done.stdout.strip().splitlines()[-1].partition(": ")[2].partition(";")[0]
    return result | {"found": {name: int(n) for name, n in re.findall(r"(.+?) (\d+)(?:, |$)", shown)}}


def main(log: Path, kills: int) -> int:
    """Runs the parts that are not done yet; the exit code."""
    good = [result for result in read_lines(log) if not result["code"]]
    done, failed = {(result["kind"], result["number"]) for result in good}, []
    for kind, count in (ALL | {"kills": kills}).items():
        for number in range(-(-count // SIZES[kind])):
            if (kind, number) in done:
                continue
            result = run(kind, number)
            (failed if result["code"] else good).append(result)
            append_line(log, result)
        found, ours = Counter(), [result for result in good if result["kind"] == kind]
        for result in ours:
            found.update(result["found"])
        shown = ", ".join(f"{name} {number}" for name, number in sorted(found.items()))
        seconds = sum(result["seconds"] for result in ours)
        print(f"{kind}: {len(ours)} parts of {SIZES[kind]} in {seconds} s: {shown}", flush=True)
    print("\n".join(f"{result['kind']} {result['number']} FAILED: {result['output']}" for result in failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
