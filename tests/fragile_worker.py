"""The decoding process with decoders that hang, crash or take all memory, as the name of the file says."""

import os
import time

from vdt_jax.video import worker

_answer = worker.answer


def answer(request, content):
    name = os.path.basename(request["path"] or "")  # noqa: PTH119
    if name == "hangs.mp4":
        while True:
            time.sleep(1)
    if name == "spins.mp4":
        while True:
            pass
    if name == "crashes.mp4":
        os.abort()
    if name == "takes_all_memory.mp4":
        return b"x" * (1 << 40)
    return _answer(request, content)


worker.answer = answer
worker.main()
