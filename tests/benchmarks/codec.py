# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""What scoring 64 frames of a video by its codec costs, against decoding it and doing nothing with its frames.

    python tests/benchmarks/codec.py [VIDEO ...] [--rounds 5] [--minutes 10] [--scores motion+residual,bits]

Without videos it makes two by formula: 20 seconds of 640 x 360, and as many minutes as asked for of 1280 x 720. Prints
seconds of decoding, and of every score the ratio to that, medians of rounds taken in turns; and the peak memory that
scoring adds to a process, of the longer clip and of its first tenth, which a clip's length must not change.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from tqdm import tqdm


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from llava_vit_hf import codec_scores  # noqa: E402
from llava_vit_hf.settings_llava_vit import CODEC_SCORES  # noqa: E402


SAMPLED, RATE, PATCH_SIZE = 64, 25, 16
# Prints how much resident memory scoring adds at its peak, in MiB.
PEAK = """
import sys
from tests.benchmarks.codec import sampled, scored
from tests.benchmarks.processor_speed import peak_memory
before, path = peak_memory(), sys.argv[1]
scored(path, sampled(path), sys.argv[2])
print((peak_memory() - before) / 1024)
"""


def write_clip(path: Path, width: int, height: int, seconds: int) -> Path:
    """An H.264 file of textured squares that move over a textured ground, with a camera's noise."""
    random = np.random.default_rng(0)
    ground = random.integers(0, 255, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    squares = [random.integers(0, 255, (16, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(4)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(seconds * RATE):
            picture = ground.copy()
            for index, square in enumerate(squares):
                top, left = (number * speed + 90 * index for speed in (1 + index, 4 - index))
                picture[np.ix_((top + np.arange(128)) % height, (left + np.arange(128)) % width)] = square
            noise = random.integers(-4, 5, (height, width, 1), np.int16)
            picture = (picture + noise).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


def repeated(path: Path, clip: Path, times: int) -> Path:
    """A file of a clip's packets so many times, as encoding a long one takes longer than measuring it."""
    with av.open(str(path), "w") as container:
        stream = shift = None
        for _ in range(times):
            with av.open(str(clip)) as source:
                stream = stream or container.add_stream_from_template(source.streams.video[0])
                packets = [packet for packet in source.demux(video=0) if packet.size]
                length, base = sum(packet.duration for packet in packets), packets[0].time_base
                shift = 0 if shift is None else shift + length
                for packet in packets:
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.time_base, packet.stream = base, stream
                    container.mux(packet)
    return path


def decoded(path: Path | str) -> int:
    """Decodes a video as PyAV does by default, and returns how many frames it has."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def sampled(path: Path | str) -> list[int]:
    return np.linspace(0, decoded(path) - 1, SAMPLED).round().astype(int).tolist()


def scored(path: Path | str, indices: list[int], codec_score: str) -> np.ndarray:
    return codec_scores(str(path), indices, PATCH_SIZE, codec_score=codec_score)


def ratios(path: Path, scores: list[str], rounds: int) -> tuple[float, dict[str, float]]:
    """Median seconds of decoding, and by score the median of its time over decoding's in the same round."""
    indices, seconds = sampled(path), []
    found = {score: [] for score in scores}
    for _ in tqdm(range(rounds), desc=path.name, unit="round", leave=False):
        started = time.perf_counter()
        decoded(path)
        seconds.append(time.perf_counter() - started)
        for score in scores:
            started = time.perf_counter()
            scored(path, indices, score)
            found[score].append((time.perf_counter() - started) / seconds[-1])
    return statistics.median(seconds), {score: statistics.median(taken) for score, taken in found.items()}


def added_memory(path: Path, score: str) -> float:
    """Peak MiB that scoring adds to a process of its own (Linux)."""
    command = [sys.executable, "-c", PEAK, str(path), score]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[-1])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=int, default=10, help="of the longer clip; 0 leaves it out")
    parser.add_argument("--scores", default=",".join(CODEC_SCORES))
    options = parser.parse_args(arguments)
    scores = options.scores.split(",")
    with tempfile.TemporaryDirectory() as folder:
        videos, memory = list(options.videos), []
        if not videos:
            videos.append(write_clip(Path(folder) / "640x360.mp4", 640, 360, 20))
            if options.minutes:
                clip = write_clip(Path(folder) / "clip.mp4", 1280, 720, 6)
                for name, times in (("tenth", options.minutes), (f"{options.minutes} minutes of 1280x720", None)):
                    videos.append(repeated(Path(folder) / f"{name}.mp4", clip, times or 10 * options.minutes))
                memory = [("a tenth of it", videos.pop(-2)), (videos[-1].stem, videos[-1])]
        print(f"| video | decoding, s | {' | '.join(scores)} |\n|---|---|{'---|' * len(scores)}")
        for path in videos:
            seconds, found = ratios(path, scores, options.rounds)
            cells = " | ".join(f"{found[score]:.2f}" for score in scores)
            print(f"| {path.stem} | {seconds:.2f} | {cells} |", flush=True)
        for name, path in memory if sys.platform == "linux" else ():
            print(f"peak memory of scoring {name}: {added_memory(path, scores[0]):.0f} MiB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
