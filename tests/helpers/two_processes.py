"""One of two processes that make up a run on one machine: `python tests/helpers/two_processes.py PORT NUMBER WORKDIR`.

Trains a tiny model on eight devices, four each, with FSDP; saves half-way, restores and continues.
Prints the metrics of every step and a hash of the last parameters as one line of JSON.
"""

import hashlib
import json
import sys

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_default_matmul_precision", "highest")
port, number, workdir = sys.argv[1], int(sys.argv[2]), sys.argv[3]

from vdt_jax.distributed.processes import any_process, from_first_process, start_processes  # noqa: E402

start_processes(f"localhost:{port}", 2, number)

import numpy as np  # noqa: E402
from helpers import small_run as shared  # noqa: E402

from vdt_jax.checkpoints.manager import Checkpoints  # noqa: E402
from vdt_jax.data import make_source  # noqa: E402
from vdt_jax.data.pipeline import batches  # noqa: E402
from vdt_jax.distributed.mesh import replicated, shard_batch, state_shardings, with_shardings  # noqa: E402
from vdt_jax.distributed.watch import Watch  # noqa: E402

assert jax.process_count() == 2 and len(jax.local_devices()) == 4
assert any_process(number == 1) and not any_process(False)
assert from_first_process(lambda: 7 + number) == 7

mesh, step = shared.compiled("fsdp")
shapes = shared.first_state()
shardings = state_shardings(shapes, mesh)
state = jax.tree.map(lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i]), shapes, shardings)
key = jax.jit(lambda: jax.random.key(7), out_shardings=replicated(mesh))()  # shared.KEY, on all devices
source = make_source({"name": "moving_digits"}, shared.MODEL.video_shape, "train")
share = batches(source, batch_size=8, seed=0, host=number, num_hosts=2)
metrics = []
with Watch() as watch, Checkpoints(workdir) as checkpoints:
    for done in range(1, 21):
        with watch.reading():
            batch = next(share)
        assert len(batch["video"]) == 4
        state, found = step(state, shard_batch(batch, mesh), key)
        metrics.append([float(found["loss"]), float(found["grad_norm"])])
        if done == 10:
            checkpoints.save_and_wait(state)
            state = checkpoints.restore(with_shardings(shapes, shardings))
    checkpoints.save_and_wait(state)

whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(state.params)
digest = hashlib.sha256(b"".join(np.asarray(x.addressable_data(0)).tobytes() for x in jax.tree.leaves(whole)))
print(json.dumps({"metrics": metrics, "sha256": digest.hexdigest()}), flush=True)
