"""Checkpoint directories: chat templates, stop tokens, heads for more devices than they are."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import llama_families as families
import numpy as np
import pytest

from jax_sa.llama import checkpoint, config, model
from jax_sa.llama.weights import AXIS


@pytest.fixture
def directory(tmp_path):
    settings = dataclasses.replace(families.FAMILIES["llama"], eos_tokens=(3,))
    return families.write_checkpoint(tmp_path / "checkpoint", settings)


@pytest.mark.parametrize(
    ("generation", "stops"),
    [({"eos_token_id": [5, 3]}, (3, 5)), ({"eos_token_id": 7}, (3, 7)), ({}, (3,))],
)
def test_stop_tokens_are_those_of_both_configs(directory, generation, stops):
    (directory / config.GENERATION_FILE).write_text(json.dumps(generation))
    assert config.read(directory).eos_tokens == stops


@pytest.mark.parametrize("value", ["x", [True], [None]])
def test_stop_tokens_that_are_none_are_refused(directory, value):
    (directory / config.GENERATION_FILE).write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ValueError, match="eos_token_id: expected token ids"):
        config.read(directory)


@pytest.mark.parametrize("family", ["llama-bias", "qwen3"])
def test_key_value_heads_are_replicated_for_more_devices(tmp_path, family):
    """4 devices, 2 heads: each device has one, and the logits stay."""
    if len(jax.devices()) < 4:
        pytest.skip(f"{len(jax.devices())} devices, 4 needed")
    settings = families.FAMILIES[family]
    families.write_checkpoint(tmp_path, settings)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), (AXIS,))
    logits = []
    for where in (None, mesh):
        loaded, params = checkpoint.load(tmp_path, jnp.float32, where)
        rows, size = families.TOKENS.shape
        cache = model.init_cache(loaded, rows, size, jnp.float32, mtp=False, mesh=where)
        apply = jax.jit(model.apply, static_argnums=0)
        logits.append(apply(loaded, params, jnp.asarray(families.TOKENS), cache)[0])
    assert loaded.num_kv_heads == 4 and settings.num_kv_heads == 2
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-5, rtol=2e-5)


def chat(directory, settings, template=None):
    pytest.importorskip("jinja2", reason="jinja2 is not installed; pip install jax_sa[chat]")
    from jax_sa.llama.chat import ChatTemplate

    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return ChatTemplate(directory).render([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"chat_template": "{{ messages[0]['content'] }}!"}, "hi!"),
        ({"chat_template": "{% if add_generation_prompt %}\n  yes\n{% endif %}"}, "  yes\n"),
        ({"chat_template": "{{ bos_token }}{{ eos_token }}", "bos_token": "<s>"}, "<s>"),
        ({"chat_template": "{{ bos_token }}", "bos_token": {"content": "<s>"}}, "<s>"),
        ({"chat_template": "{{ messages | tojson }}"}, '[{"role": "user", "content": "hi"}]'),
        (
            {
                "chat_template": [
                    {"name": "tool_use", "template": "no"},
                    {"name": "default", "template": "yes"},
                ]
            },
            "yes",
        ),
    ],
)
def test_chat_templates(directory, settings, expected):
    assert chat(directory, settings) == expected


def test_a_chat_template_in_a_file_of_its_own(directory):
    assert chat(directory, {"chat_template": "no"}, "{{ messages[0]['role'] }}") == "user"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "tokenizer_config.json: has no chat_template"),
        ({"chat_template": []}, "tokenizer_config.json: has no chat_template"),
        ({"chat_template": "{% if %}"}, "chat template: Expected an expression"),
        ({"chat_template": "{{ raise_exception('no users') }}"}, "chat template: no users"),
        ({"chat_template": "{{ messages.append(1) }}"}, "chat template: "),
        ({"chat_template": "{{ ''.__class__.__mro__ }}"}, "chat template: "),
    ],
)
def test_bad_chat_templates_are_one_line(directory, settings, message):
    with pytest.raises(ValueError) as refusal:
        chat(directory, settings)
    assert str(refusal.value).startswith(str(directory)) and message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_jinja2_is_one_line(directory, monkeypatch):
    import sys

    from jax_sa.llama.chat import ChatTemplate

    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setitem(sys.modules, "jinja2.sandbox", None)
    with pytest.raises(ValueError, match=r"jinja2 package is missing: pip install jax_sa\[chat\]"):
        ChatTemplate(directory)


def test_a_file_is_no_directory(directory):
    with pytest.raises(ValueError, match="config.json: not a directory"):
        checkpoint.load(directory / "config.json", jnp.float32)
