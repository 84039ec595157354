# Copyright 2026 The llava_vit_hf authors. Licensed under the Apache License, Version 2.0.
"""Compares saved features: of the dense model with the packing model's, or of your run with a published one.

    python examples/verify_features.py --features_dir features
    python examples/verify_features.py --features_dir features --reference user/model --revision COMMIT

Against a reference it says first whether inputs, frames, processor and weights are the same, by their hashes, and then
whether the features are. Exit code 0 only if everything passes. Runs no model.
"""

import argparse
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion.common.arguments import ArgumentParser  # noqa: E402
from examples.extraction.comparisons import DEFAULT_THRESHOLD, Report, compare_features, compare_runs  # noqa: E402
from examples.extraction.feature_sets import (  # noqa: E402
    DENSE_FILE,
    PACKING_FILE,
    is_paired,
    load_features,
    load_metadata,
    open_features,
)
from examples.extraction.limits import add_limit_arguments, limits_of  # noqa: E402
from examples.extraction.publishing import find_published  # noqa: E402


def verify(options: argparse.Namespace) -> Report:
    """Compares as the options say.

    Raises:
        ValueError: if features are missing or damaged.
    """
    folder, limits = options.features_dir, limits_of(options)
    dtype = load_metadata(folder, limits)["dtype"]
    if options.reference is not None:
        reference = find_published(options.reference, options.revision)
        return compare_runs(open_features(folder, limits), open_features(reference, limits), options.threshold)
    if not is_paired(folder):
        raise ValueError(f"--features_dir {folder} holds the features of one model: pass --reference to compare with.")
    dense, packing = (load_features(folder / file, limits) for file in (DENSE_FILE, PACKING_FILE))
    return compare_features(dense, packing, dtype, options.threshold)


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--features_dir", type=Path, required=True, help="folder that extract_features.py wrote")
    parser.add_argument("--reference", help="another run: its folder, or a repo id with features in verification/")
    parser.add_argument("--revision", help="commit of the reference, when it is a repo; pin one to be repeatable")
    parser.add_argument("--threshold", type=float, default=DEFAULT_THRESHOLD, help="smallest token cosine that passes")
    add_limit_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        report = verify(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.text())
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
