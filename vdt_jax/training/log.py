"""The log of a training run: metrics.jsonl, TensorBoard, Weights & Biases or Trackio, and lines on the terminal."""

import importlib
import importlib.util
import json
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar
from tqdm import tqdm

from vdt_jax.errors import UserError
from vdt_jax.files import atomic_write, writing

logger = logging.getLogger(__name__)

TRACKERS = ("wandb", "trackio")
# Raised by reading JSON that is truncated, or that another program wrote.
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


class Tracker(Protocol):
    """What shows the metrics and previews of a run."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the metrics of a step."""
        ...

    def pictures(self, step: int, paths: Mapping[str, Path]) -> None:
        """Logs looping GIFs under their names."""
        ...

    def close(self, failed: bool) -> None:
        """Writes what is left. `failed`: the run ends with an exception."""
        ...


class RunLog:
    """Writes metrics and previews of a run to metrics.jsonl and its trackers, and shows progress on the terminal.

    Only the first process of a run has one.

    Args:
      workdir: a local folder. TensorBoard's events are written there, too.
      first_step: step that the run resumes at; metrics.jsonl and TensorBoard lose what was logged after it.
      total_steps: of the whole run.
      utilisation: the share of the devices' peak at a number of steps per second, None where the peak is not known.
      tracker: one of TRACKERS, or None for TensorBoard alone.
      config: settings that the tracker shows.

    Raises:
      UserError: a file cannot be written, or the tracker cannot start.
    """

    CONTINUED = ("metrics.jsonl", "run_id", "tracked_steps.json")  # files that a resumed run needs

    def __init__(
        self,
        workdir: str | Path,
        first_step: int,
        total_steps: int,
        utilisation: Callable[[float], float | None] = lambda _: None,
        tracker: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        workdir = Path(workdir)
        self._path = workdir / "metrics.jsonl"
        if self._path.is_file():
            lines = self._path.read_text(errors="replace").splitlines()
            atomic_write(self._path, "".join(f"{line}\n" for line in lines if 0 < _step(line) <= first_step))
        with writing(self._path):
            self._path.touch()
            self._trackers: list[Tracker] = [TensorBoard(workdir, first_step)]
        if tracker is not None:
            self._trackers.append(HostedTracker(tracker, workdir, config or {}))
        self._bar = tqdm(total=total_steps, initial=first_step, unit="step") if sys.stderr.isatty() else None
        self._total, self._last, self._time, self._utilisation = total_steps, first_step, None, utilisation

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, error: Any, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        with writing(self._path):
            for tracker in self._trackers:
                tracker.close(failed=error is not None)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Logs the metrics of a step, with steps per second and `mfu`; the terminal shows those without a slash.

        The rate is measured since the last call; the first call, which compilation precedes, has none.
        """
        now, left = time.monotonic(), ""
        if self._time is not None:
            rate = (step - self._last) / max(now - self._time, 1e-9)
            values = values | {"steps_per_second": round(rate, 4)}
            if (share := self._utilisation(rate)) is not None:
                values["mfu"] = round(share, 4)
            left = f"  {(self._total - step) / max(rate, 1e-9) / 60:.0f} min left"
        with writing(self._path):
            with self._path.open("a") as file:  # anew each time: the file may have been moved or deleted
                file.write(json.dumps({"step": step, **values}) + "\n")
            for tracker in self._trackers:
                tracker.metrics(step, values)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if "/" not in name)
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
            self._bar.update(step - self._last)
        else:
            print(f"step {step}/{self._total}  {shown}{left}", flush=True)
        self._last, self._time = step, now

    def pictures(self, step: int, folder: Path) -> None:
        """Logs the GIFs of a folder as `samples/NAME`."""
        paths = {f"samples/{path.stem}": path for path in sorted(folder.glob("*.gif"))}
        with writing(self._path):
            for tracker in self._trackers:
                tracker.pictures(step, paths)


class TensorBoard:
    """Event files in the working directory, for `tensorboard --logdir`; steps after `first_step` are dropped."""

    def __init__(self, workdir: Path, first_step: int):
        self._events = EventsWriter(str(workdir / "events"))
        self._add(first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def _add(self, step: int, **content: Any) -> None:
        # SummaryWriter has a thread, which a full disk ends: the next event then waits for ever.
        self._events.write_event(Event(step=step, wall_time=time.time(), **content))
        self._events.flush()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, summary=Summary(value=[scalar(name, value).value[0] for name, value in values.items()]))

    def pictures(self, step: int, paths: Mapping[str, Path]) -> None:
        for name, path in paths.items():
            with Image.open(path) as picture:
                width, height = picture.size
            image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes())
            self._add(step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

    def close(self, failed: bool) -> None:
        self._events.close()


class HostedTracker:
    """A run of Weights & Biases or Trackio, whose Python interfaces agree.

    The run's id is kept in WORKDIR/run_id, so that a resumed training continues it. Both can only append, and a
    resumed training repeats steps: WORKDIR/tracked_steps.json has the last steps that each tracker logged, and only
    later ones are logged.

    Args:
      name: one of TRACKERS.

    Raises:
      UserError: the package is not installed, nobody is logged in, or the run cannot be opened.
    """

    def __init__(self, name: str, workdir: Path, config: Mapping[str, Any]):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracker={name} needs the package {name}: pip install {name}")
        id_file = workdir / "run_id"
        if not id_file.is_file():
            stem = re.sub(r"[^\w.-]", "_", workdir.absolute().name)[:80]
            atomic_write(id_file, f"{stem}-{secrets.token_hex(4)}\n")
        project = os.environ.get(f"{name.upper()}_PROJECT", "vdt_jax")
        settings = {"project": project, "name": id_file.read_text().strip(), "resume": "allow", "config": dict(config)}
        self._name, self._steps_file = name, workdir / "tracked_steps.json"
        self._steps = _last_steps(self._steps_file)
        try:
            self._module: Any = importlib.import_module(name)
            if name == "wandb":
                _check_login(self._module)
                settings |= {"id": settings["name"], "dir": str(workdir)}
            self._run: Any = self._module.init(**settings)
        except UserError:
            raise
        except Exception as error:  # of the network, the login or the disk, of many kinds
            raise UserError(f"tracker={name} cannot start: {error}") from None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._log("metrics", step, lambda: dict(values))

    def pictures(self, step: int, paths: Mapping[str, Path]) -> None:
        self._log("pictures", step, lambda: {name: self._module.Video(str(path)) for name, path in paths.items()})

    def _log(self, kind: str, step: int, values: Callable[[], dict[str, Any]]) -> None:
        """Logs the metrics or the previews of a step, unless those of this step or a later one were logged before."""
        key = f"{self._name}/{kind}"
        if step > self._steps.get(key, 0) and self._call(lambda run: run.log(values(), step=step)):
            self._steps[key] = step
            atomic_write(self._steps_file, json.dumps(self._steps))

    def close(self, failed: bool) -> None:
        self._call(lambda run: run.finish(**({"exit_code": int(failed)} if self._name == "wandb" else {})))

    def _call(self, function: Callable[[Any], object]) -> bool:
        """Calls the run of the tracker; False where that fails: the training continues without the tracker."""
        if self._run is None:
            return False
        try:
            function(self._run)
            return True
        except Exception as error:  # of the network, the login or the disk, of many kinds
            logger.warning("tracker=%s failed, and gets nothing more of this training: %s", self._name, error)
            self._run = None
            return False


def _check_login(wandb: Any) -> None:
    """UserError where wandb would ask for an API key."""
    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise UserError(
            "tracker=wandb is not logged in: run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline"
        )


def _step(line: str) -> int:
    """The step of a line of metrics; 0 for a truncated or corrupt line."""
    try:
        return int(json.loads(line)["step"])
    except _DAMAGED:
        return 0


def _last_steps(path: Path) -> dict[str, int]:
    """The last step that was logged, by `TRACKER/metrics` and `TRACKER/pictures`; empty for a corrupt file or none."""
    try:
        return {key: int(step) for key, step in json.loads(path.read_bytes()).items()}
    except (FileNotFoundError, *_DAMAGED):
        return {}
