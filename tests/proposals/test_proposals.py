import json

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from delineate.prompts.colours import colour_of
from delineate.prompts.prompt import Prompt
from delineate.proposals.fusion import FUSIONS
from delineate.proposals.proposals import Proposals
from delineate.proposals.target import Outcome, TargetProposals, presence
from delineate.scans.geometry import FLAT_AFFINE
from delineate.scans.reading import read_labels
from delineate.scans.scan import Scan

VOLUME = Scan(np.zeros((4, 5, 6), np.float32), np.diag([2.0, 2, 3, 1]))
FLAT = Scan(np.zeros((1, 20, 30), np.float32), FLAT_AFFINE)


def target(name, *proposals, outcome=Outcome.FOUND, asked=None):
    probabilities = np.stack(proposals).astype(np.float16)
    return TargetProposals(Prompt(asked or name), name, outcome, presence(probabilities.mean(0)), probabilities)


def box(value, where=..., shape=VOLUME.shape):
    out = np.zeros(shape)
    out[where] = value
    return out


UNKNOWN = TargetProposals(Prompt("livr3"), None, Outcome.UNKNOWN_PROMPT, nearest=("liver",))
LEFT = np.s_[:2]
MIDDLE = np.s_[1:3]


def test_the_mean_of_proposals_and_where_it_passes_one_half():
    t = target("liver", box(1.0, LEFT), box(1.0, LEFT), box(1.0, MIDDLE))
    np.testing.assert_allclose(t.probability()[:, 0, 0], [2 / 3, 1, 1 / 3, 0], atol=1e-6)
    assert t.consensus()[:, 0, 0].tolist() == [True, True, False, False]
    assert len(t) == 3
    assert t.choose(2)[:, 0, 0].tolist() == [False, True, True, False]


@pytest.mark.parametrize("how", FUSIONS)
def test_proposals_that_agree_have_themselves_as_every_consensus(how):
    mask = box(1.0, LEFT)
    assert np.array_equal(target("liver", mask, mask, mask).consensus(how), mask > 0)


@pytest.mark.parametrize("how", FUSIONS)
def test_empty_proposals_have_an_empty_consensus_and_no_doubt(how):
    t = target("liver", box(0.0), box(0.0))
    assert not t.consensus(how).any()
    assert not t.disagreement().any()
    assert t.score == 0.0


def test_an_unknown_consensus_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="mean, majority, staple; got 'median'"):
        target("liver", box(1.0, LEFT)).consensus("median")


@pytest.mark.parametrize("k", [-1, 2])
def test_a_proposal_that_is_not_there_cannot_be_chosen(k):
    with pytest.raises(ValueError, match=f"proposals 0 to 1, not {k}"):
        target("liver", box(1.0), box(1.0)).choose(k)


def test_doubt_is_the_entropy_in_bits():
    t = target("liver", box(1.0, LEFT), box(1.0, MIDDLE))
    assert t.disagreement()[:, 0, 0] == pytest.approx([1, 0, 1, 0])
    quarter = target("liver", np.full(VOLUME.shape, 0.25))
    assert quarter.disagreement() == pytest.approx(np.full(VOLUME.shape, 0.8113), abs=1e-3)


def test_presence_is_the_mean_of_the_surest_tenth():
    mean = np.zeros(1000)
    mean[:200] = 0.6
    mean[:20] = 0.9
    assert presence(mean) == pytest.approx(0.9)
    mean[:10] = 0.8
    assert presence(mean) == pytest.approx(0.85)


@pytest.mark.parametrize(("inside", "expected"), [([], 0.0), ([0.7], 0.7), ([0.9] * 4 + [0.5] * 4, 0.7)])
def test_presence_of_small_targets_is_over_their_surest_eight_voxels(inside, expected):
    assert presence(np.array([*inside, *[0.4] * 50])) == pytest.approx(expected)


def test_a_voxel_claimed_twice_goes_to_the_surer_and_at_a_tie_to_the_first():
    liver = target("liver", np.maximum(box(0.9, LEFT), box(0.6, MIDDLE)))
    spleen = target("spleen", np.maximum(box(0.75, MIDDLE), box(0.6, np.s_[2:])))
    labels, ids = Proposals(VOLUME, (liver, spleen)).label_map()
    assert ids == {"liver": 1, "spleen": 2}
    assert labels[:, 0, 0].tolist() == [1, 1, 2, 2]
    tied = Proposals(VOLUME, (target("a", box(0.75)), target("b", box(0.75))))
    assert (tied.label_map()[0] == 1).all()


KNOWN = ("spleen", "right kidney", "left kidney", "liver")


def test_a_number_is_the_place_among_the_names_of_the_model_whatever_is_asked_and_found():
    absent = target("spleen", box(0.55), outcome=Outcome.LIKELY_ABSENT)
    liver, kidney = target("liver", box(0.9, LEFT)), target("left kidney", box(0.9, np.s_[3:]))
    for targets in ((absent, UNKNOWN, liver), (liver, absent), (kidney, liver), (liver,)):
        labels, ids = Proposals(VOLUME, targets, KNOWN).label_map()
        assert ids == {t.name: 1 + KNOWN.index(t.name) for t in targets if t.name}
        assert set(np.unique(labels)) == {0, 4} | ({3} if kidney in targets else set())
        assert (labels[:2] == 4).all()


def test_what_is_not_found_is_not_in_the_map_and_has_its_number():
    absent = target("spleen", box(0.55), outcome=Outcome.LIKELY_ABSENT)
    labels, ids = Proposals(VOLUME, (absent, UNKNOWN), KNOWN).label_map()
    assert not labels.any()
    assert ids == {"spleen": 1}


def test_names_that_the_model_does_not_know_come_behind_its_own():
    asked = (target("left thumb", box(0.9, LEFT)), target("liver", box(0.9, np.s_[3:])))
    labels, ids = Proposals(VOLUME, asked, KNOWN).label_map()
    assert ids == {"left thumb": 5, "liver": 4}
    assert set(np.unique(labels)) == {0, 4, 5}


def test_a_target_asked_twice_has_one_number():
    first, second = target("liver", box(0.7, LEFT)), target("liver", box(0.9, MIDDLE), asked="the whole hepatic organ")
    labels, ids = Proposals(VOLUME, (first, second), KNOWN).label_map()
    assert ids == {"liver": 4}
    assert labels[:, 0, 0].tolist() == [4, 4, 4, 0]


@pytest.mark.parametrize(("names", "dtype"), [(255, np.uint8), (256, np.uint16)])
def test_a_map_holds_the_largest_number_of_the_model_whatever_is_in_it(names, dtype, tmp_path):
    known = tuple(f"organ {n}" for n in range(names))
    proposals = Proposals(VOLUME, (target("organ 0", box(0.9, LEFT)),), known)
    assert proposals.label_map()[0].dtype == dtype
    proposals.save(tmp_path)
    assert nibabel.load(tmp_path / "labels.nii.gz").get_data_dtype() == dtype


def test_the_table_beside_the_map_says_what_its_numbers_are_and_what_became_of_each(tmp_path):
    absent = target("spleen", box(0.55), outcome=Outcome.LIKELY_ABSENT)
    under, liver = target("right kidney", box(0.6, LEFT)), target("liver", box(0.9, LEFT))
    twice = target("spleen", box(0.9, np.s_[3:]), asked="lien")
    Proposals(VOLUME, (absent, UNKNOWN, under, liver, twice), KNOWN).save(tmp_path)
    told = json.loads((tmp_path / "labels.json").read_text())
    assert told["labels"] == {"background": 0, "spleen": 1, "right kidney": 2, "left kidney": 3, "liver": 4}
    assert told["colours"] == {name: colour_of(name) for name in KNOWN}
    assert told["targets"] == [
        {"id": 1, "name": "spleen", "asked": ["spleen", "lien"], "outcome": "found", "in_map": True},
        {"id": None, "name": None, "asked": ["livr3"], "outcome": "unknown prompt", "in_map": False},
        {"id": 2, "name": "right kidney", "asked": ["right kidney"], "outcome": "found", "in_map": False},
        {"id": 4, "name": "liver", "asked": ["liver"], "outcome": "found", "in_map": True},
    ]
    present = set(np.unique(read_labels(tmp_path / "labels.nii.gz").voxels)) - {0}
    assert present == {one["id"] for one in told["targets"] if one["in_map"]}


def test_there_is_a_map_in_every_case_also_where_nothing_is_found(tmp_path):
    Proposals(VOLUME, (UNKNOWN,), KNOWN).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"labels.nii.gz", "labels.json"}
    assert not read_labels(tmp_path / "labels.nii.gz").voxels.any()


def test_a_target_called_as_the_map_is_keeps_a_file_of_its_own(tmp_path):
    Proposals(VOLUME, (target("labels", box(0.9, LEFT)),), ("liver", "labels")).save(tmp_path)
    assert set(np.unique(read_labels(tmp_path / "labels_2.nii.gz").voxels)) == {0, 1}
    assert set(np.unique(read_labels(tmp_path / "labels.nii.gz").voxels)) == {0, 2}


def test_targets_are_found_by_name_and_by_the_words_asked():
    t = target("liver", box(1.0), asked="hepatic region")
    proposals = Proposals(VOLUME, (t, UNKNOWN))
    assert proposals["liver"] is proposals["hepatic region"] is t
    assert proposals["livr3"] is UNKNOWN
    with pytest.raises(KeyError, match="'aorta' was not asked; asked were: hepatic region, livr3"):
        proposals["aorta"]


def test_saved_masks_come_back_voxel_by_voxel_on_the_scan_s_grid(tmp_path):
    liver, spleen = target("liver", box(0.9, LEFT), box(0.9, MIDDLE)), target("right kidney", box(0.8, np.s_[3:]))
    proposals = Proposals(VOLUME, (liver, UNKNOWN, spleen))
    written = proposals.save(tmp_path, maps=True)
    assert sorted(p.name for p in written) == sorted(p.name for p in tmp_path.iterdir())
    assert {p.name for p in written} == {
        *(f"liver{end}.nii.gz" for end in ("", "_proposal_00", "_proposal_01", "_probability", "_doubt")),
        *(f"right_kidney{end}.nii.gz" for end in ("", "_proposal_00", "_probability", "_doubt")),
        *("labels.nii.gz", "labels.json"),
    }
    for file, mask in (("liver", liver.consensus()), ("liver_proposal_01", liver.choose(1))):
        back = read_labels(tmp_path / f"{file}.nii.gz")
        assert np.array_equal(back.voxels.astype(bool), mask)
        np.testing.assert_allclose(back.affine, VOLUME.affine)
    assert np.array_equal(read_labels(tmp_path / "labels.nii.gz").voxels, proposals.label_map()[0])
    stored = nibabel.load(tmp_path / "liver_probability.nii.gz").get_fdata()
    np.testing.assert_allclose(stored, liver.probability(), atol=1e-6)


def test_flat_images_are_saved_as_black_and_white_png(tmp_path):
    mask = box(1.0, np.s_[:, 3:9], shape=FLAT.shape)
    Proposals(FLAT, (target("polyp", mask),)).save(tmp_path)
    files = {"polyp.png", "polyp_proposal_00.png", "labels.png", "labels.json"}
    assert {p.name for p in tmp_path.iterdir()} == files
    assert np.array_equal(np.asarray(Image.open(tmp_path / "labels.png")), mask[0].astype(np.uint8))
    picture = np.asarray(Image.open(tmp_path / "polyp.png"))
    assert np.array_equal(picture, (mask[0] * 255).astype(np.uint8))


def test_no_prompt_can_write_outside_the_folder(tmp_path):
    evil = target("../../evil/name", box(1.0))
    written = Proposals(VOLUME, (evil,)).save(tmp_path / "in")
    assert {p.parent for p in written} == {tmp_path / "in"}
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_target_asked_twice_is_saved_twice(tmp_path):
    twice = (target("liver", box(1.0, LEFT)), target("liver", box(1.0, MIDDLE), asked="hepatic organ"))
    Proposals(VOLUME, twice).save(tmp_path)
    one, two = (read_labels(tmp_path / f"{n}.nii.gz").voxels.astype(bool) for n in ("liver", "liver_2"))
    assert np.array_equal(one, box(1.0, LEFT) > 0)
    assert np.array_equal(two, box(1.0, MIDDLE) > 0)


# doubt, one number


@pytest.mark.parametrize("drawn", [[box(1.0, LEFT)], [box(1.0, LEFT)] * 3, [box(1.0)]])
def test_a_certain_mask_leaves_no_doubt(drawn):
    assert target("liver", *drawn).doubt == 0


@pytest.mark.parametrize("drawn", [[box(0.0)], [box(0.0)] * 3, [box(0.4, np.s_[0, 0, :2])]])
def test_nothing_leaves_no_doubt(drawn):
    """Less than one voxel in all is nothing."""
    assert target("liver", *drawn).doubt == 0


@pytest.mark.parametrize("q", [0.5, 0.625, 0.75, 0.9375, 1.0])
def test_doubt_of_one_probability_within_a_mask_has_its_closed_form(q):
    """1 - 2nq / (n + nq), whatever the number of voxels n and of proposals."""
    for drawn in ([box(q, LEFT)], [box(q)] * 4, [box(q, np.s_[0, 0, 0])]):
        assert target("liver", *drawn).doubt == pytest.approx((1 - q) / (1 + q), abs=1e-12)


def test_likely_voxels_that_are_no_consensus_are_all_doubt():
    assert target("liver", box(0.375)).doubt == 1
    both = np.maximum(box(0.25), box(1.0, np.s_[0]))  # 30 voxels certain, 90 at a quarter
    assert target("liver", both).doubt == pytest.approx(1 - 2 * 30 / (30 + 30 + 22.5))


def test_proposals_that_disagree_are_as_doubtful_as_their_mean():
    apart = target("liver", box(1.0, LEFT), box(1.0, MIDDLE))  # one slab of both, two of one of them
    assert apart.doubt == pytest.approx(1 - 2 * 2 / (3 + 2))
    assert apart.doubt == target("liver", apart.probability()).doubt


@given(arrays(np.float16, (2, 2, 3, 4), elements=st.floats(0, 1, width=16)))
@settings(deadline=None, max_examples=100)
def test_doubt_is_a_share_and_one_minus_the_expected_overlap(probabilities):
    t = target("liver", *probabilities)
    p, mask = t.probability().astype(np.float64), t.consensus()
    assert 0 <= t.doubt <= 1
    if mask.any():
        assert t.doubt == pytest.approx(1 - 2 * p[mask].sum() / (mask.sum() + p.sum()), abs=1e-6)


def test_an_unknown_prompt_has_no_doubt_to_tell():
    with pytest.raises(ValueError, match="'livr3': unknown prompt"):
        _ = UNKNOWN.doubt
