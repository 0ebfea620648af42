"""Several adapters share one trunk; a switch between them is one call."""

import pytest
import torch

from e3va import E3VABackbone, SwinTrunk, UserError
from e3va.adapter_files.adapter_set import AdapterSet
from e3va.adapter_files.files import save_adapter

from .conftest import Segmenter, trained


def storages(models):
    """Bytes of all tensors of several models, each storage once."""
    held = {}
    for model in models:
        for value in (*model.parameters(), *model.buffers()):
            held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(held.values())


def test_several_adapters_share_one_trunk(pretrained, tmp_path):
    trunk = SwinTrunk("swin_nano")
    trunk.load_state_dict(pretrained)
    models = AdapterSet(
        trunk,
        lambda config, _, shared: Segmenter(len(config.classes), trunk=shared),
        framework="own",
    )
    with pytest.raises(UserError, match="no adapter is loaded"):
        models(torch.rand(1, 3, 40, 40))
    separate = {}
    for seed, name in enumerate(("two", "three", "four")):
        model = trained(pretrained, seed, classes=seed + 2)
        folder = tmp_path / name
        save_adapter(model, folder, classes=tuple("abcd"[: seed + 2]))
        separate[name] = model
        models.load_adapter(name, folder)
    assert models.names == ["two", "three", "four"] and models.active == "two"
    images = torch.rand(1, 3, 40, 52)
    for name in ("four", "two", "three", "two"):
        assert models.set_adapter(name) is models.model and len(models.config.classes) == len(
            models(images)[0]
        )
        assert torch.equal(models(images), separate[name](images))
    together = storages(models.set_adapter(name) for name in models.names)
    alone = storages(separate.values())
    trunk_bytes = sum(v.numel() * v.element_size() for v in trunk.state_dict().values())
    assert trunk_bytes > alone / 6
    index_bytes = storages([separate["two"].backbone.bottom_up.trunk]) - trunk_bytes
    assert alone - together == 2 * (trunk_bytes + index_bytes)
    with pytest.raises(UserError, match="no adapter 'five' is loaded: expected one of two, three"):
        models.set_adapter("five")
    models.set_adapter("three")
    models.delete_adapter("two")
    assert models.active == "three"
    models.delete_adapter("three")
    assert models.active == "four"


def test_an_adapter_of_another_trunk_is_refused(pretrained, saved):
    models = AdapterSet(SwinTrunk("swin_nano"), lambda config, _, shared: Segmenter(trunk=shared))
    with pytest.raises(UserError, match="fingerprint"):
        models.load_adapter("nuts", saved[1])
    assert models.names == [] and models.active is None
    models.load_adapter("nuts", saved[1], any_trunk=True)
    assert models.active == "nuts"


def test_trunks_that_cannot_be_shared(pretrained):
    with pytest.raises(UserError, match="'full'"):
        E3VABackbone("swin_nano", "full", trunk=SwinTrunk("swin_nano"))
    with pytest.raises(UserError, match="frozen"):
        E3VABackbone("swin_nano", trunk=SwinTrunk("swin_nano", frozen=False))
    with pytest.raises(UserError, match="embed_dim 48.*embed_dim 16"):
        E3VABackbone("swin_nano", trunk=SwinTrunk("swin_mini"))
