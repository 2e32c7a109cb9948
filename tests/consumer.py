"""A program that uses the package: pyright checks that it sees types, not `Any`. Nothing here runs."""

from typing import assert_type

import numpy as np

import delineate
from delineate import (
    DelineateError,
    Outcome,
    Prompt,
    Proposals,
    Scan,
    Segmenter,
    TargetProposals,
    Vocabulary,
    open_dataset,
    read_scan,
)
from delineate.data.dataset import Dataset


def use() -> None:
    """Every public name, and what comes of it."""
    scan = assert_type(read_scan("ct.nii.gz", modality="CT"), Scan)
    segmenter = assert_type(Segmenter.load(), Segmenter)
    assert_type(Segmenter.from_pretrained("hf://organisation/name"), Segmenter)
    assert_type(segmenter.vocabulary, Vocabulary)
    proposals = assert_type(segmenter(scan, ["liver", Prompt("spleen")], n=4), Proposals)
    assert_type(delineate.segment(scan.voxels, scan.affine, "liver"), Proposals)
    liver = assert_type(proposals["liver"], TargetProposals)
    assert_type(liver.consensus(), np.ndarray)
    assert_type(liver.outcome, Outcome)
    assert_type(open_dataset("data"), Dataset)
    assert_type(delineate.__version__, str)
    assert_type(DelineateError("x").exit_code, int)
