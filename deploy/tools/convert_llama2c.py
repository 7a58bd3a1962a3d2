#!/usr/bin/env python3
"""Converts a llama2.c checkpoint ("legacy v0" .bin) into a Hugging Face model directory.

    convert_llama2c.py stories260K.bin --tokenizer tok512.model --out stories260K

writes config.json, generation_config.json, model.safetensors (fp32) and tokenizer.model, which
transformers.LlamaForCausalLM and this project load. Needs numpy and safetensors.

The .bin file is seven little-endian int32 (dim, hidden_dim, layers, heads, kv_heads, vocab, seq)
and then fp32 tensors, each stacked over layers: embedding; attention norms; wq; wk; wv; wo; ffn
norms; w1; w2; w3; final norm; two RoPE tables, unused; and, if vocab is negative, the output
projection (if it is positive, the embedding is the output projection).
"""

import argparse
import json
import os
import shutil
import struct
import sys

import numpy as np
from safetensors.numpy import save_file

RMS_NORM_EPS = 1e-5  # fixed in llama2.c
ROPE_THETA = 10000.0  # fixed in llama2.c
BOS_ID, EOS_ID = 1, 2  # fixed by its SentencePiece training


class Reader:
    """Hands out consecutive fp32 tensors of a buffer."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = file.read()
        self.path = path
        self.offset = 0

    def header(self):
        if len(self.data) < 28:
            sys.exit(f"{self.path}: {len(self.data)} bytes, but the header alone has 28")
        self.offset = 28
        return struct.unpack("<7i", self.data[:28])

    def take(self, *shape):
        size = 4 * int(np.prod(shape))
        if self.offset + size > len(self.data):
            sys.exit(f"{self.path}: truncated, needs {self.offset + size} bytes, "
                     f"has {len(self.data)}")
        tensor = np.frombuffer(self.data, "<f4", size // 4, self.offset).reshape(shape)
        self.offset += size
        return tensor


def half_split(weight, heads, head_dim):
    """Reorders the rows of a q or k projection from interleaved to half-split RoPE pairs."""
    columns = weight.shape[1]
    pairs = weight.reshape(heads, head_dim // 2, 2, columns)
    return pairs.transpose(0, 2, 1, 3).reshape(heads * head_dim, columns)


def read_checkpoint(path):
    """Returns (config.json as a dict, tensors by Hugging Face name)."""
    reader = Reader(path)
    dim, hidden, layers, heads, kv_heads, signed_vocab, seq = reader.header()
    vocab, tied = abs(signed_vocab), signed_vocab > 0
    if min(dim, hidden, layers, heads, kv_heads, vocab, seq) <= 0 or dim % heads or \
            heads % kv_heads:
        sys.exit(f"{path}: not a llama2.c legacy v0 checkpoint: header {dim} {hidden} {layers} "
                 f"{heads} {kv_heads} {signed_vocab} {seq}")
    head_dim = dim // heads
    kv_dim = kv_heads * head_dim

    tensors = {"model.embed_tokens.weight": reader.take(vocab, dim)}
    stacks = [  # in file order
        ("input_layernorm", (dim,)),
        ("self_attn.q_proj", (dim, dim)),
        ("self_attn.k_proj", (kv_dim, dim)),
        ("self_attn.v_proj", (kv_dim, dim)),
        ("self_attn.o_proj", (dim, dim)),
        ("post_attention_layernorm", (dim,)),
        ("mlp.gate_proj", (hidden, dim)),
        ("mlp.down_proj", (dim, hidden)),
        ("mlp.up_proj", (hidden, dim)),
    ]
    for name, shape in stacks:
        for layer, weight in enumerate(reader.take(layers, *shape)):
            if name == "self_attn.q_proj":
                weight = half_split(weight, heads, head_dim)
            elif name == "self_attn.k_proj":
                weight = half_split(weight, kv_heads, head_dim)
            tensors[f"model.layers.{layer}.{name}.weight"] = weight
    tensors["model.norm.weight"] = reader.take(dim)
    reader.take(2, seq, head_dim // 2)
    if not tied:
        tensors["lm_head.weight"] = reader.take(vocab, dim)
    if reader.offset != len(reader.data):
        sys.exit(f"{path}: {len(reader.data) - reader.offset} bytes after the last tensor")

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": seq,
        "hidden_act": "silu",
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_theta": ROPE_THETA,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "torch_dtype": "float32",
    }
    return config, tensors


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="llama2.c .bin file")
    parser.add_argument("--tokenizer", required=True, help="its SentencePiece .model file")
    parser.add_argument("--out", required=True, help="directory to write")
    args = parser.parse_args()

    config, tensors = read_checkpoint(args.checkpoint)
    os.makedirs(args.out, exist_ok=True)
    weights = os.path.join(args.out, "model.safetensors")
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()},
              weights, metadata={"format": "pt"})
    os.chmod(weights, 0o644)  # safetensors makes it private
    write_json(os.path.join(args.out, "config.json"), config)
    # Each training text started with BOS and none ended with EOS: BOS is what ends a story.
    write_json(os.path.join(args.out, "generation_config.json"),
               {"bos_token_id": BOS_ID, "eos_token_id": [BOS_ID, EOS_ID]})
    shutil.copyfile(args.tokenizer, os.path.join(args.out, "tokenizer.model"))


if __name__ == "__main__":
    main()
