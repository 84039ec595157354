# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""One picture of a run, for the README: an image and the frames of a clip, each above its features as colours.

    python docs/features_picture.py demo_output/features/pictures demo_output/features.png

Composed of what `examples/visualize_features.py` draws.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


WIDTH, GAP, LINE = 880, 8, 24
KINDS = ("input", "principal_components")
BACKGROUND, INK = (255, 255, 255), (60, 66, 74)
CAPTIONS = ("an image, and the first three principal components of its features", "a clip, and the same of its frames")


def load(folder: Path, sample: str) -> list[Image.Image]:
    """The input and the components of a sample, on the background."""
    pictures = []
    for kind in KINDS:
        (path,) = folder.glob(f"*_{sample}.{kind}.png")
        picture = Image.open(path).convert("RGBA")
        pictures.append(Image.alpha_composite(Image.new("RGBA", picture.size, (*BACKGROUND, 255)), picture))
    return [picture.convert("RGB") for picture in pictures]


def scaled(picture: Image.Image, width: int, patches: bool) -> Image.Image:
    resample = Image.Resampling.NEAREST if patches else Image.Resampling.LANCZOS
    return picture.resize((width, round(picture.height * width / picture.width)), resample)


def compose(folder: Path) -> Image.Image:
    """The image and its features side by side, the clip's two strips below."""
    half = (WIDTH - GAP) // 2
    image, clip = (
        [scaled(picture, width, patches) for picture, patches in zip(load(folder, name), (False, True), strict=True)]
        for name, width in (("image1", half), ("video1", WIDTH))
    )
    heights = [LINE, image[0].height, GAP + LINE, clip[0].height, GAP, clip[1].height]
    canvas = Image.new("RGB", (WIDTH, sum(heights)), BACKGROUND)
    tops = [sum(heights[:place]) for place in range(len(heights))]
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
    draw.text((2, tops[0]), CAPTIONS[0], INK, font)
    draw.text((2, tops[2] + GAP), CAPTIONS[1], INK, font)
    for picture, place in ((image[0], (0, tops[1])), (image[1], (half + GAP, tops[1]))):
        canvas.paste(picture, place)
    canvas.paste(clip[0], (0, tops[3]))
    canvas.paste(clip[1], (0, tops[5]))
    return canvas.quantize(255, method=Image.Quantize.MEDIANCUT, kmeans=2)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder that visualize_features.py wrote")
    parser.add_argument("output", type=Path, help="PNG file to write")
    options = parser.parse_args(arguments)
    compose(options.pictures).save(options.output, "PNG", optimize=True)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
