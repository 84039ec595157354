# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""One picture for the page on preprocessing: a large photograph's features as it is, and within a budget of patches.

    python docs/budget_picture.py demo_output/packing budget.png

The photograph is made by formula. At 4000 x 3000 pixels the native features take some minutes on a CPU.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoModel, AutoProcessor


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.verification.cases import rings  # noqa: E402
from examples.extraction.feature_pictures import principal_components  # noqa: E402


WIDTH, GAP, LINE = 880, 8, 24
BACKGROUND, INK = (255, 255, 255), (60, 66, 74)
LAYER = -2


def features_of(model, inputs) -> np.ndarray:
    """Of the only image of a pack, `(1, h, w, C)`."""
    with torch.inference_mode():
        state = model(**inputs, vision_feature_layer=LAYER).hidden_states[0]
    return state.reshape(*inputs["grid_thw"][0].tolist(), -1).numpy()


def coloured(features: list[np.ndarray]) -> list[Image.Image]:
    """Each sample's patches in the colours of principal components that are common to all."""
    tokens = np.concatenate([sample.reshape(-1, sample.shape[-1]) for sample in features])
    colours = principal_components(tokens[None, None]).reshape(-1, 3)
    parts = np.split(colours, np.cumsum([sample[..., 0].size for sample in features])[:-1])
    return [Image.fromarray(part.reshape(*sample.shape[1:3], 3)) for part, sample in zip(parts, features, strict=True)]


def compose(model, processor, photograph: Image.Image, max_patches: int) -> Image.Image:
    """The photograph, its native features, and those within the budget, side by side."""
    packs = [processor(images=photograph), processor(images=photograph, max_patches=max_patches)]
    pictures = [photograph, *coloured([features_of(model, pack) for pack in packs])]
    grids = [pack["grid_thw"][0].tolist() for pack in packs]
    captions = [f"{photograph.width} x {photograph.height} pixels"] + [
        f"{name}: {columns} x {rows} = {rows * columns:,} patches"
        for name, (_, rows, columns) in zip(("native", f"max_patches={max_patches}"), grids, strict=True)
    ]
    width = (WIDTH - 2 * GAP) // 3
    height = round(photograph.height * width / photograph.width)
    canvas = Image.new("RGB", (WIDTH, LINE + height), BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = place * (width + GAP)
        draw.text((left + 2, 2), caption, INK, font)
        # Patches stay the squares that they are, where they are larger than a pixel here.
        scaling = Image.Resampling.NEAREST if picture.width < width / 2 else Image.Resampling.LANCZOS
        canvas.paste(picture.resize((width, height), scaling), (left, LINE))
    return canvas.quantize(255, method=Image.Quantize.MEDIANCUT, kmeans=2)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a packing folder or repo id, whose code is run")
    parser.add_argument("output", type=Path, help="PNG file to write")
    parser.add_argument("--size", type=int, nargs=2, default=(4000, 3000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--max_patches", type=int, default=1024)
    options = parser.parse_args(arguments)
    model = AutoModel.from_pretrained(options.model, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(options.model, trust_remote_code=True)
    width, height = options.size
    photograph = Image.fromarray(rings(height, width, 0.6))
    compose(model, processor, photograph, options.max_patches).save(options.output, "PNG", optimize=True)
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
