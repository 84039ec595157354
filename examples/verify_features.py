# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Compares saved features: of the dense model with the packing model's, or of your run with a published one.

    python examples/verify_features.py --features_dir features
    python examples/verify_features.py --features_dir features --reference user/model --revision COMMIT

Against a reference it says first whether inputs, frames, processor and weights are the same, by their hashes, and then
whether the features are. Exit code 0 only if everything passes. Runs no model, unless --diagnose is given and
something fails: then each model of the run is run on a small case, and the mistake that it looks like is named.
"""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.common.arguments import ArgumentParser, from_options  # noqa: E402
from examples.extraction.comparisons import DEFAULT_THRESHOLD, Report, compare_features, compare_runs  # noqa: E402
from examples.extraction.diagnosis import diagnose_run  # noqa: E402
from examples.extraction.feature_sets import is_paired, load_metadata, load_pair, open_features  # noqa: E402
from examples.extraction.limits import DEFAULT_LIMITS, FileLimits  # noqa: E402
from examples.extraction.options import add_file_limits  # noqa: E402
from examples.extraction.publishing import find_published  # noqa: E402


def verify(
    features_dir: Path,
    reference: str | None = None,
    revision: str | None = None,
    threshold: float = DEFAULT_THRESHOLD,
    limits: FileLimits = DEFAULT_LIMITS,
) -> Report:
    """Compares a run with another, or the two models of a run with each other.

    Args:
        features_dir: folder of the run.
        reference: another run: its folder, or a repo id with features in `verification/`.
        revision: of the reference, where it is a repo.
        threshold: smallest cosine of a token that passes.

    Raises:
        ValueError: if features are missing or damaged.
    """
    dtype = load_metadata(features_dir, limits)["dtype"]
    if reference is not None:
        other = find_published(reference, revision)
        return compare_runs(open_features(features_dir, limits), open_features(other, limits), threshold)
    if not is_paired(features_dir):
        raise ValueError(
            f"--features_dir {features_dir} holds the features of one model: pass --reference to compare with."
        )
    return compare_features(*load_pair(features_dir, limits), dtype, threshold)


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--features_dir", type=Path, required=True, help="folder that extract_features.py wrote")
    parser.add_argument("--reference", help="another run: its folder, or a repo id with features in verification/")
    parser.add_argument("--revision", help="commit of the reference, when it is a repo; pin one to be repeatable")
    parser.add_argument("--threshold", type=float, default=DEFAULT_THRESHOLD, help="smallest token cosine that passes")
    parser.add_argument(
        "--diagnose",
        action="store_true",
        help="if something fails, name the mistake each model looks like; executes the code in their folders",
    )
    add_file_limits(parser)
    options = parser.parse_args(arguments)
    try:
        limits = from_options(FileLimits, options)
        report = verify(options.features_dir, options.reference, options.revision, options.threshold, limits)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.text())
    if report.passed:
        return 0
    if options.diagnose:
        for line in diagnose_run(load_metadata(options.features_dir, limits)):
            print(line)
    else:
        print("--diagnose runs the models, if they are here, and names the known mistake that they look like")
    return 1


if __name__ == "__main__":
    sys.exit(main())
