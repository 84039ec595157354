# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Which samples of a run are most like an image or a video: the cosine of their vectors, over all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from examples.extraction.embedder import LlavaViTEmbedder
from examples.extraction.feature_sets import is_paired, load_index, load_metadata
from examples.extraction.files import sha256_of_input
from examples.extraction.html_report import data_url, page_of, table_of
from examples.extraction.inputs import Item, kind_of
from examples.extraction.limits import DEFAULT_LIMITS, FileLimits, SampleLimits, check_positive
from examples.extraction.requests import check_choice
from examples.extraction.shards import column_of, load_tensors


ENGINES = ("numpy", "faiss")
THUMBNAIL = 320


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What to look for, and where.

    Attributes:
        features_dir: folder of a run over many inputs.
        query: an image or video, or a folder of frames.
        packing_model_path: that the run was made with, a folder or `user/name@revision`. Its code is executed.
        layer: of the run; None is the pooler, or the first layer where it has none, of which the mean is taken.
        top: how many samples are wanted.
        num_frames: sampled from a video that is the query; the run's.
        engine: `"faiss"` or `"numpy"`; None is faiss where it is installed. The order is the same but for equals.
        device: of the model; None is the accelerator where there is one.
        sample_limits: of the query.
        file_limits: of the run's files.
    """

    features_dir: Path
    query: Path
    packing_model_path: str
    layer: str | None = None
    top: int = 10
    num_frames: int = 8
    engine: str | None = None
    device: str | None = None
    sample_limits: SampleLimits = SampleLimits()
    file_limits: FileLimits = DEFAULT_LIMITS

    def __post_init__(self):
        check_positive("top", self.top)
        check_positive("num_frames", self.num_frames)
        if self.engine is not None:
            check_choice("engine", self.engine, ENGINES)


@dataclass(frozen=True)
class Match:
    """A sample of the run: its place from 1 on, the cosine with the query, and its line of the index."""

    rank: int
    cosine: float
    record: dict


def search(request: SearchRequest) -> list[Match]:
    """The samples that are most like the query, best first.

    Raises:
        ValueError: if the run has no such layer, a file of it is damaged, the model is another one than the run's, or
            the query gives no sample.
        ImportError: without faiss, if it was asked for.
        OSError: if the model or the query cannot be read.
    """
    folder = request.features_dir
    metadata = load_metadata(folder, request.file_limits)
    if is_paired(folder):
        raise ValueError(f"{folder} holds features of four files; expected a run of extract_features.py --inputs.")
    layers = metadata["layers"]
    layer = request.layer or ("pooler" if "pooler" in layers else layers[0])
    check_choice("layer", layer, layers)
    records, vectors = load_vectors(folder, layer, request.file_limits)
    query = embed_query(request, metadata, layer)
    engine = request.engine or ("faiss" if _import_faiss(needed=False) else "numpy")
    places, cosines = (_with_faiss if engine == "faiss" else _with_numpy)(vectors, query, request.top)
    return [
        Match(rank, float(cosine), records[place])
        for rank, (place, cosine) in enumerate(zip(places, cosines, strict=True), start=1)
    ]


def load_vectors(folder: Path, layer: str, limits: FileLimits = DEFAULT_LIMITS) -> tuple[list[dict], np.ndarray]:
    """One vector of each sample of a run, of length 1.

    Returns:
        The lines of the index, and `(samples, C)` float32 in their order: the pooled vector, or the mean of a layer's
        tokens.

    Raises:
        ValueError: if a file is missing, damaged or over a limit, or the run has no samples.
    """
    records = load_index(folder, limits)
    if not records:
        raise ValueError(f"{folder}: the run has no samples.")
    # One file after the other, each opened once.
    order = sorted(range(len(records)), key=lambda place: records[place]["shard"])
    vectors: np.ndarray | None = None
    for _, group in groupby(order, key=lambda place: records[place]["shard"]):
        places = list(group)
        tensors = load_tensors(folder, [records[place] for place in places], layer, limits)
        for place, tensor in zip(places, tensors, strict=True):
            vector = _vector(tensor)
            vectors = np.empty((len(records), len(vector)), np.float32) if vectors is None else vectors
            vectors[place] = vector
    return records, vectors


def _vector(features: np.ndarray) -> np.ndarray:
    """`(C,)` of length 1, of `(C,)` or the mean of `(..., C)`; of zeros zeros."""
    vector = features.reshape(-1, features.shape[-1]).mean(0, dtype=np.float64)
    return (vector / max(np.linalg.norm(vector), 1e-30)).astype(np.float32)


def embed_query(request: SearchRequest, metadata: dict, layer: str) -> np.ndarray:
    """The query's vector `(C,)` of length 1, by the run's model and settings.

    Raises:
        ValueError: for another model than the run's, and for a file that gives no sample.
    """
    query = request.query
    if not query.exists():
        raise ValueError(f"--query {query}: no such file or folder.")
    kind = kind_of(Item(0, query.name, str(query), None, 1))
    embedder = LlavaViTEmbedder(
        request.packing_model_path,
        layers=(layer if layer == "pooler" else int(layer),),
        dtype=metadata["dtype"],
        device=request.device,
        num_frames=request.num_frames,
        sample_limits=request.sample_limits,
    )
    weights = metadata["models"]["packing"]["weights_sha256"]
    if embedder.identity["weights_sha256"] != weights:
        raise ValueError(
            f"--packing_model_path {request.packing_model_path}: other weights than those that the features in "
            f"{request.features_dir} are of. Give the run's model, or extract again."
        )
    found = embedder({kind: [query]})
    if found["error"][0]:
        raise ValueError(f"--query {query}: {found['error'][0]}")
    return _vector(found[column_of(layer)][0])


def _with_numpy(vectors: np.ndarray, query: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    cosines = vectors @ query
    places = np.argsort(-cosines, kind="stable")[:top]
    return places, cosines[places]


def _with_faiss(vectors: np.ndarray, query: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    index = _import_faiss(needed=True).IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    cosines, places = index.search(query[None], min(top, len(vectors)))
    return places[0], cosines[0]


def _import_faiss(needed: bool):
    try:
        import faiss
    except ImportError as error:
        if needed:
            raise ImportError("--engine faiss needs FAISS (pip install faiss-cpu).") from error
        return None
    return faiss


def table_text(matches: list[Match]) -> str:
    """The matches as lines of text, with their ids aligned."""
    width = max(len(match.record["id"]) for match in matches)
    lines = [f"{'':>4}  cosine  {'id':<{width}}  kind"]
    lines += [
        f"{match.rank:>4}  {match.cosine:.4f}  {match.record['id']:<{width}}  {match.record.get('kind', '')}"
        for match in matches
    ]
    return "\n".join(lines)


def render_matches(request: SearchRequest, matches: list[Match]) -> str:
    """One page with the query and the matches as pictures; it needs no other file."""
    request.sample_limits.apply_to_pillow()
    title = f"Most like {request.query.name}"
    rows = [
        [match.record["id"], str(match.rank), f"{match.cosine:.4f}", str(match.record.get("kind", ""))]
        for match in matches
    ]
    cards = [{"caption": "query", "name": request.query.name, "picture": _thumbnail(request.query, None)}]
    cards += [
        {
            "caption": f"{match.rank}: cosine {match.cosine:.4f}",
            "name": match.record["id"],
            "picture": _thumbnail(Path(match.record.get("path", "")), match.record.get("sha256")),
        }
        for match in matches
    ]
    return page_of(title, [_gallery(cards), "<h2>Cosines</h2>", table_of(("id", "rank", "cosine", "kind"), rows)])


def _gallery(cards: list[dict]) -> str:
    def parts() -> Iterator[str]:
        for card in cards:
            picture = card["picture"]
            if isinstance(picture, str):
                shown = f'<p class="reasons">{escape(picture)}</p>'
            else:
                shown = f'<img alt="{escape(card["name"])}" src="{data_url(picture)}">'
            yield (
                f'<figure class="card"><figcaption>{escape(card["caption"])}</figcaption>{shown}'
                f"<h3>{escape(card['name'])}</h3></figure>"
            )

    return f'<div class="gallery">{"".join(parts())}</div>'


def _thumbnail(path: Path, sha256: str | None) -> Image.Image | str:
    """A small picture of a file, of a video its first frame; or why there is none."""
    if not path.name or not path.exists():
        return f"No picture: {path} is not a file of this machine."
    try:
        if sha256 is not None and sha256_of_input(path) != sha256:
            return f"No picture: {path} is not the file that the features came from."
        if path.is_dir():
            path = min(file for file in path.iterdir() if file.is_file())
        if kind_of(Item(0, path.name, str(path), None, 1)) == "image":
            with Image.open(path) as opened:
                opened.draft("RGB", (THUMBNAIL, THUMBNAIL))
                picture = ImageOps.exif_transpose(opened).convert("RGB")
        else:
            import av

            with av.open(str(path)) as container:
                picture = next(container.decode(video=0)).to_image()
    # StopIteration: a video without frames.
    except (OSError, ValueError, ImportError, IndexError, StopIteration, Image.DecompressionBombError) as error:
        return f"No picture: {error or 'no frames'}."
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture
