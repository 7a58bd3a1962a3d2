#!/usr/bin/env python3
"""Writes small safetensors files with the reference library, to test our reader against.

    make_safetensors_fixtures.py --out tests/data/safetensors

makes single/ (every dtype that we read, a scalar, an empty tensor, metadata, names that need care),
sharded/ (the same tensors in three files with an index) and i64/ (a dtype that we refuse).
Element i of a tensor is i / 4 - 1, exact in all of the dtypes. Needs torch and safetensors.
"""

import argparse
import json
import os

import torch
from safetensors.torch import save_file


def ramp(shape, dtype):
    count = int(torch.tensor(shape).prod()) if shape else 1
    return (torch.arange(count, dtype=torch.float32) / 4 - 1).reshape(shape).to(dtype)


TENSORS = {
    "f32": ramp((3, 5), torch.float32),
    "bf16": ramp((7,), torch.bfloat16),
    "f16": ramp((2, 3, 4), torch.float16),
    "scalar": ramp((), torch.float32),
    "empty": ramp((0, 4), torch.float32),
    'name with "quotes", \\ and \u00e9\u4e2d': ramp((1,), torch.bfloat16),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", required=True, help="directory to write to")
    out = parser.parse_args().out
    for name in ("single", "sharded", "i64"):
        os.makedirs(os.path.join(out, name), exist_ok=True)

    save_file(TENSORS, os.path.join(out, "single", "model.safetensors"),
              metadata={"format": "pt", "note": "made for tests"})
    save_file({"positions": torch.arange(4)}, os.path.join(out, "i64", "model.safetensors"))

    names = list(TENSORS)
    weight_map = {}
    for shard in range(3):
        file = f"model-{shard + 1:05}-of-00003.safetensors"
        part = {name: TENSORS[name] for name in names[shard::3]}
        save_file(part, os.path.join(out, "sharded", file), metadata={"format": "pt"})
        weight_map.update({name: file for name in part})
    total = sum(tensor.numel() * tensor.element_size() for tensor in TENSORS.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    with open(os.path.join(out, "sharded", "model.safetensors.index.json"), "w",
              encoding="utf-8") as file:
        json.dump(index, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
    main()
