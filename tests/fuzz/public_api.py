# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""The public API as functions of drawn arguments: what may be passed to it, and what must come of that.

An entry returns for a right result, which is checked against small references written here, raises one of our
documented errors, or is a finding.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import PIL.Image
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from conversion import conversion_utils
from llava_vit_hf import (
    LlavaViTConfig,
    LlavaViTImageProcessor,
    LlavaViTModel,
    LlavaViTPackingConfig,
    LlavaViTProcessor,
)
from llava_vit_hf.collation_llava_vit import kept_patches
from llava_vit_hf.decoding_llava_vit import sample_frame_indices
from llava_vit_hf.grid_llava_vit import (
    check_grid,
    cumulative_lengths,
    frame_positions,
    grid_positions,
    patchify,
    split_features,
    temporal_positions,
)
from tests.fuzz.outcomes import Tally
from tests.models import TINY, as_packing, dense_model


PATCH = TINY["patch_size"]
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
OTHERS = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)
MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "I;16",
    "F",
)

odd = st.one_of(
    st.sampled_from((None, True, False, 0, -1, 1, 2.5, float("nan"), float("inf"), 10**30, "", "x", "1", b"1")),
    st.sampled_from(((), [], {}, [[]], [None], object(), torch.tensor(1), torch.zeros(2), np.ones(3), 2**31, 2**63)),
)


@dataclass(frozen=True)
class Entry:
    """One entry point: what is drawn, what is done with it, and of which arguments an error must name one."""

    draw: st.SearchStrategy
    call: Callable[..., None]
    names: tuple[str, ...]


@cache
def models():
    """A dense and a packing model of the same weights, with peaked attention."""
    dense = dense_model(num_hidden_layers=2)
    return dense, as_packing(dense)


def _tensor(shape, dtype: torch.dtype, fill: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(fill)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


# Configuration

FIELDS = tuple(LlavaViTConfig.__init__.__annotations__)
field_values = st.one_of(
    odd, st.sampled_from((32, 64, 96, 128, 2, 4, 14, 1e-6, 1e4, 0.5, "gelu", "silu", "layer_norm", "rms_norm"))
)


def check_config(packing: bool, fields: dict) -> None:
    config_class = LlavaViTPackingConfig if packing else LlavaViTConfig
    config = config_class(**{**TINY, "num_hidden_layers": 1, **fields})
    assert config.hidden_size % (32 * config.num_attention_heads) == 0, "a head the rotary split cannot serve"
    assert config_class(**config.to_dict()).to_dict() == config.to_dict(), "does not survive a round trip"
    if packing or max(config.hidden_size, config.intermediate_size, config.patch_size, config.num_channels) > 256:
        return
    if config.num_hidden_layers > 2:
        return
    model = LlavaViTModel(config).eval()
    side = config.patch_size
    with torch.no_grad():
        output = model(torch.zeros(1, config.num_channels, side, 2 * side))
    assert output.last_hidden_state.shape == (1, 2, config.hidden_size)
    assert (output.pooler_output is None) == (not config.use_head)


config_entry = Entry(
    st.fixed_dictionaries(
        {"packing": st.booleans(), "fields": st.dictionaries(st.sampled_from(FIELDS), field_values, max_size=3)}
    ),
    check_config,
    FIELDS,
)

# Processor


@st.composite
def pictures(draw, floats: bool = True):
    """A PIL image, file, array or tensor that may be an image, or something else."""
    kind = draw(st.sampled_from(("pil", "pil", "file", "numpy", "torch", "odd")))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    if kind == "odd":
        return draw(st.one_of(odd, st.sampled_from(("missing.png", "/", "data:image/png;base64,AAAA", "\x00"))))
    if kind in ("pil", "file"):
        mode = draw(st.sampled_from(MODES))
        picture = PIL.Image.new(mode, (width, height))
        if kind == "pil":
            return picture
        stream = io.BytesIO()
        exif = PIL.Image.Exif()
        exif[0x0112] = draw(st.integers(0, 9))
        PIL.Image.new("RGB", (width, height)).save(stream, format=draw(st.sampled_from(("JPEG", "PNG"))), exif=exif)
        return PIL.Image.open(stream)
    shape = draw(
        st.one_of(
            st.sampled_from(((height, width), (height, width, 3), (3, height, width), (1, height, width))),
            st.lists(st.integers(0, 9), max_size=5).map(tuple),
        )
    )
    if kind == "torch":
        return _tensor(shape, draw(st.sampled_from((*FLOATS, *OTHERS))))
    kinds = ("u1", "u2", "u4", "i1", "i2", "i8", "f2", "f4", "f8", ">u2", ">f4", "?", "c8", "O", "S1", "U1", "M8[s]")
    return np.zeros(shape, draw(st.sampled_from(kinds)))


SETTINGS = ("patch_size", "num_frames", "max_tokens", "size", "crop_size", "resample", "image_mean", "image_std")
SETTINGS += ("max_patches", "min_patches", "max_pixels", "min_pixels", "fps", "temporal_rule")
SETTINGS += ("rescale_factor", "temporal_context", "input_data_format", "do_rescale", "do_resize", "packing")
setting_values = st.one_of(
    odd,
    st.sampled_from((4, 8, 14, 16, 70, 32, "all", "channels_first", "channels_last", 0.5, [0.5, 0.5, 0.5], "floor")),
    st.sampled_from(({"shortest_edge": 16}, {"height": 16, "width": 24}, {"height": 16}, {"longest_edge": 9})),
)


def check_processor(packing: bool, images, frames, overrides: dict, return_tensors, native) -> None:
    processor = LlavaViTProcessor(LlavaViTImageProcessor(patch_size=PATCH, packing=packing, size=16, crop_size=16))
    arguments = {"native_resolution": native, **overrides}
    if frames is not None:
        arguments["videos"] = frames
    inputs = processor(images=images, return_tensors=return_tensors, **arguments)
    pixels = torch.as_tensor(inputs["pixel_values"])
    again = processor(images=images, return_tensors=return_tensors, **arguments)
    assert torch.equal(torch.as_tensor(again["pixel_values"]), pixels), "not repeatable"
    if overrides.get("packing", packing) in (False, None) and not packing:
        assert pixels.ndim in (4, 5) and pixels.shape[1] == 3 and 0 not in pixels.shape
        return
    if "grid_thw" not in inputs:
        return
    grid = torch.as_tensor(inputs["grid_thw"])
    rows = int(grid.prod(1).sum())
    assert pixels.shape == (rows, 3 * int(overrides.get("patch_size") or PATCH) ** 2), f"{pixels.shape} of {grid}"
    assert inputs["max_seqlen"] == int(grid.prod(1).max())
    assert torch.as_tensor(inputs["cu_seqlens"]).tolist() == [0, *grid.prod(1).cumsum(0).tolist()]
    assert torch.as_tensor(inputs["patch_positions"]).shape == (rows, 3)


processor_entry = Entry(
    st.fixed_dictionaries(
        {
            "packing": st.booleans(),
            "images": st.one_of(pictures(), st.lists(pictures(), max_size=3)),
            "frames": st.one_of(
                st.none(),
                st.lists(pictures(), max_size=3),
                st.integers(0, 80).map(lambda count: np.zeros((count, 8, 9, 3), np.uint8)),
            ),
            "overrides": st.just({}) | st.dictionaries(st.sampled_from(SETTINGS), setting_values, max_size=2),
            "return_tensors": st.sampled_from(("pt", "pt", "np", None, "tf", 1, [])),
            "native": st.sampled_from((None, None, True, False)),
        }
    ),
    check_processor,
    ("images", "videos", "return_tensors", "dense batch", "native_resolution", *SETTINGS),
)

# Models

layers = st.one_of(
    st.none(), st.sampled_from((-2, 0, 2, -3, 3, -4, "pooler", "x", (), [-1, "pooler"], [0, 0], True, 1.5))
)


@st.composite
def dense_calls(draw):
    batch, height, width = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    frames = draw(st.sampled_from((None, None, 1, 3)))
    tokens = batch and (frames or 1) * height * width
    shape = (batch, 3, *(() if frames is None else (frames,)), height * PATCH + draw(st.integers(0, 3)), width * PATCH)
    if draw(st.integers(0, 4)) == 0:
        shape = tuple(draw(st.lists(st.integers(0, 9), max_size=6)))
    dtype = torch.float32 if draw(st.integers(0, 4)) else draw(st.sampled_from((*FLOATS, *OTHERS)))
    call = {"pixel_values": _tensor(shape, dtype, 3)}
    if draw(st.integers(0, 9)) == 0:
        call["pixel_values"] = draw(odd)
    if draw(st.booleans()):
        count = draw(st.integers(0, tokens + 1))
        values = torch.tensor(draw(st.lists(st.integers(-1, tokens), min_size=batch * count, max_size=batch * count)))
        good = torch.arange(min(count, tokens)).flip(0).expand(batch, -1)
        kind = draw(st.integers(0, 3))
        call["visible_indices"] = good if kind < 2 else values.reshape(batch, count) if kind == 2 else draw(odd)
        if kind == 1:
            call["visible_indices"] = good.to(draw(st.sampled_from(OTHERS)))
        tokens = min(count, tokens)
    if draw(st.booleans()):
        positions = torch.arange(batch * tokens * 3).reshape(batch, tokens, 3) % 7
        kind = draw(st.integers(0, 4))
        call["patch_positions"] = (
            positions
            if kind < 2
            else positions.to(draw(st.sampled_from((*FLOATS, *OTHERS))))
            if kind == 2
            else positions[:, :-1]
            if kind == 3
            else draw(odd)
        )
    if draw(st.integers(0, 2)) == 0:
        call["vision_feature_layer"] = draw(layers)
    if draw(st.integers(0, 7)) == 0:
        call = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in call.items()}
    if draw(st.integers(0, 7)) == 0:
        packed = ("grid_thw", "cu_seqlens", "max_seqlen")
        call |= dict.fromkeys(
            draw(st.lists(st.sampled_from(packed), min_size=1, unique=True)), torch.ones(1, 3).long()
        )
    return {"call": call}


def check_dense(call: dict) -> None:
    model, packing = models()
    with torch.no_grad():
        output = model(**call)
    pixels = call["pixel_values"]
    clip = pixels if pixels.ndim == 5 else pixels[:, :, None]
    grid = [clip.shape[2], clip.shape[3] // PATCH, clip.shape[4] // PATCH]
    full = grid[0] * grid[1] * grid[2]
    visible = call.get("visible_indices")
    kept = full if visible is None else visible.shape[1]
    if output.last_hidden_state is None:
        assert call["vision_feature_layer"] is not None
        assert all(state.shape == (len(clip), kept, 64) for state in output.hidden_states)
        return
    assert output.last_hidden_state.shape == (len(clip), kept, 64)
    assert output.pooler_output.shape == (len(clip), 64)
    assert output.last_hidden_state.isfinite().all(), "not finite"
    # The packing model on patches cut by hand.
    cut = clip[..., : grid[1] * PATCH, : grid[2] * PATCH].transpose(1, 2)
    cut = cut.unflatten(-1, (grid[2], PATCH)).unflatten(-3, (grid[1], PATCH))  # (B, T, 3, h, P, w, P)
    patches = cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(clip), full, -1)
    positions = torch.cartesian_prod(*(torch.arange(side) for side in grid)).reshape(-1, 3).expand(len(clip), -1, -1)
    if visible is not None:
        index = visible.long()[..., None]
        patches, positions = (
            patches.gather(1, index.expand(-1, -1, patches.shape[2])),
            positions.gather(1, index.expand(-1, -1, 3)),
        )
    if call.get("patch_positions") is not None:
        positions = call["patch_positions"]
    with torch.no_grad():
        expected = packing(
            pixel_values=patches.flatten(0, 1),
            patch_positions=positions.flatten(0, 1).long(),
            cu_seqlens=torch.arange(len(clip) + 1, dtype=torch.int32) * kept,
        )
    assert torch.equal(expected.last_hidden_state, output.last_hidden_state.flatten(0, 1)), "packing gives other bits"


dense_entry = Entry(
    dense_calls(),
    check_dense,
    (
        "pixel_values",
        "visible_indices",
        "patch_positions",
        "vision_feature_layer",
        "grid_thw",
        "cu_seqlens",
        "max_seqlen",
    ),
)


@st.composite
def packing_calls(draw):
    grids = draw(st.lists(st.tuples(*(st.integers(1, 3) for _ in range(3))), min_size=1, max_size=3))
    grid = torch.tensor(grids)
    lengths = grid.prod(1)
    rows = int(lengths.sum())
    call = {"pixel_values": _tensor((rows, 3 * PATCH**2), torch.float32, 5), "grid_thw": grid}
    if draw(st.booleans()):
        call["cu_seqlens"] = torch.tensor([0, *lengths.cumsum(0).tolist()], dtype=torch.int32)
    if draw(st.booleans()):
        call["patch_positions"] = torch.arange(rows * 3).reshape(rows, 3) % 5
    if draw(st.booleans()):
        call["max_seqlen"] = int(lengths.max())
    if draw(st.integers(0, 2)) == 0:
        call["vision_feature_layer"] = draw(layers)
    name = draw(st.sampled_from(tuple(call)))
    value = call[name]
    kind = draw(st.integers(0, 7))
    if kind == 1:
        del call[name]
    elif kind == 2:
        call[name] = draw(odd)
    elif kind > 2 and isinstance(value, torch.Tensor):
        call[name] = (
            value[:-1],
            value.to(draw(st.sampled_from((*FLOATS, *OTHERS)))),
            torch.zeros_like(value),
            value.flip(0),
            value[None],
        )[kind - 3]
    if draw(st.integers(0, 9)) == 0:
        name = draw(st.sampled_from(tuple(call) or ("grid_thw",)))
        if isinstance(call.get(name), torch.Tensor):
            call[name] = call[name].to("meta")
    return {"call": call}


def check_packing(call: dict) -> None:
    _, model = models()
    with torch.no_grad():
        output = model(**call)
    rows = len(call["pixel_values"])
    states = output.hidden_states if output.last_hidden_state is None else (output.last_hidden_state,)
    assert all(state.shape == (rows, 64) for state in states)
    if output.last_hidden_state is None or output.last_hidden_state.is_meta:
        return
    assert output.last_hidden_state.isfinite().all(), "not finite"
    # Each sample alone.
    if call.get("cu_seqlens") is not None:
        starts = call["cu_seqlens"].tolist()
    else:
        starts = [0, *call["grid_thw"].prod(1).cumsum(0).tolist()]
    for index, (start, end) in enumerate(zip(starts, starts[1:], strict=False)):
        alone = {"pixel_values": call["pixel_values"][start:end]}
        if call.get("patch_positions") is not None:
            alone["patch_positions"] = call["patch_positions"][start:end]
            alone["cu_seqlens"] = torch.tensor([0, end - start], dtype=torch.int32)
        else:
            alone["grid_thw"] = call["grid_thw"][index : index + 1]
        with torch.no_grad():
            expected = model(**alone).last_hidden_state
        found = output.last_hidden_state[start:end]
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), f"sample {index} is another one alone"


packing_entry = Entry(
    packing_calls(),
    check_packing,
    ("pixel_values", "grid_thw", "patch_positions", "cu_seqlens", "max_seqlen", "vision_feature_layer"),
)

# Helpers

# What helpers make is as large as they are told to.
few = odd.filter(lambda value: not isinstance(value, int) or value < 100)
small = st.one_of(st.integers(-1, 5), few)
arrays = st.builds(
    lambda shape, dtype, torched: (
        _tensor(tuple(shape), dtype) if torched else _tensor(tuple(shape), dtype).float().numpy()
    ),
    st.lists(st.integers(0, 7), max_size=4),
    st.sampled_from((torch.float32, torch.int64, torch.bool, torch.uint8)),
    st.booleans(),
)
grids = st.one_of(
    odd,
    arrays,
    st.lists(st.lists(st.integers(-1, 3), min_size=3, max_size=3), min_size=1, max_size=3),
    st.lists(st.lists(st.integers(1, 3), min_size=3, max_size=3), min_size=1, max_size=3).map(torch.tensor),
)


def check_split(features, grid_thw) -> None:
    parts = split_features(features, grid_thw)
    total = sum(int(np.prod(part.shape[:3])) for part in parts)
    flat = features[0] if features.ndim == 3 else features
    assert total == len(flat), "rows were lost"
    assert np.array_equal(
        np.concatenate([np.asarray(part).reshape(total and -1, flat.shape[1]) for part in parts]), flat
    )


def _features(grid) -> st.SearchStrategy:
    rows = 4
    if isinstance(grid, torch.Tensor) and grid.ndim == 2 and grid.numel() and not grid.is_floating_point():
        rows = max(0, int(grid.prod(1).sum())) % 100
    return st.one_of(st.just(torch.arange(rows * 2.0).reshape(rows, 2)), arrays, odd)


split_entry = Entry(
    grids.flatmap(lambda grid: st.fixed_dictionaries({"grid_thw": st.just(grid), "features": _features(grid)})),
    check_split,
    ("grid_thw", "features"),
)


def check_selection(grids, keep, scores, top_k) -> None:
    kept = kept_patches(grids, keep, scores, top_k)
    if kept is None:
        assert keep is None and scores is None
        return
    for (t, h, w), indices in zip(grids, kept, strict=True):
        if indices is not None:
            assert indices.dtype == torch.int64 and 0 < len(indices) <= t * h * w
            assert indices.tolist() == sorted(set(indices.tolist())) and indices[-1] < t * h * w


@st.composite
def selections(draw):
    found = draw(st.lists(st.tuples(*(st.integers(1, 3) for _ in range(3))), min_size=1, max_size=2))
    dtypes = st.sampled_from((torch.bool, torch.float32, torch.int64, torch.bfloat16, torch.complex64))
    values = [
        draw(st.one_of(dtypes.map(lambda dtype, grid=grid: _tensor(grid, dtype)), st.none(), odd, arrays))
        for grid in found
    ]
    nested = draw(st.one_of(st.just(values), st.just(values[0]), odd))
    use = draw(st.sampled_from(("keep", "scores", "scores", "both", "neither")))
    return {
        "grids": found,
        "keep": nested if use in ("keep", "both") else None,
        "scores": nested if use in ("scores", "both") else None,
        "top_k": draw(st.one_of(st.none(), small, st.lists(small, max_size=2))),
    }


selection_entry = Entry(selections(), check_selection, ("keep", "scores", "top_k"))


def check_helpers(name: str, a, b, c) -> None:
    if name == "temporal_positions":
        found = temporal_positions(a, b)
        assert found.tolist() == [min(b - 1, round(i * (b - 1) / max(a - 1, 1))) for i in range(a)]
    elif name == "sample_frame_indices":
        found = sample_frame_indices(a, b)
        assert len(found) == (a if b == "all" else b) and (0 <= found).all() and (found < a).all()
    elif name == "patchify":
        found = patchify(a, b)
        height, width = a.shape[-2] // b, a.shape[-1] // b
        assert found.shape == (*a.shape[:-3], height * width, a.shape[-3] * b * b)
        assert height == 0 or torch.equal(found[..., 0, :], a[..., :b, :b].flatten(-3))
    elif name == "cumulative_lengths":
        values = a.tolist() if isinstance(a, torch.Tensor) else a
        assert cumulative_lengths(a).tolist() == [sum(values[:index]) for index in range(len(values) + 1)]
    elif name == "check_grid":
        assert check_grid(a) == a.tolist() and int(a.min()) >= 1
    elif name == "frame_positions":
        found = frame_positions(a, b, c)
        assert found.tolist() == [[int(t), row, column] for t in a for row in range(b) for column in range(c)]
    else:
        found = grid_positions(a)
        grid = a.tolist() if isinstance(a, torch.Tensor) else a
        expected = [[t, y, x] for f, h, w in grid for t in range(f) for y in range(h) for x in range(w)]
        assert found.tolist() == expected


HELPERS = ("temporal_positions", "sample_frame_indices", "check_grid", "grid_positions")
counts = st.integers(0, 5)
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4)
times = lengths.map(torch.tensor)
images = st.builds(lambda *shape: _tensor(shape, torch.float32), counts, st.integers(1, 3), counts, counts)
helpers_entry = Entry(
    st.one_of(
        st.fixed_dictionaries(
            {"name": st.sampled_from(HELPERS[:2]), "a": small, "b": small | st.just("all"), "c": counts}
        ),
        st.fixed_dictionaries({"name": st.sampled_from(HELPERS[2:4]), "a": grids, "b": counts, "c": counts}),
        # These are called inside a forward, and take what their signatures say.
        st.fixed_dictionaries({"name": st.just("frame_positions"), "a": times, "b": counts, "c": counts}),
        st.fixed_dictionaries({"name": st.just("cumulative_lengths"), "a": lengths, "b": counts, "c": counts}),
        st.fixed_dictionaries({"name": st.just("patchify"), "a": images, "b": st.integers(1, 5), "c": counts}),
    ),
    check_helpers,
    (
        "num_frames",
        "context",
        "total",
        "pixel_values",
        "patch_size",
        "lengths",
        "grid_thw",
        "times",
        "rows",
        "columns",
    ),
)


def check_conversion_utils(name: str, a, b, c) -> None:
    if name == "interpolate_frame_indices":
        found = conversion_utils.interpolate_frame_indices(a, b, c)
        assert found.shape == a.shape and found.dtype == torch.int64 and ((found >= 0) & (found < c)).all()
    elif name == "get_synthesized_video":
        found = conversion_utils.get_synthesized_video(a, b, c)
        assert found.shape == (1, 3, b, c, c) and found.isfinite().all()
    elif name == "compute_patch_positions_with_interpolated_temporal":
        found = conversion_utils.compute_patch_positions_with_interpolated_temporal(a, b, c, "cpu")
        assert found.shape == (a.numel() * b * c, 3)
    else:
        found = conversion_utils.compute_cosine_similarity(a, b)
        assert not found["pass"] or a.shape == b.shape


UTILS = ("interpolate_frame_indices", "get_synthesized_video", "compute_cosine_similarity")
UTILS += ("compute_patch_positions_with_interpolated_temporal",)
utils_arrays = st.one_of(
    arrays,
    st.sampled_from(
        (torch.arange(6).reshape(2, 3), torch.rand(1, 3, 9, 9), torch.tensor([4, 8]), torch.zeros(1, 3, 0, 4))
    ),
    odd,
)
utils_entry = Entry(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(UTILS),
            "a": utils_arrays,
            "b": st.one_of(utils_arrays, small),
            "c": st.one_of(small, st.integers(8, 40)),
        }
    ),
    check_conversion_utils,
    ("frame_indices", "total_frames", "target_frames", "real_image_tensor", "num_frames", "size", "feat1", "feat2")
    + ("interpolated_indices", "h_patches", "w_patches"),
)

ENTRIES = {
    "configuration": config_entry,
    "processor": processor_entry,
    "dense_forward": dense_entry,
    "packing_forward": packing_entry,
    "split_features": split_entry,
    "selection": selection_entry,
    "grid_helpers": helpers_entry,
    "conversion_utils": utils_entry,
}


def explore(name: str, examples: int, start: int = 0, stop: Callable[[], bool] = lambda: False) -> Tally:
    """Tries drawn arguments, the same for the same `start`."""
    entry, tally = ENTRIES[name], Tally(name)

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(entry.draw)
    def run(drawn: dict) -> None:
        if not stop():
            known = len(tally.findings)
            tally.watch(lambda: entry.call(**drawn), names=entry.names)
            if len(tally.findings) > known:
                place = list(tally.findings)[-1]
                tally.findings[place] += f" <- {str(drawn)[:300]}"

    run()
    return tally
