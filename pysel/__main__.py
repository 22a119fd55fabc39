"""Selection on files: ``python -m pysel score``, ``select`` and ``explain``."""

from __future__ import annotations

import argparse
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from pysel import files
from pysel.selection import DynamicSelector, ScoreSelector, Selector


def main(arguments: list[str] | None = None) -> int:
    """Run a command; errors are one line and status 1."""
    parser = argparse.ArgumentParser(prog="pysel", description="Which samples to train on, from files to files.")
    commands = parser.add_subparsers(required=True, metavar="score | select | explain")

    score = commands.add_parser("score", help="features -> a selector: representativeness and diversity of each sample")
    score.add_argument("features", nargs="+", help=".npy, .parquet, .arrow, .feather, or raw numbers (with --dim)")
    score.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where the selector is saved")
    score.add_argument("--keep-ratio", required=True, type=_fraction, help="fraction kept in each epoch")
    score.add_argument("--epochs", required=True, type=int, help="length of training")
    score.add_argument("--labels", metavar="FILE[:COLUMN]", help="integers, one a sample: classes are kept even")
    score.add_argument("--column", help="of a table: the one with lists of numbers")
    score.add_argument("--dim", type=int, help="of raw numbers: how many make a row")
    score.add_argument("--dtype", default="float32", help="of raw numbers")
    score.add_argument("--num-factors", type=int, default=512, help="of the sparse autoencoder (%(default)s)")
    score.add_argument("--k", type=int, default=16, help="factors active in a sample (%(default)s)")
    score.add_argument("--key", type=int, default=0, help="seed (%(default)s)")
    score.set_defaults(run=_score)

    select = commands.add_parser("select", help="a saved selector, or a file of scores -> a selection")
    select.add_argument("source", metavar="FOLDER | FILE[:COLUMN]", help="what score wrote, or one score a sample")
    select.add_argument("-o", "--output", required=True, metavar="FOLDER", help="selection.json and rows.npy")
    select.add_argument("--epoch", type=int, help="of a selector (0)")
    select.add_argument("--keep-ratio", type=_fraction, help="of scores: fraction kept")
    select.add_argument("--smallest", action="store_true", help="of scores: keep the smallest")
    select.add_argument("--labels", metavar="FILE[:COLUMN]", help="of scores: each class keeps its share")
    select.add_argument("--ids", metavar="FILE[:COLUMN]", help="one a sample, for the tables below")
    select.add_argument("--parquet", metavar="FILE", help="also write row, id and score")
    select.add_argument("--datacomp", metavar="FILE", help="also write DataComp's subset of uids, which are --ids")
    select.add_argument("--shards", metavar="FILE", help="also write the positions within the shards of --index")
    select.add_argument("--index", metavar="FILE", help="a WebDataset index: JSON with a shardlist")
    select.set_defaults(run=_select)

    explain = commands.add_parser("explain", help="why a sample is in an epoch's subset, or is not")
    explain.add_argument("selector", metavar="FOLDER", help="what score wrote")
    explain.add_argument("sample", type=int)
    explain.add_argument("--epoch", type=int, default=0)
    explain.set_defaults(run=_explain)

    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except (ValueError, TypeError, IndexError, ImportError, OSError) as error:
        print(f"pysel: {error}", file=sys.stderr)
        return 1
    return 0


def _score(given: argparse.Namespace) -> None:
    paths = given.features if len(given.features) > 1 else given.features[0]
    features = files.open_matrix(paths, column=given.column, dtype=given.dtype, dim=given.dim)
    selector = DynamicSelector.from_features(
        features,
        given.keep_ratio,
        given.epochs,
        labels=_vector(given.labels),
        num_factors=given.num_factors,
        k=given.k,
        sae_options={"progress": sys.stderr.isatty()},
        key=given.key,
    )
    selector.save(given.output)
    _print(
        samples=selector.num_samples,
        realised_ratio=round(selector.realised_ratio, 6),
        autoencoder=str(selector.report),
        output=given.output,
    )


def _select(given: argparse.Namespace) -> None:
    folder = Path(given.source)
    _check_outputs(given)
    selector: Selector
    if folder.is_dir():
        for option in ("keep_ratio", "smallest", "labels"):
            if getattr(given, option):
                raise ValueError(f"--{option.replace('_', '-')} is for scores, and {folder} holds a selector")
        selector = dynamic = DynamicSelector.load(folder)
        epoch = given.epoch or 0
        rows = dynamic.select(epoch)
        scores: Any = dynamic.scores(epoch) if given.parquet else None
        about: dict[str, Any] = {"method": "DynamicSelector", "epoch": epoch}
        about["arguments"] = dynamic.state_dict()["arguments"]
    else:
        if given.epoch is not None:
            raise ValueError(f"--epoch is for a selector's folder, and {folder} is none")
        if given.keep_ratio is None:
            raise ValueError("--keep-ratio must be given with a file of scores")
        scores = _vector(given.source)
        labels = _vector(given.labels)
        selector = ScoreSelector(scores, given.keep_ratio, largest=not given.smallest, labels=labels)
        rows = selector.select(0)
        about = {
            "method": "smallest scores" if given.smallest else "largest scores",
            "keep_ratio": str(given.keep_ratio),
            "by_class": labels is not None,
        }
    selection = files.Selection(rows.cpu(), selector.num_samples, about)
    ids = _vector(given.ids)
    selection.save(given.output)
    if given.parquet:
        table = None if scores is None else torch.as_tensor(scores, device="cpu").numpy()
        files.write_parquet(selection, given.parquet, ids=ids, scores=table)
    if given.datacomp:
        files.write_datacomp(selection, given.datacomp, uids=ids)
    if given.shards:
        files.write_shards(selection, given.shards, index=given.index)
    _print(selected=len(rows), of=selector.num_samples, output=given.output)


def _check_outputs(given: argparse.Namespace) -> None:
    for option, needed in (("datacomp", "ids"), ("shards", "index")):
        if getattr(given, option) and not getattr(given, needed):
            raise ValueError(f"--{needed} must be given with --{option}")


def _explain(given: argparse.Namespace) -> None:
    selector = DynamicSelector.load(given.selector)
    selector.select(given.epoch)
    _print(**selector.explain(given.sample))


def _vector(source: str | None) -> Any:
    """The numbers of FILE or FILE:COLUMN."""
    if source is None:
        return None
    if ":" in source and not Path(source).exists():
        path, column = source.rsplit(":", 1)
        return files.read_vector(path, column=column)
    return files.read_vector(source)


def _fraction(text: str) -> Fraction:
    return Fraction(text)


def _print(**values: Any) -> None:
    print(json.dumps(values, indent=2))


if __name__ == "__main__":
    sys.exit(main())
