"""A corpus of damaged and odd videos: each kind with what is expected of it."""

import contextlib
import os
import random
import socket
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from helpers.mutants import mutate
from helpers.videos import count_up, write
from PIL import Image

GOOD, SHORT, BAD, ABSENT = "good", "short", "bad", "absent"  # absent: not looked at, since it does not claim to be one
KINDS: dict[str, tuple[str, Callable[[Path], object]]] = {}  # name of the file: what is expected, how it is made


def kind(name: str, expected: str) -> Callable:
    def add(function: Callable[[Path], object]) -> Callable:
        KINDS[name] = (expected, function)
        return function

    return add


def video(num: int = 20, **options) -> bytes:
    """An mp4 in memory."""
    with contextlib.ExitStack() as stack:
        import tempfile

        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "a.mp4"
        return write(path, count_up(num), **options).read_bytes()


def animation(path: Path, num: int = 20, **options) -> Path:
    images = [Image.fromarray(frame) for frame in count_up(num)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=50, **options)
    return path


def pictures(path: Path, num: int = 20, suffix: str = "png", start: int = 0, step: int = 1) -> Path:
    path.mkdir()
    for number, frame in enumerate(count_up(num)):
        Image.fromarray(frame).save(path / f"{start + step * number}.{suffix}")
    return path


FASTSTART = {"options": {"movflags": "faststart"}}

for _name, _expected, _content in [
    ("empty.mp4", BAD, lambda: b""),
    ("one_byte.mp4", BAD, lambda: b"\0"),
    ("zeros.mp4", BAD, lambda: bytes(5000)),
    ("noise.avi", BAD, lambda: random.Random(0).randbytes(5000)),
    ("text.mov", BAD, lambda: b"this is no video\n" * 50),
    ("download_failed.mp4", BAD, lambda: b"<!DOCTYPE html><html><body>403 Forbidden</body></html>"),
    ("lfs_pointer.mp4", BAD, lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    ("gzip.mp4", BAD, lambda: b"\x1f\x8b\x08" + random.Random(1).randbytes(500)),
    ("no_index.mp4", BAD, lambda: video()[:-800]),
    ("half.mp4", BAD, lambda: video(200)[: len(video(200)) // 2]),
    ("header_only.mp4", BAD, lambda: video()[:32]),
    ("header_only.gif", BAD, lambda: b"GIF89a\x10\0\x10\0\0\0\0"),
    ("huge_box.mp4", BAD, lambda: b"\0\0\0\x18ftypisom\0\0\2\0isomiso2\xff\xff\xff\xffmoov" + bytes(100)),
    ("playlist.mp4", BAD, lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nnothing.ts\n"),
    ("list.mkv", BAD, lambda: b"ffconcat version 1.0\nfile /etc/passwd\n"),
    ("trailing_garbage.mp4", GOOD, lambda: video() + random.Random(2).randbytes(3000)),
    ("._apple_double.mp4", ABSENT, lambda: b"\0\5\x16\7" + bytes(200)),
    ("notes.txt", ABSENT, lambda: b"not a video"),
    ("plain.mp4", GOOD, video),
    ("one_frame.mp4", SHORT, lambda: video(1)),
    ("fifteen_frames.mp4", SHORT, lambda: video(15)),
    ("sixteen_frames.mp4", GOOD, lambda: video(16)),
    ("mp4_named.avi", GOOD, video),
    ("mp4_named.gif", GOOD, video),
    ("with space, 'quote' and \n.mp4", GOOD, video),
    ("file:http:x.mp4", GOOD, video),
    ("UPPER.MP4", GOOD, video),
]:
    kind(_name, _expected)(lambda path, content=_content: path.write_bytes(content()))


@kind("cut.ts", GOOD)
def _(path):
    data = write(path, count_up(40), options={"g": "8"}).read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10])


@kind("bad_middle.mp4", BAD)  # its other clips are served
def _(path):
    data = bytearray(video(40, options={"g": "8"}))
    data[len(data) // 2 : len(data) // 2 + 60] = bytes(60)
    path.write_bytes(data)


@kind("sound_only.mp4", BAD)
def _(path):
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@kind("uneven_rate.mkv", GOOD)
def _(path):
    write(path, count_up(20), [n * n // 3 + n for n in range(20)])


@kind("latin_title.mp4", GOOD)
def _(path):
    with av.open(os.fspath(path), "w") as container:
        container.metadata["title"] = "cafe"
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width = count_up(1).shape[1:3]
        for image in count_up(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"cafe", "café".encode("latin-1")))


@kind("two_sizes.h264", ABSENT)
def _(path):
    write(path, count_up(10), format="h264")


@kind("two_sizes.ts", GOOD)
def _(path):
    small = write(path, count_up(10)).read_bytes()
    path.write_bytes(small + write(path, count_up(10, 64, 96)).read_bytes())


@kind("one_pixel.avi", GOOD)
def _(path):
    write(path, np.zeros((16, 1, 1, 3), np.uint8), codec="ffv1", pix_fmt="bgr0")


@kind("deep_colours.mkv", GOOD)
def _(path):
    write(path, count_up(16), codec="ffv1", pix_fmt="gray16le")


@kind("enormous.png.avi", BAD)
def _(path):
    Image.new("1", (14000, 14000)).save(path, format="png")


@kind("enormous.gif", BAD)
def _(path):
    data = animation(path, 2).read_bytes()
    path.write_bytes(data[:6] + struct.pack("<2H", 20000, 20000) + data[10:])  # small frames on a huge screen


@kind("gif_named.mp4", GOOD)
def _(path):
    animation(path, format="gif")


@kind("half.gif", BAD)
def _(path):
    data = animation(path, 40).read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])


@kind("still.gif", SHORT)
def _(path):
    animation(path, 1)


@kind("animated.webp", GOOD)
def _(path):
    animation(path)


@kind("half.webp", BAD)
def _(path):
    data = animation(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])


@kind("jpeg_named.mp4", SHORT)
def _(path):
    Image.fromarray(count_up(1)[0]).save(path, format="jpeg")


@kind("holes_in_numbers", GOOD)
def _(path):
    pictures(path, start=7, step=3)


@kind("deep_pictures", GOOD)
def _(path):
    path.mkdir()
    for number in range(16):
        Image.fromarray(np.full((8, 8), number * 4000, np.uint16)).save(path / f"{number}.png")


@kind("few_pictures", SHORT)
def _(path):
    pictures(path, 3)


@kind("broken_first_picture", BAD)
def _(path):
    (pictures(path, suffix="jpg") / "0.jpg").write_bytes(b"\xff\xd8\xff")


@kind("broken_last_picture", BAD)
def _(path):
    (pictures(path, 16, suffix="jpg") / "15.jpg").write_bytes(b"")


@kind("picture_sizes_differ", GOOD)
def _(path):
    Image.new("CMYK", (99, 7)).save(pictures(path, suffix="jpg") / "5.jpg")


@kind("folder_named.mp4", ABSENT)
def _(path):
    path.mkdir()


@kind("zip.mp4", BAD)
def _(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.mp4", video())


@kind("pipe.mp4", BAD)
def _(path):
    os.mkfifo(path)


@kind("socket.mp4", BAD)
def _(path):
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket has few characters
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


@kind("loop.mp4", BAD)
def _(path):
    path.symlink_to(path.name)


@kind("points_nowhere.mp4", BAD)
def _(path):
    path.symlink_to("/nowhere/at/all.mp4")


@kind("folder_loop", ABSENT)
def _(path):
    path.symlink_to(path.parent, target_is_directory=True)


@kind("link.mp4", GOOD)
def _(path):
    (path.parent.parent / "elsewhere.mp4").write_bytes(video())
    path.symlink_to("../elsewhere.mp4")


@kind("forbidden.mp4", BAD if os.geteuid() else GOOD)
def _(path):
    path.write_bytes(video())
    path.chmod(0)


@kind(os.fsdecode(b"\xff\xfe not utf-8.mp4"), GOOD)
def _(path):
    path.write_bytes(video())


@kind("hangs.mp4", BAD)
def _(path):
    path.write_bytes(video())


@kind("spins.mp4", BAD)
def _(path):
    path.write_bytes(video())


@kind("crashes.mp4", BAD)
def _(path):
    path.write_bytes(video())


@kind("takes_all_memory.mp4", BAD)
def _(path):
    path.write_bytes(video())


def make_corpus(folder: Path, count: int, seed: int) -> dict[str, str]:
    """`count` files: every kind, and mutants of good ones for the rest; what is expected of each kind by its name."""
    folder.mkdir(parents=True)
    for name, (_, make) in KINDS.items():
        make(folder / name)
    for name, data in mutants(count - len(KINDS), seed, folder):
        (folder / name).write_bytes(data)
    return {name: expected for name, (expected, _) in KINDS.items()}


def mutants(count: int, seed: int, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Good files with random changes."""
    whole = folder.parent / "whole"
    whole.mkdir()
    sources = [
        write(whole / "a.mp4", count_up(20), options={"movflags": "faststart"}),
        write(whole / "a.avi", count_up(20), codec="mpeg4"),
        write(whole / "a.mkv", count_up(20), options={"bf": "2"}),
        write(whole / "a.webm", count_up(20), codec="libvpx-vp9", options={"cpu-used": "8"}),
        write(whole / "a.mpg", count_up(20), codec="mpeg1video"),
        write(whole / "a.ts", count_up(20)),
        animation(whole / "a.gif"),
        animation(whole / "a.webp"),
    ]
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        source = rng.choice(sources)
        yield f"mutant_{number}{source.suffix}", mutate(source.read_bytes(), rng)
