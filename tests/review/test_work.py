import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import TypeAdapter

from delineate.review import schema
from delineate.review.actions import MOST_LAYERS, event_of
from delineate.review.runs import mask_of, pack, to_pairs, toggles_of
from delineate.review.work import NotHere, Work, WorkError

SHAPE = (2, 3, 4)
SPACING = (5.0, 1.0, 2.0)
ACTION = TypeAdapter(schema.Action)


class Drawn:
    """An answer whose masks are at hand."""

    info = SimpleNamespace(target="liver", prompt="the liver please")

    def __init__(self, masks):
        self.masks = np.asarray(masks, bool)

    def consensus(self, shape):
        return self.masks.mean(axis=0) >= 0.5

    def proposal(self, k, shape):
        if k >= len(self.masks):
            raise NotHere(f"no proposal {k}")
        return self.masks[k]


ANSWERS = {"a1": Drawn(np.random.default_rng(3).random((3, *SHAPE)) < 0.5)}


class Person:
    """Acts as the server does, and keeps the log as text."""

    def __init__(self):
        self.work, self.log = Work(SHAPE), []

    def act(self, kind, **rest):
        event = event_of(ACTION.validate_python({"kind": kind, **rest}), self.work, ANSWERS, SPACING)
        if event is not None:
            stamped = {"n": len(self.log) + 1, "time": "2026-11-22T10:00:00Z", **event}
            line = json.dumps({k: v for k, v in stamped.items() if v is not None})
            self.log.append(line)
            self.work.apply(json.loads(line))
        return event

    def mask(self, layer="l1"):
        return mask_of(self.work.layer(layer).toggles, SHAPE)

    def paint(self, mask, layer="l1"):
        flips = to_pairs(toggles_of(mask)).tolist()
        return self.act("paint", layer=layer, flips=flips, tool="brush") if flips else None


def state(work):
    layers = [(layer.id, layer.name, layer.colour, layer.content) for layer in work.layers]
    past = [(p.event["n"], p.text, p.gained, p.lost) for p in work.past]
    return layers, past, work.revision, work.next_text("undo"), work.next_text("redo")


@pytest.fixture
def ann():
    person = Person()
    person.act("add_layer", name="liver")
    return person


@given(arrays(bool, SHAPE), arrays(bool, SHAPE))
def test_painting_flips_and_undo_flips_back(one, other):
    ann = Person()
    ann.act("add_layer", name="liver")
    ann.paint(one)
    ann.paint(other)
    np.testing.assert_array_equal(ann.mask(), one ^ other)
    for _ in range(2):
        if one.any() and other.any():
            ann.act("undo")
            np.testing.assert_array_equal(ann.mask(), one)
            ann.act("redo")
            np.testing.assert_array_equal(ann.mask(), one ^ other)


acts = st.one_of(
    st.tuples(st.just("add_layer"), st.fixed_dictionaries({"name": st.sampled_from(["liver", "x"])})),
    st.tuples(st.just("rename_layer"), st.fixed_dictionaries({"name": st.sampled_from(["y", "z"])})),
    st.tuples(st.sampled_from(["remove_layer", "clear", "keep_largest", "fill_holes"]), st.just({})),
    st.tuples(st.just("fill_between"), st.fixed_dictionaries({"axis": st.integers(0, 2)})),
    st.tuples(st.just("smooth"), st.just({"radius_mm": 2.0})),
    st.tuples(
        st.just("pick"),
        st.fixed_dictionaries(
            {
                "proposal": st.none() | st.integers(0, 2),
                "how": st.sampled_from(["replace", "add", "subtract", "intersect"]),
            }
        ),
    ),
    st.tuples(
        st.just("combine"),
        st.fixed_dictionaries(
            {
                "proposals": st.lists(st.integers(0, 2), min_size=1, max_size=3),
                "how": st.sampled_from(["union", "intersection", "majority"]),
            }
        ),
    ),
    st.tuples(st.just("paint"), st.fixed_dictionaries({"flips": st.just([[1, 3], [7, 2]]), "tool": st.just("brush")})),
    st.tuples(st.sampled_from(["undo", "undo", "redo"]), st.just({})),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(acts, st.integers(0, 3)), max_size=25))
def test_the_log_replays_to_the_same_and_everything_can_be_undone_and_done_again(steps):
    ann = Person()
    for (kind, rest), which in steps:
        more = dict(rest)
        layers = [layer.id for layer in ann.work.layers]
        if kind in ("pick", "combine"):
            more |= {"answer": "a1", "layer": layers[which] if which < len(layers) else None}
        elif kind not in ("add_layer", "undo", "redo"):
            if not layers:
                continue
            more["layer"] = layers[which % len(layers)]
        try:
            ann.act(kind, **more)
        except WorkError:
            assert kind in ("undo", "redo")
    assert state(Work(SHAPE, map(json.loads, ann.log))) == state(ann.work)

    layers = state(ann.work)[0]
    steps = 0
    while ann.work.next_text("undo"):
        ann.act("undo")
        steps += 1
    assert ann.work.layers == []
    for _ in range(steps):
        ann.act("redo")
    assert state(ann.work)[0] == layers
    assert state(Work(SHAPE, map(json.loads, ann.log))) == state(ann.work)


def test_a_new_change_forgets_what_could_be_redone(ann):
    mask = np.zeros(SHAPE, bool)
    mask[0, 0, 0] = True
    ann.paint(mask)
    ann.act("undo")
    assert ann.work.next_text("redo") == "liver: brush (+1 -0)"
    ann.paint(~mask)
    assert ann.work.next_text("redo") is None
    with pytest.raises(WorkError, match="there is nothing to redo"):
        ann.act("redo")


def test_a_removed_layer_comes_back_at_its_place_with_all_that_was_in_it(ann):
    ann.act("pick", answer="a1", proposal=0, layer="l1")
    ann.act("add_layer", name="spleen")
    before = state(ann.work)[0]
    ann.act("remove_layer", layer="l1")
    with pytest.raises(NotHere, match="no layer 'l1'"):
        ann.act("clear", layer="l1")
    ann.act("undo")
    assert state(ann.work)[0] == before


@pytest.mark.parametrize(
    ("how", "truth"),
    [
        ("replace", lambda old, new: new),
        ("add", lambda old, new: old | new),
        ("subtract", lambda old, new: old & ~new),
        ("intersect", lambda old, new: old & new),
    ],
)
def test_picking_is_what_its_word_says(ann, how, truth):
    old = np.random.default_rng(1).random(SHAPE) < 0.5
    ann.paint(old)
    event = ann.act("pick", answer="a1", proposal=2, layer="l1", how=how)
    expected = truth(old, ANSWERS["a1"].masks[2])
    np.testing.assert_array_equal(ann.mask(), expected)
    past = ann.work.past[-1]
    assert (past.gained, past.lost) == ((expected & ~old).sum(), (old & ~expected).sum())
    assert event["detail"] == {"answer": "a1", "proposal": 2, "how": how}


def test_a_pick_without_a_layer_makes_one_named_after_the_target(ann):
    ann.act("pick", answer="a1", how="subtract")
    layer = ann.work.layer("l2")
    assert layer.name == "liver 2"  # there is a liver already
    assert layer.colour == 1
    np.testing.assert_array_equal(ann.mask("l2"), ANSWERS["a1"].consensus(SHAPE))
    ann.act("undo")
    assert [one.id for one in ann.work.layers] == ["l1"]


@pytest.mark.parametrize("how", ["union", "intersection", "majority"])
@pytest.mark.parametrize("chosen", [[0], [0, 2], [2, 1, 0, 1]])
def test_combining_counts_votes(ann, how, chosen):
    ann.act("combine", answer="a1", proposals=chosen, how=how, layer="l1")
    several = ANSWERS["a1"].masks[sorted(set(chosen))]
    truth = {"union": several.any(0), "intersection": several.all(0), "majority": several.mean(0) > 0.5}[how]
    np.testing.assert_array_equal(ann.mask(), truth)


def test_what_changes_nothing_is_no_event(ann):
    for kind, rest in [("clear", {}), ("fill_holes", {}), ("smooth", {"radius_mm": 1.0}), ("keep_largest", {})]:
        assert ann.act(kind, layer="l1", **rest) is None
    assert ann.act("rename_layer", layer="l1", name="liver") is None
    assert len(ann.log) == 1


def test_saving_is_no_change_and_is_forgotten_by_the_next(ann):
    layer = ann.work.layer("l1")
    told = {"layer": "l1", "name": "liver", "stem": "liver", "content": layer.content}
    revision = ann.work.revision
    ann.log.append(json.dumps({"n": 2, "time": "t", "kind": "saved", "detail": {"layers": [told]}}))
    ann.work.apply(json.loads(ann.log[-1]))
    assert layer.saved
    assert ann.work.revision == revision
    assert ann.work.next_text("undo") == "new layer liver"
    ann.act("pick", answer="a1", proposal=0, layer="l1")
    assert not ann.work.layer("l1").saved
    ann.act("undo")
    assert ann.work.layer("l1").saved  # as it is on disk again


def test_colours_are_used_again_and_layers_are_bounded():
    ann = Person()
    for number in range(3):
        ann.act("add_layer", name=str(number))
    ann.act("remove_layer", layer="l2")
    ann.act("add_layer", name="again")
    assert [layer.colour for layer in ann.work.layers] == [0, 2, 1]
    for _ in range(MOST_LAYERS - 3):
        ann.act("add_layer", name="more")
    with pytest.raises(WorkError, match=f"{MOST_LAYERS} layers at most"):
        ann.act("add_layer", name="one more")


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "paint", "layer": "l9", "detail": {"tool": "brush"}},
        {"kind": "undo", "of": 5},
        {"kind": "redo", "of": 1},
        {"kind": "dance", "layer": "l1", "detail": {}},
        {"kind": "paint", "layer": "l1"},
        {"kind": "paint", "layer": "l1", "detail": {"tool": "brush"}, "flips": pack(np.array([20, 90], np.uint32))},
    ],
    ids=str,
)
def test_a_log_of_something_else_is_refused(ann, event):
    with pytest.raises(Exception, match=r"does not fit those before|runs must"):
        ann.work.apply({"n": 2, "time": "t", **event})
