"""The decoding process with decoders that hang, crash or take all memory, as the name of the file says."""

import os
import threading
import time

from vdt_jax.video import worker

_answer = worker.answer


def compute(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def answer(request, content):
    name = os.path.basename(request["path"] or "")  # noqa: PTH119
    if name == "hangs.mp4":
        while True:
            time.sleep(1)
    if name == "spins.mp4":
        while True:
            pass
    if name == "slow_clip.mp4" and request["what"] == "clip":
        time.sleep(3600)
    if name == "computes_in_a_thread.mp4" and request["what"] == "clip":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        thread = threading.Thread(target=compute, args=[0.5])
        thread.start()
        thread.join()
    if name == "crashes.mp4":
        os.abort()
    if name == "takes_all_memory.mp4":
        return b"x" * (1 << 40)
    if name == "finds_a_mistake.mp4":
        return len(None)
    return _answer(request, content)


worker.answer = answer
worker.main()
