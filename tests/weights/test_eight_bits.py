"""Files with 8-bit matrices: their errors and sizes, and files that are refused."""

import pytest
import torch
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file

from e3va import SwinTrunk, UserError
from e3va.swin.storage import store_in_8_bits
from e3va.weights.checkpoint import load_file, load_safetensors
from e3va.weights.eight_bits import METADATA, pack
from e3va.weights.loading import load_trunk
from e3va.weights.origin import fingerprint

MATRIX = torch.tensor([[1.27, -0.5, 0.014], [0.0, 0.0, 0.0], [-25.4, 0.29, 12.7]])
PAIR = {
    "a.weight.int8": torch.tensor([[1, -127], [5, 0]], dtype=torch.int8),
    "a.weight.int8_scale": torch.tensor([0.5, 2.0]),
    "a.bias": torch.tensor([0.1, -3.0]).half(),
}


def written(tmp_path, tensors, metadata=METADATA):
    path = tmp_path / "trunk.safetensors"
    save_file(tensors, path, metadata=metadata)
    return path


def nano() -> SwinTrunk:
    torch.manual_seed(0)
    trunk = SwinTrunk("swin_nano")
    for parameter in trunk.parameters():
        parameter.data.normal_(std=0.1)
    return trunk


def test_a_matrix_computed_by_hand(tmp_path):
    """The scales are 1.27 / 127 = 0.01 and 25.4 / 127 = 0.2."""
    packed = pack({"m.weight": MATRIX})
    assert packed["m.weight.int8"].tolist() == [[127, -50, 1], [0, 0, 0], [-127, 1, 64]]
    torch.testing.assert_close(packed["m.weight.int8_scale"][[0, 2]], torch.tensor([0.01, 0.2]))
    found = load_file(written(tmp_path, packed))
    expected = torch.tensor([[1.27, -0.5, 0.01], [0.0, 0.0, 0.0], [-25.4, 0.2, 12.8]])
    assert found.keys() == {"m.weight"}
    torch.testing.assert_close(found["m.weight"], expected)


def test_stored_values_times_scales(tmp_path):
    tensors, metadata = load_safetensors(written(tmp_path, PAIR, {**METADATA, "preset": "x"}))
    assert tensors["a.weight"].tolist() == [[0.5, -63.5], [10.0, 0.0]]
    assert torch.equal(tensors["a.bias"], PAIR["a.bias"]) and metadata["preset"] == "x"


def test_every_row_is_within_half_a_step_and_all_else_is_float16(tmp_path):
    state = nano().state_dict()
    path = written(tmp_path, pack(state))
    found = load_file(path)
    assert found.keys() == state.keys()
    matrices = [n for n in state if n.endswith(("qkv.weight", "proj.weight", "reduction.weight"))]
    matrices += [n for n in state if n.endswith(("fc1.weight", "fc2.weight"))]
    matrices.remove("patch_embed.proj.weight")  # a convolution
    assert len(matrices) == 4 * 8 + 3
    for name, value in state.items():
        if name in matrices:
            step = value.abs().amax(1, keepdim=True) / 127
            assert ((found[name] - value).abs() <= 0.5001 * step).all(), name
            assert not torch.equal(found[name], value)
        else:
            assert torch.equal(found[name], value.half()), name
    numbers = sum(v.numel() for v in state.values())
    assert path.stat().st_size < 1.5 * numbers + 25_000  # names and shapes take the rest


def test_the_trunk_of_such_a_file_has_one_fingerprint_however_it_is_stored(tmp_path):
    """Also where memory "lean" rounds its matrices to 8 bits once more."""
    path = written(tmp_path, pack(nano().state_dict()))
    trunk = SwinTrunk("swin_nano")
    load_trunk(trunk, load_file(path), str(path))
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    assert trunk.origin.fingerprint == fingerprint(load_file(path)) == fingerprint(before)
    store_in_8_bits(trunk)
    assert all(torch.equal(v, before[k]) for k, v in trunk.state_dict().items())
    again = written(tmp_path, pack(before))
    assert fingerprint(load_file(again)) == trunk.origin.fingerprint


def test_files_of_other_programs_are_not_changed(tmp_path):
    found = load_file(written(tmp_path, PAIR, {"e3va": "x"}))
    assert found.keys() == PAIR.keys()
    assert all(torch.equal(found[n], v) and found[n].dtype is v.dtype for n, v in PAIR.items())


def test_other_programs_do_not_take_the_integers_for_weights(tmp_path):
    names = load_tensors(written(tmp_path, pack({"m.weight": MATRIX}))).keys()
    assert names == {"m.weight.int8", "m.weight.int8_scale"}


NAN = torch.tensor([0.5, torch.nan])
INT8, SCALE = "a.weight.int8", "a.weight.int8_scale"
BROKEN = {
    "no scales": ({SCALE: None}, [INT8, SCALE]),
    "no matrix": ({INT8: None}, [INT8, SCALE]),
    "too few scales": ({SCALE: torch.ones(1)}, [SCALE, "[1]", "[2]"]),
    "a scale for each value": ({SCALE: torch.ones(2, 2)}, [SCALE, "[2, 2]", "[2]"]),
    "scales in float16": ({SCALE: torch.ones(2).half()}, [SCALE, "float16", "float32"]),
    "an infinite scale": ({SCALE: NAN}, [SCALE]),
    "a negative scale": ({SCALE: -torch.ones(2)}, [SCALE]),
    "bytes": ({INT8: torch.ones(2, 2).byte()}, [INT8, "uint8", "int8"]),
    "floats with scales": ({INT8: torch.ones(2, 2)}, [INT8, "float32", "int8"]),
    "one dimension": ({INT8: torch.ones(2).char()}, [INT8, "[2]"]),
    "no dimension": ({INT8: torch.tensor(3).char()}, [INT8, "[]"]),
    "the matrix twice": ({"a.weight": torch.ones(2, 2)}, [INT8, "a.weight"]),
    "integers": ({"a.index": torch.ones(2).long()}, ["a.index", "int64"]),
    "a scale of a scale": ({f"{SCALE}.int8_scale": NAN}, [f"{SCALE}.int8_scale"]),
}


@pytest.mark.parametrize(("changes", "values"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_refused_in_one_line(changes, values, tmp_path):
    tensors = {name: value for name, value in {**PAIR, **changes}.items() if value is not None}
    path = written(tmp_path, tensors)
    with pytest.raises(UserError) as caught:
        load_file(path)
    assert all(text in str(caught.value) for text in [str(path), *values])
    assert "\n" not in str(caught.value)


def test_another_kind_of_storage_is_refused(tmp_path):
    path = written(tmp_path, PAIR, dict.fromkeys(METADATA, "int4"))
    with pytest.raises(UserError, match="trunk.safetensors .*'int4'"):
        load_file(path)


@pytest.mark.parametrize("name", ["a.weight", "a.bias"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e6])
def test_values_that_are_not_finite_are_not_stored(name, value):
    with pytest.raises(UserError, match=name):
        pack({"b.bias": torch.ones(1), name: torch.full((2, 2), value)})
