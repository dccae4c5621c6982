"""A GGUF file of a random Llama, as llama.cpp's converter would write it."""

import zlib

import gguf
import numpy as np
from tokenizers import pre_tokenizers

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS = 2, 64, 96, 4, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["a b", "ab c", "Ċ Ċ", "1 2"]
TOKENS = [*SPECIAL, *ALPHABET, *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
METADATA = {
    "llama.block_count": LAYERS,
    "llama.context_length": 128,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 100000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": TEMPLATE,
}
QUANTISED = "model.layers.0.mlp.up_proj.weight"


def weights():
    """Every weight by its Hugging Face name, in Hugging Face's order of rows."""
    shapes = {"model.embed_tokens.weight": (len(TOKENS), HIDDEN), "model.norm.weight": (HIDDEN,)}
    kv_size = HIDDEN * KV_HEADS // HEADS
    for layer in range(LAYERS):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (HIDDEN,),
                "self_attn.q_proj": (HIDDEN, HIDDEN),
                "self_attn.k_proj": (kv_size, HIDDEN),
                "self_attn.v_proj": (kv_size, HIDDEN),
                "self_attn.o_proj": (HIDDEN, HIDDEN),
                "post_attention_layernorm": (HIDDEN,),
                "mlp.gate_proj": (INNER, HIDDEN),
                "mlp.up_proj": (INNER, HIDDEN),
                "mlp.down_proj": (HIDDEN, INNER),
            }.items()
        }
    return {
        name: np.random.RandomState(zlib.crc32(name.encode()))
        .uniform(-0.5, 0.5, shape)
        .astype(np.float32)
        for name, shape in shapes.items()
    }


def write(path, metadata=None, extra=None):
    """Writes the file; `metadata` replaces some (None leaves it out), `extra` adds arrays."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    writer = gguf.GGUFWriter(path, (metadata or {}).get("general.architecture", "llama"))
    for name, value in (METADATA | (metadata or {})).items():
        if value is None or name == "general.architecture":
            continue
        kinds = {str: "string", bool: "bool", int: "uint32", float: "float32", list: "array"}
        getattr(writer, f"add_{kinds[type(value)]}")(name, value)
    for name, array in weights().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            array = neighbours(array, HEADS if "q_proj" in name else KV_HEADS)
        kind = None
        if name == QUANTISED:
            kind = gguf.GGMLQuantizationType.Q8_0
            array = gguf.quantize(array, kind)
        writer.add_tensor(names.get_name(name, [".weight"]), array, raw_dtype=kind)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def neighbours(rows, heads):
    """llama.cpp's order of rows, one by one: those that are rotated together are neighbours."""
    size = rows.shape[0] // heads
    order = []
    for head in range(heads):
        for i in range(size // 2):
            order += [head * size + i, head * size + i + size // 2]
    return rows[order]
