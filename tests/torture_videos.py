"""Damaged videos by the thousand: each is served or listed, and nothing crashes or hangs. `make torture`.

python tests/torture_videos.py 10000 0        # how many, and the seed
"""

import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from test_damage import LIMIT, torture

if __name__ == "__main__":
    count, seed, start = int(sys.argv[1]), int(sys.argv[2]), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        _, source, listed, served, looks = torture(Path(folder), count, seed)
    # Reasons without the names of files, and with N for numbers.
    plain = {path: re.sub(r"\d+", "N", re.sub(r"\S*/corpus/\S*", "FILE", listed[path])) for path in listed}
    examples = {reason: path for path, reason in plain.items()}
    seconds = time.monotonic() - start
    print(f"{count} files in {seconds:.0f} s: {len(served)} served, {len(listed)} listed, {len(source)} clips")
    slowest = [f"{Path(path).name} {taken:.1f} s" for path, taken in looks.most_common(5)]
    print(f"the slowest looks, of {LIMIT:g} s that a decoder has: {', '.join(slowest)}")
    for reason, number in Counter(plain.values()).most_common():
        print(f"{number:6d}  {reason} [{examples[reason]}]")
