"""Splits into training and validation images: seeded, by file, and independent of the order."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e3va import UserError
from e3va.data.coco import ReadOptions, read_coco
from e3va.data.split import restore_split, shared_note, split_coco, split_images

KEYS = [f"{number}.png" for number in range(20)]


def files(keys, positions):
    return {keys[position] for position in positions}


def test_a_tenth_of_twenty_images_is_two():
    train, val = split_images(KEYS, KEYS, 0.1, seed=0)
    assert (len(train), len(val)) == (18, 2)
    assert sorted(train + val) == list(range(20)) and train == sorted(train)


def test_the_seed_decides_and_the_order_does_not():
    _, val = split_images(KEYS, KEYS, 0.25, seed=3)
    backwards = KEYS[::-1]
    assert files(backwards, split_images(backwards, backwards, 0.25, seed=3)[1]) == files(KEYS, val)
    assert len({tuple(split_images(KEYS, KEYS, 0.25, seed=seed)[1]) for seed in range(10)}) > 5


@given(
    st.lists(st.sampled_from(KEYS), min_size=2).filter(lambda keys: len(set(keys)) > 1),
    st.floats(0.001, 0.999),
    st.integers(0, 2**31),
)
def test_a_file_listed_twice_stays_on_one_side(keys, share, seed):
    train, val = split_images(keys, keys, share, seed)
    assert train and val and sorted(train + val) == list(range(len(keys)))
    assert not files(keys, train) & files(keys, val)


def test_one_file_under_two_names_stays_on_one_side():
    for seed in range(8):
        keys = ["a/1.png", "a/./1.png", "a/2.png"]
        train, val = split_images(keys, keys, 0.5, seed)
        assert [0, 1] in (train, val)


def test_a_link_to_a_file_stays_on_its_side(tmp_path):
    names = [f"{number}.png" for number in range(6)]
    for name in names[:3]:
        (tmp_path / name).touch()
    for link, name in zip(names[3:], names[:3], strict=True):
        (tmp_path / link).symlink_to(tmp_path / name)
    paths = [str(tmp_path / name) for name in names]
    for seed in range(8):
        train, val = split_images(names, paths, 0.34, seed)
        assert len(val) == 2 and val[1] == val[0] + 3 and len(train) == 4
        # A split that is restored keeps links that are new since then on the side of their file.
        assert restore_split(names, paths, {names[val[0]]}) == (train, val)


def test_images_on_both_sides_are_counted(tmp_path):
    (tmp_path / "1.png").touch()
    (tmp_path / "link.png").symlink_to("1.png")
    both, other = [str(tmp_path / name) for name in ("1.png", "link.png")], str(tmp_path / "2.png")
    assert "1 of the 2 " in shared_note([both[0]], [both[1], other])
    assert shared_note(both, [other]) is None


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_that_leaves_one_side_empty_is_refused(share):
    with pytest.raises(UserError, match=str(share)):
        split_images(KEYS, KEYS, share, seed=0)


@pytest.mark.parametrize("keys", [[], ["a.png"], ["a.png", "./a.png"]])
def test_fewer_than_two_files_are_refused(keys):
    with pytest.raises(UserError, match=rf"0\.1 of {len(set(keys[:1]))} "):
        split_images(keys, keys, 0.1, seed=0)


def test_annotated_images_are_split_with_their_objects(drawn):
    data = read_coco(drawn.json, drawn.images)
    train, val = split_coco(data, 1 / 3, 0, ReadOptions(training=True))
    assert (len(train.images), len(val.images)) == (4, 2)
    assert {i["id"] for i in train.images} | {i["id"] for i in val.images} == set(range(1, 7))
    for part in (train, val):
        assert list(part.annotations) == [image["id"] for image in part.images]
        assert all(part.annotations[i] == data.annotations[i] for i in part.annotations)
        assert part.categories == data.categories
    assert len(data.images) == 6  # the whole is unchanged


def test_validation_keeps_images_without_objects_and_training_does_not(drawn):
    kept = drawn.data["annotations"][0]["image_id"]
    other = next(a["image_id"] for a in drawn.data["annotations"] if a["image_id"] != kept)
    drawn.data["annotations"] = [
        a for a in drawn.data["annotations"] if a["image_id"] in (kept, other)
    ]
    drawn.json.write_text(json.dumps(drawn.data))
    seeds = (read_split(drawn, seed) for seed in range(50))
    train, val = next(parts for parts in seeds if parts)
    assert len(train.images) == 1 and len(val.images) == 3
    assert sum(map(bool, val.annotations.values())) == 1


def read_split(drawn, seed):
    try:
        return split_coco(read_coco(drawn.json, drawn.images), 0.5, seed, ReadOptions())
    except UserError as error:  # all objects are on one side
        assert "no object" in str(error)
