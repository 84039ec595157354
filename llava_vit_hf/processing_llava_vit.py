# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Processor of LLaVA-ViT: one call for images, videos or both; its output goes into `model(**inputs)`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin

# Out of a local folder transformers 4 fetches only the files that this one imports itself, so all are named here.
from .codec_llava_vit import codec_scores, codec_selection
from .collation_llava_vit import OUTPUT, collate, join_inputs
from .decoding_llava_vit import BACKENDS  # noqa: F401
from .grid_llava_vit import split_features
from .image_processing_llava_vit import LlavaViTImageProcessor
from .inputs_llava_vit import sample_lengths  # noqa: F401
from .pixels_llava_vit import write_pixels  # noqa: F401
from .settings_llava_vit import LlavaViTSettings  # noqa: F401
from .video_metadata_llava_vit import METADATA_FIELDS  # noqa: F401
from .video_processing_llava_vit import READING, LlavaViTVideoProcessor, asked_of_frames, decode_video


# What other Auto classes load, beside those that transformers writes down itself.
AUTO_CLASSES = {
    "AutoFeatureExtractor": "image_processing_llava_vit.LlavaViTImageProcessor",
    "AutoVideoProcessor": "video_processing_llava_vit.LlavaViTVideoProcessor",
}
# What images and videos of one call have in common: how their pixels are normalized and laid out.
COMMON = (
    *("packing", "patch_size", "merge_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std"),
)


class LlavaViTProcessor(ProcessorMixin):
    """Images and videos to model inputs. There is no tokenizer.

    Args:
        image_processor: a `LlavaViTImageProcessor`; it holds all settings, those for videos too.
    """

    attributes = ["image_processor"]
    if not hasattr(ProcessorMixin, "get_attributes"):
        # transformers 4 asks for it; transformers 5 warns about it at every load.
        image_processor_class = "AutoImageProcessor"

    def __init__(self, image_processor: LlavaViTImageProcessor):
        super().__init__(image_processor)

    # Of inputs made one by one, those of one call with all samples: the `collate_fn` of a `DataLoader`.
    collate = staticmethod(join_inputs)
    codec_scores = staticmethod(codec_scores)
    decode_video = staticmethod(decode_video)

    def split_features(
        self, features: torch.Tensor | np.ndarray, grid_thw: torch.Tensor | np.ndarray | list | None = None
    ) -> list[torch.Tensor | np.ndarray]:
        """Splits packed features back into one array per sample, the inverse of packing.

        Args:
            features: `(total_tokens, C)` or `(1, total_tokens, C)`; a torch tensor or a numpy array.
            grid_thw: `(samples, 3)`.

        Returns:
            One `(t, h, w, C)` per sample, row by row also where the model takes blocks of patches.

        Raises:
            ValueError: if the grid does not add up to the rows, or the features are a dense batch.
        """
        return split_features(features, grid_thw, self.image_processor.merge_size)

    @property
    def video_processor(self) -> LlavaViTVideoProcessor:
        """The video part, with the image processor's settings."""
        return LlavaViTVideoProcessor(self.image_processor)

    @property
    def model_input_names(self) -> list[str]:
        """Keys of the output."""
        names = self.image_processor.model_input_names
        return names if self.image_processor.packing else [*names, "patch_positions"]

    def __call__(
        self,
        images: Any = None,
        text: str | None = None,
        videos: Any = None,
        num_frames: int | str | None = None,
        video_backend: str | None = None,
        return_metadata: bool = False,
        return_tensors: str | None = "pt",
        keep: Any = None,
        scores: Any = None,
        top_k: int | Sequence[int] | None = None,
        fps: float | None = None,
        video_metadata: Any = None,
        do_sample_frames: bool | None = None,
        device: torch.device | str | None = None,
        padding: Any = None,
        images_kwargs: dict[str, Any] | None = None,
        videos_kwargs: dict[str, Any] | None = None,
        return_visible_indices: bool = False,
        **kwargs,
    ) -> BatchFeature:
        """Prepares images, videos or both; in the output images come first, then videos.

        Args:
            images: one image or a list: PIL, numpy or torch `(H, W)`, `(H, W, C)`, `(C, H, W)`, path, URL or the bytes
                of a file.
            text: refused unless empty.
            videos: one video or a list of them: path or URL of a file, a folder of frames, a list of frames, or an
                array `(T, H, W, C)` or `(T, C, H, W)`. Paths of images are frames: `["0.png", "1.png"]` is one clip of
                two, and `[["0.png", "1.png"], "a.mp4"]` are two videos.
            num_frames: frames sampled from every video, or `"all"`. Default: as saved.
            video_backend: `"decord"`, `"pyav"`, `"torchcodec"` or `"opencv"`. `None`: decord where it is installed,
                PyAV otherwise and for files that decord cannot read.
            return_metadata: add `metadata`, a list of one dict per sample: kind, source, height and width before
                preprocessing, `grid_thw`, `temporal_positions`, `kept_patches` where some were chosen, and for
                videos `frame_indices`, `timestamps` (seconds), `decoder`, `fps`, `total_frames`, `temporal_rule`; of
                codec scores the settings and `codec_way`, where the vectors are from. It is not an input of the model.
            return_tensors: `"pt"` (also `None`) or `"np"`.
            keep: keeps some patches only (codec-selected ones, say): one boolean mask per sample, images first, over
                its `(t, h, w)` patches or flat; `None` for a sample that keeps all.
            scores: in place of `keep`, one array of numbers per sample, shaped likewise; the highest `top_k` patches
                are kept. Or `"codec"`: those of videos that their codec finds most motion and residual in, as
                `codec_score`, `keep_first_frame` and `block` say; images keep all.
            top_k: with `scores`, how many patches a sample keeps, or one number per sample.
            fps: in place of `num_frames`, frames sampled from a second: those shown at 0, 1 / fps, 2 / fps, ..., each
                once, and at most `max_frames`.
            video_metadata: of frames decoded elsewhere, one dict or transformers' `VideoMetadata` per video: `fps`,
                `total_num_frames` of the video, and `frames_indices`, which of them these are. Temporal positions
                then come from those numbers, and the frames are not sampled again unless `num_frames`, `fps` or
                `do_sample_frames=True` says so.
            do_sample_frames: `False` takes every frame.
            device: of `pixel_values`, such as `"cuda"`; they are normalized there.
            padding: ignored: there is nothing to pad.
            images_kwargs, videos_kwargs: arguments for the images or the videos alone.
            return_visible_indices: of a dense repo with `rope_temporal_size`, `visible_indices` `(B, T * h * w)` into
                the grid of `temporal_context` frames in place of `patch_positions`: the released form, equal bits.
            kwargs: any argument of [`LlavaViTSettings`], for this call.

        Returns:
            Packing: `pixel_values` `(total_tokens, 3 * P * P)`, `grid_thw` `(samples, 3)`, `patch_positions`
            `(total_tokens, 3)`, `cu_seqlens` `(samples + 1,)` int32 and `max_seqlen`, an int.
            Dense: `pixel_values` `(B, 3, H, W)` for images; for videos `(B, 3, T, H, W)` and `patch_positions`
            `(B, T * h * w, 3)`.
            With `keep` or `scores`, packing has the rows, positions and `cu_seqlens` of the kept patches, and
            `grid_thw` of the whole samples; dense has whole `pixel_values`, with `visible_indices` `(B, K)` and
            `patch_positions` `(B, K, 3)`, and needs the same `K` of all samples. `max_tokens` counts whole samples.

        Raises:
            FileNotFoundError, TypeError, ValueError: as `LlavaViTImageProcessor.preprocess` and `decode_video`; and
                for images and videos in one dense call.
        """
        if text is not None and not (isinstance(text, str) and text == ""):
            raise ValueError(
                "text: this processor has no tokenizer; pass images and videos only, videos by name (videos=...)."
            )
        if images is None and videos is None:
            raise ValueError("Pass images, videos or both; found neither.")
        output = {"return_tensors": return_tensors, "return_metadata": return_metadata, "device": device}
        output["return_visible_indices"] = return_visible_indices
        reading = dict(zip(READING, (video_backend, video_metadata, do_sample_frames), strict=True))
        of_images, of_videos = (
            {"num_frames": num_frames, "fps": fps, **kwargs, **(particular or {})}
            for particular in (images_kwargs, videos_kwargs)
        )
        for particular in (of_images, of_videos):
            output |= {name: particular.pop(name) for name in OUTPUT if name in particular}
        reading |= {name: of_videos.pop(name) for name in READING if name in of_videos}
        samples, settings = [], []
        if images is not None:
            settings.append(self.image_processor.settings(**of_images))
            samples += self.image_processor.prepare(images, settings[-1])
        if videos is not None:
            settings.append(self.image_processor.settings(**of_videos))
            reading = asked_of_frames(reading, of_videos)
            samples += self.video_processor.prepare(videos, settings[-1], **reading)
        for name in COMMON:
            found = [getattr(one, name) for one in settings]
            if found[0] != found[-1]:
                raise ValueError(
                    f"{name}: images and videos of one call share it, found {found[0]!r} and {found[1]!r}."
                )
        if isinstance(scores, str):
            if scores != "codec" or keep is not None:
                raise ValueError(f'scores must be arrays or "codec", without keep; found {scores!r}.')
            keep = codec_selection(videos, samples, settings[-1], top_k, reading["video_metadata"])
            scores = top_k = None
        return collate(samples, settings[0], **output, keep=keep, scores=scores, top_k=top_k)

    def grid_for(self, height: int, width: int, frames: int = 1, **kwargs) -> list[int]:
        """`[t, h, w]`, as `LlavaViTImageProcessor.grid_for`."""
        return self.image_processor.grid_for(height, width, frames, **kwargs)

    def _get_num_multimodal_tokens(
        self, image_sizes: Any = None, video_sizes: Any = None, images_kwargs=None, videos_kwargs=None, **kwargs
    ) -> MultiModalData:
        """How many tokens engines reserve, without pixels: transformers' hook, called by vLLM's backend for it.

        Args:
            image_sizes: `(height, width)` of every image, in pixels.
            video_sizes: `(sampled frames, height, width)` of every video.
            kwargs: as in a call.
        """
        data = {}
        if image_sizes is not None:
            count, given = self.image_processor.get_number_of_image_patches, {**kwargs, **(images_kwargs or {})}
            data["num_image_patches"] = data["num_image_tokens"] = [count(*size, given) for size in image_sizes]
        if video_sizes is not None:
            count, given = self.video_processor.get_num_of_video_patches, {**kwargs, **(videos_kwargs or {})}
            data["num_video_tokens"] = [count(*size, given) for size in video_sizes]
        return MultiModalData(**data)

    def to_dict(self, *args, **kwargs) -> dict[str, Any]:
        """The contents of `processor_config.json`: the image processor's settings stay in its own file."""
        output = super().to_dict(*args, **kwargs)
        output.pop("image_processor", None)
        return output

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Saves `preprocessor_config.json` and `processor_config.json`, the same under transformers 4 and 5.

        Args:
            save_directory: made if missing.
            push_to_hub: also upload to `repo_id` (default: the folder's name); `kwargs` go to `push_to_hub`.
        """
        super().save_pretrained(save_directory)
        if self._auto_class is not None:
            # Their files are those that this one needs anyway.
            self.image_processor.auto_map |= AUTO_CLASSES
        # transformers 5 writes no preprocessor_config.json, which transformers 4 and AutoImageProcessor read;
        # transformers 4 writes processor_config.json only for remote code, so an older one would survive.
        files = self.image_processor.save_pretrained(save_directory)
        processor_file = os.path.join(save_directory, "processor_config.json")
        self.to_json_file(processor_file)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return [*files, processor_file]
