"""Evaluate the bundled demo model on all tasks, and compare the report with the committed one: `make eval-demo`.

    python benchmarks/eval_demo.py                # fails if a number is more than 1 % from the committed report
    python benchmarks/eval_demo.py --commit       # writes docs/eval_demo.json, and the table in docs/evaluation.md

Re-run the command to resume; --fresh starts again. The options are in demo.flags. PSNR, SSIM, LPIPS, FVD and motion are
compared; they need the extra `eval`.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from absl import flags
from reports import TOLERANCE, differences, markdown_table

from vdt_jax import cli
from vdt_jax.errors import UserError
from vdt_jax.evaluation.metrics.weights import find

ROOT = Path(__file__).resolve().parent.parent
FLAGS = Path(__file__).with_name("demo.flags")
REPORT, PAGE = ROOT / "docs" / "eval_demo.json", ROOT / "docs" / "evaluation.md"
_BEGIN, _END = "<!-- eval-demo: begin -->", "<!-- eval-demo: end -->"

_COMMIT = flags.DEFINE_bool("commit", False, "Replace the committed report and its table.")
_FRESH = flags.DEFINE_bool("fresh", False, "Delete the results of an earlier run first.")
_OUTPUT = flags.DEFINE_string("output", "runs/eval-demo", "Folder for the report and its page.")


def main(_) -> None:
    if None in (find("alexnet"), find("i3d")):
        raise UserError("the weights of LPIPS and FVD are missing: `make eval-demo` installs them")
    output = Path(_OUTPUT.value)
    if _FRESH.value:
        shutil.rmtree(output, ignore_errors=True)
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "evaluate.py"), f"--flagfile={FLAGS}", f"--output={output}"]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)
    print(f"evaluated in {time.monotonic() - started:.0f} s")
    report = json.loads((output / "report.json").read_text())
    if _COMMIT.value:
        REPORT.write_text(json.dumps(report, indent=2) + "\n")
        before, rest = PAGE.read_text().split(_BEGIN)
        PAGE.write_text(f"{before}{_BEGIN}\n{markdown_table(report)}\n{_END}{rest.split(_END)[1]}")
        print(f"written: {REPORT.relative_to(ROOT)}, and the table of {PAGE.relative_to(ROOT)}")
        return
    if not REPORT.is_file():
        raise UserError("no report is committed yet: add --commit")
    problems = differences(report, json.loads(REPORT.read_text()))
    print("\n".join(problems) or f"within {TOLERANCE:.0%} of {REPORT.relative_to(ROOT)}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    cli.run(main)
