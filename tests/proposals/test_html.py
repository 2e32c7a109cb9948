"""What notebooks show of proposals."""

import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from delineate.prompts.prompt import Prompt
from delineate.proposals.html import MOST_BYTES
from delineate.proposals.proposals import Proposals
from delineate.proposals.target import Outcome, TargetProposals
from delineate.scans.arrays import scan_of

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.seen, self.said = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said += data


def some(targets: int = 1, *, name: str = "liver", flat: bool = False) -> Proposals:
    rng = np.random.default_rng(0)
    if flat:
        scan = scan_of(rng.integers(0, 255, (60, 50, 3)).astype(np.uint8))
    else:
        scan = scan_of(rng.normal(0, 100, (40, 50, 6)), (1, 2, 5), modality="CT")
    drawn = np.zeros((3, *scan.shape), np.float32)
    drawn[0, ..., 10:20, 2:4] = 0.9
    drawn[1, ..., 10:30, 2:4] = 0.8
    drawn[2, ..., 10:30, 2:5] = 0.8
    one = TargetProposals(Prompt(name), name, Outcome.FOUND, 0.9, drawn)
    return Proposals(scan, (one,) * targets, (name,))


def pictures(page: str) -> list[Image.Image]:
    return [Image.open(BytesIO(b64decode(data))) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)]


@pytest.mark.parametrize("flat", [False, True])
def test_the_outcome_the_volume_and_pictures_are_there(flat):
    proposals = some(flat=flat)
    page = proposals._repr_html_()
    tags = Tags(page)
    assert tags.open == []
    size = proposals["liver"].size()
    assert f"liver: found, {size if flat else size / 100:,.0f} {'pixels' if flat else 'ml'} (3 proposals" in tags.said
    shown = pictures(page)
    assert [tag for tag, _ in tags.seen].count("img") == len(shown) >= 3
    assert all(image.format == "PNG" and max(image.size) == 240 for image in shown)
    outlined = np.array(shown[0].convert("RGB"))
    assert (outlined == (0xD5, 0x5E, 0x00)).all(axis=-1).sum() > 20  # the consensus, in its own colour on any picture
    doubt = np.array(shown[-1].convert("L"))
    assert doubt.max() > 100


def test_the_pictures_have_the_shape_of_the_slice_in_mm():
    (first, *_) = pictures(some()._repr_html_())
    assert first.size == (96, 240)  # 40 x 1 mm wide, 50 x 2 mm tall


def test_what_others_wrote_is_shown_as_text():
    target = TargetProposals(Prompt(EVIL), None, Outcome.UNKNOWN_PROMPT, nearest=(EVIL,), said=EVIL, misfit=EVIL)
    proposals = some(name=EVIL)
    page = Proposals(proposals.scan, (*proposals.targets, target))._repr_html_()
    tags = Tags(page)
    assert {tag for tag, _ in tags.seen} <= {"div", "p", "b", "br", "span", "figure", "figcaption", "img"}
    assert all(set(attributes) <= {"style", "alt", "width", "src"} for _, attributes in tags.seen)
    assert all(a["src"].startswith("data:image/png;base64,") for tag, a in tags.seen if tag == "img")
    assert tags.said.count(EVIL) == 5


def test_a_page_stays_small_whatever_is_asked():
    many = some(30)
    page = many._repr_html_()
    assert len(page) <= MOST_BYTES
    assert Tags(page).open == []
    assert "(no room for pictures)" in page or "more targets than there is room for" in page
    long = TargetProposals(Prompt("x"), None, Outcome.UNKNOWN_PROMPT, said="<" * 20_000)
    assert len(Proposals(many.scan, (long,) * 300)._repr_html_()) <= MOST_BYTES
    assert "Nothing was asked" in Proposals(many.scan, ())._repr_html_()


def test_a_terminal_shows_a_line_a_target():
    assert repr(some()) == (
        "Proposals of Scan(40 x 50 x 6 voxels of 1 x 2 x 5 mm, RAS, CT):\n"
        "  TargetProposals('liver': found, score 0.90, 3 proposals)"
    )
    assert repr(Proposals(some().scan, ())).endswith(": nothing was asked")
