"""Model configs: presets, Hugging Face files, and every invalid field."""

import dataclasses
import json

import pytest

from jax_sa.cache_schema import (
    AttentionType,
    DSV4Config,
    LayerSpec,
    dsv4_flash,
    dsv4_pro,
    from_hf,
    layer_schedule,
)

SWA, CSA, HCA = AttentionType
NAMES = {0: SWA.value, 4: CSA.value, 128: HCA.value}
PRO_RATIOS = [128, 128] + [4, 128] * 29 + [4, 0]
FLASH_RATIOS = [0, 0] + [4, 128] * 20 + [4, 0]


def hf_dict(ratios=FLASH_RATIOS, **changes):
    """What the published config.json says about caches."""
    return {
        "model_type": "deepseek_v4",
        "num_hidden_layers": len(ratios) - 1,
        "num_nextn_predict_layers": 1,
        "compress_ratios": list(ratios),
        "head_dim": 512,
        "qk_rope_head_dim": 64,
        "index_head_dim": 128,
        "sliding_window": 128,
        "max_position_embeddings": 1_048_576,
    } | changes


def without(hf, *names):
    return {name: value for name, value in hf.items() if name not in names}


@pytest.mark.parametrize(
    ("config", "layers", "swa", "csa", "hca"),
    [(dsv4_pro(), 61, 0, 30, 31), (dsv4_flash(), 43, 2, 21, 20)],
    ids=["pro", "flash"],
)
def test_presets_have_the_published_layers(config, layers, swa, csa, hca):
    assert len(config.layer_types) == layers
    assert [config.layer_types.count(kind) for kind in AttentionType] == [swa, csa, hca]
    assert config.mtp_layer_types == (SWA,)


@pytest.mark.parametrize(
    ("preset", "ratios"), [(dsv4_pro(), PRO_RATIOS), (dsv4_flash(), FLASH_RATIOS)]
)
def test_from_hf_gives_the_presets(preset, ratios, tmp_path):
    by_ratio = hf_dict(ratios)
    names = [NAMES[ratio] for ratio in ratios[:-1]]
    by_type = without(by_ratio, "compress_ratios") | {"layer_types": names}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(by_ratio))
    for source in (by_ratio, by_type, by_ratio | by_type, path, str(path), tmp_path):
        assert from_hf(source) == preset


def test_from_hf_reads_newer_and_older_keys():
    hf = without(hf_dict(), "qk_rope_head_dim", "num_nextn_predict_layers")
    assert from_hf(hf | {"partial_rotary_factor": 0.125}) == dsv4_flash()
    small = hf_dict([0, 4, 8, 0])
    expected = dataclasses.replace(dsv4_flash(), layer_types=(SWA, CSA, HCA), hca_ratio=8)
    assert from_hf(small | {"compress_rates": {CSA.value: 4, HCA.value: 8}}) == expected
    assert from_hf(small | {"compress_rate_csa": 4, "compress_rate_hca": 8}) == expected


def test_from_hf_takes_mtp_layers_from_the_list():
    assert from_hf(hf_dict([0, 4, 128, 4])).mtp_layer_types == (CSA,)
    no_mtp = hf_dict() | {"num_nextn_predict_layers": 0, "compress_ratios": FLASH_RATIOS[:-1]}
    assert from_hf(no_mtp).mtp_layer_types == ()
    unlisted = hf_dict() | {"num_nextn_predict_layers": 3, "compress_ratios": FLASH_RATIOS[:-1]}
    assert from_hf(unlisted).mtp_layer_types == (SWA, SWA, SWA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 42}, r"compress_ratios: expected 42 entries, or 43 .*, got 44"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers: .*got 0"),
        ({"num_hidden_layers": "43"}, r"num_hidden_layers: .*got '43'"),
        ({"num_nextn_predict_layers": -1}, r"num_nextn_predict_layers: .*got -1"),
        ({"compress_ratios": [0, 7] + [4] * 42}, r"compress_ratios\[1\]: .*got 7"),
        ({"compress_ratios": [0, [4]] + [4] * 42}, r"compress_ratios\[1\]: .*got \[4\]"),
        ({"compress_ratios": [False] + [4] * 43}, r"compress_ratios\[0\]: .*got False"),
        ({"compress_ratios": 4}, r"compress_ratios: expected a list, got 4"),
        ({"compress_ratios": None}, r"compress_ratios: expected it or layer_types, got neither"),
        ({"layer_types": ["full_attention"] * 43}, r"layer_types\[0\]: .*got 'full_attention'"),
        ({"layer_types": [CSA.value] * 43}, r"layer_types: expected the layers of compress_ratios"),
        ({"compress_rates": 4}, r"compress_rates: .*got 4"),
        ({"compress_rate_hca": "x"}, r"heavily_compressed_attention.*got 'x'"),
        ({"compress_rate_hca": 4}, r"compress_ratios\[3\]: .*got 128"),
        ({"head_dim": -512}, r"head_dim: .*got -512"),
        ({"head_dim": None}, r"head_dim: expected a value, got none"),
        ({"qk_rope_head_dim": 513}, r"qk_rope_head_dim: .*got 513"),
        ({"sliding_window": 0}, r"sliding_window: .*got 0"),
        ({"index_head_dim": 1.5}, r"index_head_dim: .*got 1.5"),
        ({"max_position_embeddings": None}, r"max_position_embeddings: expected a value"),
        ({"max_position_embeddings": -1}, r"max_position_embeddings: .*got -1"),
        ({"partial_rotary_factor": float("nan"), "qk_rope_head_dim": None}, "qk_rope_head_dim"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor: .*got 1.5"),
        ({"partial_rotary_factor": 1e308}, r"partial_rotary_factor: .*got 1e\+308"),
        ({"partial_rotary_factor": 10**400}, "partial_rotary_factor: .*got 1000"),
    ],
)
def test_from_hf_names_the_invalid_field(changes, message):
    hf = hf_dict()
    if "partial_rotary_factor" in changes:
        del hf["qk_rope_head_dim"]
    with pytest.raises(ValueError, match=message):
        from_hf(hf | changes)


@pytest.mark.parametrize("content", ["not json", "[1, 2]"])
def test_from_hf_names_the_file_that_is_no_config(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: expected"):
        from_hf(path)
    with pytest.raises(FileNotFoundError):
        from_hf(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_types", ()),
        ("layer_types", ("full_attention",)),
        ("mtp_layer_types", (None,)),
        ("head_dim", 0),
        ("head_dim", -1),
        ("qk_rope_head_dim", 513),
        ("qk_rope_head_dim", -1),
        ("index_head_dim", 0),
        ("sliding_window", 0),
        ("csa_ratio", 0),
        ("hca_ratio", 4),
        ("max_position_embeddings", 0),
    ],
)
def test_config_names_the_invalid_field(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(dsv4_pro(), **{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("layer_types", SWA.value), ("head_dim", 512.0), ("sliding_window", True)]
)
def test_config_names_the_field_of_a_wrong_type(field, value):
    with pytest.raises(TypeError, match=field):
        dataclasses.replace(dsv4_pro(), **{field: value})


def test_block_size_is_a_multiple_of_both_ratios():
    config = DSV4Config(("sliding_attention",), csa_ratio=6, hca_ratio=8)
    assert [config.block_size(k) for k in (1, 2, 3)] == [24, 48, 72]
    assert config.block_multiple(72) == 3
    for block_size in (0, 8, 25):
        with pytest.raises(ValueError, match="block_size"):
            config.block_multiple(block_size)
    with pytest.raises(ValueError, match="multiple"):
        config.block_size(0)


def test_schedule_counts_mtp_layers_on_from_the_last_layer():
    config = DSV4Config((SWA, HCA), (SWA,))
    assert layer_schedule(config) == (LayerSpec(0, SWA), LayerSpec(1, HCA))
    assert layer_schedule(config, mtp=True)[2:] == (LayerSpec(2, SWA, mtp=True),)
    with pytest.raises(ValueError, match="attention_type"):
        LayerSpec(0, "dense")
