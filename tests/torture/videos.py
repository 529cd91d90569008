"""Damaged videos by the thousand: each is served, listed or short, and nothing crashes or hangs. `make torture`.

python tests/torture/videos.py 10000 0        # how many, and the seed

Ends with 1 where a file became something else, or a look at one took longer than CLOCK_BOUND and PROCESSOR_BOUND say.
"""

import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from helpers.corpus import LIMIT, torture, violations

if __name__ == "__main__":
    count, seed, start = int(sys.argv[1]), int(sys.argv[2]), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        outcome = torture(Path(folder), count, seed)
    listed, served = outcome.listed, outcome.served
    # Reasons without the names of files, and with N for numbers.
    plain = {path: re.sub(r"\d+", "N", re.sub(r"\S*/corpus/\S*", "FILE", listed[path])) for path in listed}
    examples = {reason: path for path, reason in plain.items()}
    seconds = time.monotonic() - start
    looks = sorted(outcome.looks.items(), key=lambda item: item[1], reverse=True)[:5]
    slowest = [f"{Path(path).name} {clock:.1f} ({processor:.1f})" for path, (clock, processor) in looks]
    print(f"slowest looks, s on the clock (of a processor), at a limit of {LIMIT:g} s: {', '.join(slowest)}")
    for reason, number in Counter(plain.values()).most_common():
        print(f"{number:6d}  {reason} [{examples[reason]}]")
    wrong = list(violations(outcome))
    shown = f"served {len(served)}, listed {len(listed)}, short {len(outcome.short)}"
    print("\n".join([*wrong, f"{count} files in {seconds:.0f} s: {shown}; {len(wrong)} did not end as they should"]))
    sys.exit(bool(wrong))
