#!/usr/bin/env python3
"""Makes tiny random models with Hugging Face transformers, and golden logits to test against.

    make_tiny_models.py --out tests/data

writes, per model, a Hugging Face directory and in it logits.json: "ids" (the input), "positions"
and, for each of these, the fp32 "logits" of transformers. Needs torch and transformers 4.46.

The weights are drawn so that a test can fail: queries and keys are scaled up until attention
prefers few keys (with uniform attention, which tokens a policy keeps would hardly matter), norm
weights and biases are not the ones and zeros that they start from in training, and the logits
spread over several units.
"""

import argparse
import json
import os

import torch
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          Qwen2Config, Qwen2ForCausalLM)

GOLDEN_TOKENS = 64
GOLDEN_STRIDE = 9  # every ninth position, the last one included
QK_GAIN = 2.0  # attention logits get a standard deviation of about its square

# name: (model class, config, dtype of the file, largest shard)
MODELS = {
    # Grouped queries (3 heads share a KV head), untied, several files, odd sizes.
    "tiny-llama": (LlamaForCausalLM, LlamaConfig(
        hidden_size=48, intermediate_size=76, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, vocab_size=199, max_position_embeddings=256, rms_norm_eps=1e-5,
        rope_theta=10000.0, tie_word_embeddings=False), torch.float32, "100KB"),
    # head_dim is not hidden_size / heads; bf16.
    "tiny-mistral": (MistralForCausalLM, MistralConfig(
        hidden_size=40, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, vocab_size=160, max_position_embeddings=512,
        rms_norm_eps=1e-5, rope_theta=1000000.0, sliding_window=None,
        tie_word_embeddings=False), torch.bfloat16, "10MB"),
    # Tied embeddings, QKV bias, one KV head; f16.
    "tiny-qwen2": (Qwen2ForCausalLM, Qwen2Config(
        hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, vocab_size=256, max_position_embeddings=512, rms_norm_eps=1e-6,
        rope_theta=1000000.0, use_sliding_window=False,
        tie_word_embeddings=True), torch.float16, "10MB"),
}


def fill(model, generator):
    """Draws all parameters, in name order."""
    parameters = dict(model.named_parameters())
    for name in sorted(parameters):
        parameter = parameters[name]
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.5 * noise
        elif name == "model.embed_tokens.weight" and not model.config.tie_word_embeddings:
            value = noise
        else:  # a projection: outputs as large as its inputs
            value = noise / parameter.shape[1] ** 0.5
            if "q_proj" in name or "k_proj" in name:
                value *= QK_GAIN
            if name == "model.embed_tokens.weight" or name == "lm_head.weight":
                value *= 2
        parameter.data.copy_(value)


def write_golden(path, model, generator):
    ids = torch.randint(model.config.vocab_size, (GOLDEN_TOKENS,), generator=generator)
    positions = list(range(0, GOLDEN_TOKENS, GOLDEN_STRIDE))
    with torch.inference_mode():
        logits = model(ids[None]).logits[0]
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"ids": ids.tolist(), "positions": positions,
                   "logits": [[float(f"{x:.8g}") for x in logits[p].tolist()]
                              for p in positions]}, file, separators=(",", ":"))
        file.write("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="directory that receives one per model")
    parser.add_argument("--seed", type=int, default=20240207, help="default: %(default)s")
    args = parser.parse_args()

    for name, (model_class, config, dtype, shard) in MODELS.items():
        generator = torch.Generator().manual_seed(args.seed)
        model = model_class(config).eval()
        fill(model, generator)
        model.to(dtype)
        directory = os.path.join(args.out, name)
        model.save_pretrained(directory, max_shard_size=shard)
        # The golden is of the rounded weights, computed in fp32. Loaded afresh, because to(dtype)
        # has rounded the frequencies of the rotary embedding too.
        model = model_class.from_pretrained(directory, torch_dtype=torch.float32)
        write_golden(os.path.join(directory, "logits.json"), model, generator)
        for file in os.listdir(directory):  # safetensors makes its files private
            os.chmod(os.path.join(directory, file), 0o644)


if __name__ == "__main__":
    main()
