"""A fingerprint depends on the weights, not on their file, type or order."""

import hashlib

import numpy as np
import pytest
import torch

from e3va import E3VABackbone, SwinTrunk
from e3va.weights.origin import TrunkOrigin, fingerprint, origin_of, round_as


def by_numpy(state):
    """Compute the fingerprint with numpy."""
    text = b""
    for name in sorted(state):
        value = np.asarray(state[name].float().numpy(), dtype="<f4")
        text += f"{name} {list(value.shape)}\n".encode() + value.tobytes(order="C")
    return hashlib.sha256(text).hexdigest()


def test_a_fingerprint_depends_only_on_names_shapes_and_numbers():
    state = {"b": torch.randn(3, 4).half().float(), "a": torch.tensor([1.0, -0.0, 3.5])}
    expected = by_numpy(state)
    assert fingerprint(state) == expected
    assert fingerprint(dict(reversed(state.items()))) == expected
    assert fingerprint({k: v.half() for k, v in state.items()}) == expected
    assert fingerprint({k: v.double() for k, v in state.items()}) == expected
    strided = {"a": state["a"], "b": state["b"].t().contiguous().t()}
    assert not strided["b"].is_contiguous() and fingerprint(strided) == expected
    assert fingerprint({"a": state["a"], "c": state["b"]}) != expected
    assert fingerprint({"a": state["a"], "b": state["b"].reshape(4, 3)}) != expected
    changed = state["b"].clone()
    changed[2, 3] = torch.nextafter(changed[2, 3], torch.tensor(9.0))
    assert fingerprint({"a": state["a"], "b": changed}) != expected


@pytest.mark.parametrize(
    ("memory", "mixed", "precision", "stored"),
    [
        ("standard", False, "auto", "fp32"),
        ("standard", True, "bf16", "bf16"),
        ("standard", True, "fp16", "fp16"),
        ("lean", False, "auto", "int8 fp32"),
        ("lean", True, "bf16", "int8 bf16"),
        ("plain", True, "auto", "fp32"),
    ],
)
def test_rounding_keeps_the_origin_and_can_be_repeated(memory, mixed, precision, stored):
    torch.manual_seed(3)
    backbone = E3VABackbone("swin_nano", memory=memory, trunk_precision=precision)
    loaded = {k: v.clone() for k, v in backbone.trunk.state_dict().items()}
    backbone.prepare(mixed)
    origin = origin_of(backbone.trunk)
    assert origin == TrunkOrigin("unknown", by_numpy(loaded), stored)
    backbone.prepare(mixed)
    assert origin_of(backbone.trunk) == origin
    other = SwinTrunk("swin_nano")
    other.load_state_dict(loaded)
    round_as(other, stored)
    ours, theirs = backbone.trunk.state_dict(), other.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in ours)


@pytest.mark.parametrize("second", [("standard", "bf16"), ("lean", "fp16"), ("lean", "fp32")])
@pytest.mark.parametrize("first", [("lean", "bf16"), ("standard", "bf16")])
def test_a_training_that_resumes_with_another_memory_rounds_again(first, second):
    pretrained = SwinTrunk("swin_nano").state_dict()
    state, origin = pretrained, TrunkOrigin("swin.pth", "0" * 64)
    for memory, precision in (first, second):
        backbone = E3VABackbone("swin_nano", memory=memory, trunk_precision=precision)
        backbone.trunk.load_state_dict(state)
        backbone.trunk.origin = origin
        backbone.prepare(mixed=True)
        state, origin = backbone.trunk.state_dict(), backbone.trunk.origin
    other = SwinTrunk("swin_nano")
    other.load_state_dict(pretrained)
    round_as(other, origin.stored)
    again = other.state_dict()
    assert all(torch.equal(state[k], again[k]) for k in state), origin.stored


def test_a_wider_type_does_not_undo_a_rounding():
    origin = TrunkOrigin("file", "0" * 64, "int8 bf16")
    assert origin.rounded(torch.float32) == origin == origin.rounded(torch.bfloat16, int8=True)
    assert origin.rounded(torch.float16).stored == "int8 bf16, fp16"
    assert TrunkOrigin("file", "0" * 64).rounded(torch.float32, int8=True).stored == "int8 fp32"
