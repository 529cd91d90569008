"""Speed and memory of data loading, and the share of time that an accelerator would wait for it.

    python benchmarks/data.py --input=FOLDER_OF_VIDEOS --sections=decode,latents,index,memory

decode: clips per second from random places of the same files, ours (cropped, antialiased, in a process with limits)
beside decord, OpenCV and PyAV by hand (opened, searched, decoded, resized), all on one core; then the whole pipeline.
latents: the share of its time that a step would wait, at the pace of an accelerator, with a cache of random latents.
index: seconds to index 10,000 files, and to load the index. memory: of a process that serves a million clips.
"""

import functools
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
from absl import app, flags

from vdt_jax.data import make_source
from vdt_jax.data.decoders import Decoders
from vdt_jax.data.discover import Found, find_videos
from vdt_jax.data.index import index_videos
from vdt_jax.data.pipeline import batches
from vdt_jax.data.windows import ClipTable, Window
from vdt_jax.latents.cache import write_metadata, write_shard
from vdt_jax.video import VideoInfo, write_video

_INPUT = flags.DEFINE_string("input", None, "A folder of videos, for decode.")
_SECTIONS = flags.DEFINE_list("sections", ["decode", "latents", "index", "memory"], "What to measure.")
_CLIPS = flags.DEFINE_integer("clips", 60, "Clips of each file in decode.")
_FILES = flags.DEFINE_integer("files", 10_000, "Files of index.")
_SERVED = flags.DEFINE_integer("served", 1_000_000, "Clips of memory.")
_SIZE = flags.DEFINE_integer("size", 64, "Height and width of frames in decode.")

_FRAMES = 16
_RATES = {"VDT-L/2": (37, 32), "VDT-S/2": (740, 256)}  # assumed samples per second of one H100, batch
_SECONDS = 20.0  # of each measurement


def by_pyav(path: str, numbers: Sequence[int], size: int) -> np.ndarray:
    with av.open(path) as container:
        stream = container.streams.video[0]
        start = round(numbers[0] / float(stream.average_rate) / float(stream.time_base))
        container.seek(start, stream=stream)
        frames = []
        for frame in container.decode(stream):
            if frame.pts >= start:
                frames.append(frame.to_ndarray(format="rgb24", width=size, height=size))
            if len(frames) == len(numbers):
                break
        return np.stack(frames)


def by_opencv(path: str, numbers: Sequence[int], size: int) -> np.ndarray:
    import cv2

    capture = cv2.VideoCapture(path)
    capture.set(cv2.CAP_PROP_POS_FRAMES, numbers[0])
    frames = [cv2.resize(capture.read()[1], (size, size), interpolation=cv2.INTER_AREA) for _ in numbers]
    return np.stack(frames)[..., ::-1]


def by_decord(path: str, numbers: Sequence[int], size: int) -> np.ndarray:
    import decord

    return decord.VideoReader(path, width=size, height=size, num_threads=1).get_batch(list(numbers)).asnumpy()


def per_second(function: Callable[[int], object], count: int) -> float:
    function(0)
    start = time.perf_counter()
    for number in range(count):
        function(number)
    return count / (time.perf_counter() - start)


def rate_of(read: Callable[[Sequence[int], int], object], starts: Sequence[int], size: int) -> str:
    try:
        rate = per_second(lambda n: read(range(starts[n], starts[n] + _FRAMES), size), len(starts))
        return f"{rate:.1f}"
    except ImportError:
        return "not installed"


def decode() -> None:
    (root, found), size = find_videos(_INPUT.value), _SIZE.value
    print(
        f"| clips per second, {_FRAMES} frames of {size}x{size} | ours | PyAV | OpenCV | decord |\n"
        "|---|---|---|---|---|"
    )
    known, cores = index_videos(root, found, Decoders()), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    decoders = Decoders()  # whose processes inherit it
    for video, info in zip(found, known, strict=True):
        if not isinstance(info, VideoInfo):
            continue
        path = str((root / video.name).absolute())
        starts = np.random.default_rng(0).integers(info.num_frames - _FRAMES, size=_CLIPS.value).tolist()

        def ours(path: str, numbers: Sequence[int], size: int, info: VideoInfo = info) -> np.ndarray:
            return decoders.clip(path, numbers, info, (size, size, 3))

        readers = (ours, by_pyav, by_opencv, by_decord)
        rates = [rate_of(functools.partial(reader, path), starts, size) for reader in readers]
        name = f"{video.name}, {info.width}x{info.height}, {info.num_frames} frames"
        print(f"| {name} | {' | '.join(rates)} |", flush=True)
    os.sched_setaffinity(0, cores)
    source = make_source(
        {"name": "video_folder", "path": _INPUT.value, "held_out": 0.0}, (_FRAMES, size, size, 3), "train"
    )
    for workers in (1, 2):
        stream = batches(source, batch_size=8, seed=0, num_threads=workers)
        rate = 8 * per_second(lambda _: next(stream), _CLIPS.value // 4)  # noqa: B023
        print(f"all of them in shuffled order, {workers} decoding process(es): {rate:.1f} clips per second", flush=True)


def latents() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, rng = Path(folder) / "cache", np.random.default_rng(0)
        metadata = {"autoencoder": "random", "scaling_factor": 0.18215, "latent_size": [32, 32, 4], "num_shards": 8}
        write_metadata(path, metadata)
        for shard in range(8):
            videos = [
                (Found(f"{shard}/{n}"), VideoInfo(64, 25.0, 256, 256), rng.standard_normal((64, 32, 32, 8), np.float32))
                for n in range(8)
            ]
            write_shard(path, shard, videos)
        source = make_source({"name": "latents", "path": str(path), "held_out": 0.0}, (_FRAMES, 32, 32, 4), "train")
        for threads in (1, 2):
            stream = batches(source, batch_size=32, seed=0, num_threads=threads)
            rate = 32 * per_second(lambda _: next(stream), 30)  # noqa: B023
            print(f"latents 16x32x32x4 with {threads} thread(s): {rate:.0f} clips per second", flush=True)
            for model, (pace, batch_size) in _RATES.items():
                share = waiting(source, pace, batch_size, threads)
                print(f"  {model}, {pace} samples per second: waits {100 * share:.2f} %", flush=True)


def waiting(source: object, pace: float, batch_size: int, threads: int) -> float:
    """The share of its time that a training step waits for data, if it could process `pace` samples per second."""
    stream = batches(source, batch_size=batch_size, seed=0, num_threads=threads)  # type: ignore[arg-type]
    next(stream)
    start, waited = time.perf_counter(), 0.0
    while time.perf_counter() - start < _SECONDS:
        time.sleep(batch_size / pace)
        before = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - before
    return waited / (time.perf_counter() - start)


def index() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        root = Path(folder) / "videos"
        write_video(root / "0.mp4", np.random.default_rng(0).integers(0, 256, (32, 64, 64, 3), np.uint8))
        content = (root / "0.mp4").read_bytes()
        for number in range(1, _FILES.value):
            (root / f"{number}.mp4").write_bytes(content)
        for what in ("looked at", "known"):
            start = time.perf_counter()
            found = find_videos(root)[1]
            index_videos(root, found, Decoders())
            seconds = time.perf_counter() - start
            print(f"index of {len(found)} files of {len(content) >> 10} KiB, {what}: {seconds:.1f} s", flush=True)


class Simulated:
    """A million clips in 10,000 videos, without decoding."""

    num_classes = 1

    def __init__(self) -> None:
        info = VideoInfo(415, 25.0, 64, 64, range(415), 0.04)
        self._window = Window(_FRAMES, hop=4)
        self._infos = [info] * 10_000
        self._clips = ClipTable([self._window.count(info) for info in self._infos])

    def __len__(self) -> int:
        return len(self._clips)

    def clip(self, number: int, rng: np.random.Generator | None = None) -> dict:
        video, which = self._clips[number]
        frames = np.array(self._window.numbers(self._infos[video], which)).astype(np.uint8)
        return {"video": np.broadcast_to(frames[:, None, None, None], (_FRAMES, 8, 8, 3)), "label": 0}


def memory() -> None:
    source = Simulated()
    stream = batches(source, batch_size=1000, seed=0)
    for number in range(_SERVED.value // 1000):
        next(stream)
        if number % max(1, _SERVED.value // 10_000) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident = pages * resource.getpagesize() >> 20
            print(f"{number * 1000:9d} of {len(source)} clips served: {resident} MiB resident", flush=True)


def main(_: list[str]) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    for section in _SECTIONS.value:
        {"decode": decode, "latents": latents, "index": index, "memory": memory}[section]()


if __name__ == "__main__":
    app.run(main)
