#!/usr/bin/env python3
"""Scores a token sequence under an attention policy: slow, plain, in double precision.

    policy_oracle.py --model tests/data/tiny-llama --ids ids.json --policy infllm --n-local 32 ...

prints {"nll", "tokens", "argmax", "token_nll", ...} like `infllm score --json`, with the same
flags. It exists to be compared with, so it shares no code with anything: a decoder in numpy that
walks the text once, exec block by exec block, and for every query writes down which positions it
sees. Needs numpy, torch (only to read bf16) and safetensors.

What an implementation easily gets wrong, even at exec_block 1:
 1. The window counts the query itself: p sees p - n_local + 1 .. p as near.
 2. No position is ever missing or doubled. A token that leaves the window first stays in the
    remainder, attended as far; sinks fill from there, and only when they are full do blocks form.
 3. Sinks fill and blocks are cut from what is beyond the n_local latest tokens *after* the exec
    block. So the remainder reaches n_local + block_tokens - 1 tokens between exec blocks, and up
    to exec_block - 1 more at the end of one. All of it is attended; no block is ever partial.
 4. Per exec block the order is: select, attend, add scores, fill sinks, cut blocks. A block that
    an exec block completes can be selected by the next one only.
 5. Far keys are raw, and all far queries have the angle of position n_local - 1, not n_local (and
    not p). Selection uses these rotated far queries, averaged over the exec block.
 6. Near and far share one softmax. A token's score is the probability that it draws in it as a
    near key, so far keys take mass away; the query's own token counts; far mass adds nothing.
 7. Scores and representatives are per query head, also where heads share keys: each of the heads
    of a group picks its own tokens from the shared keys. A score is complete, with exactly n_local
    queries, when its token leaves the window.
 8. With nb <= top_k blocks, all are attended. One selection serves all heads of a layer.
 9. Head-vote takes its softmax over all blocks of the context, for each head, before the sum.
10. Linear scaling divides the clipped position n_local - 1 as well.
11. lm-infinite shows p the sinks j with p - j >= n_local, raw, under the angle of n_local - 1.
12. streaming-llm rotates sink j at j and the query at n_local + n_init - 1, as soon as the sink
    leaves the window: between n_local and n_local + n_init tokens, such a sink seems farther away
    than it is.
13. The published code (--compat reference) lets every far key pass its mask: a query that is not
    the last of its exec block sees in-window tokens of the remainder a second time, as far ones.
    The near scores are then smaller, because the softmax has more to share out. At exec_block 1
    there is nothing to double.
14. Exact ties are real: in the first layer a raw key depends on its token alone, so blocks whose
    representatives come from the same tokens score the same. Here the earlier block wins.

Held against the published code (InfLLM main @ 12b7079 in fp32 on a CPU, no fused kernels): infllm
with exec_block 1, 8 and 32, compat reference, and with its mask corrected, compat none;
lm-infinite; streaming-llm; each with none, linear and ntk; fed whole, in chunks and token by token.
Logits agree to 2e-4 on four models, at all positions but after one exact tie.
"""

import argparse
import dataclasses
import glob
import json
import math
import os

import numpy as np


@dataclasses.dataclass(frozen=True)
class Options:
    policy: str = "infllm"
    rope_scaling: str = "none"
    rope_factor: float = 4.0
    n_init: int = 4
    n_local: int = 64
    block_tokens: int = 16
    top_k: int = 4
    repr_top_k: int = 2
    exec_block: int = 16
    scoring: str = "mean"
    compat: str = "none"


@dataclasses.dataclass
class Result:
    logits: np.ndarray  # [tokens, vocab]
    # Smallest distance, over all decisions, between what was taken and what was not: of block
    # scores, in standard deviations of the scores; of token scores, absolute.
    select_margin: float = math.inf
    representative_margin: float = math.inf
    # (layer, position of the exec block's first query, block ids), of true choices only
    selections: list = dataclasses.field(default_factory=list)

    def argmax(self):
        return self.logits.argmax(axis=1)

    def top2_margins(self):
        top2 = np.partition(self.logits, -2, axis=1)[:, -2:]
        return np.abs(top2[:, 1] - top2[:, 0])

    def token_nll(self, ids):
        """[tokens - 1]: of token t + 1, given those up to t."""
        top = self.logits.max(axis=1, keepdims=True)
        log_sum = (top + np.log(np.exp(self.logits - top).sum(axis=1, keepdims=True)))[:, 0]
        return log_sum[:-1] - self.logits[np.arange(len(ids) - 1), ids[1:]]


class Model:
    """config.json and weights of a Hugging Face directory, in double."""

    def __init__(self, directory):
        from safetensors.torch import load_file
        with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        self.layers = config["num_hidden_layers"]
        self.q_heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads", self.q_heads)
        self.head_dim = config.get("head_dim") or config["hidden_size"] // self.q_heads
        self.eps = config["rms_norm_eps"]
        self.rope_theta = config.get("rope_theta", 10000.0)
        self.weights = {}
        for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
            for name, tensor in load_file(path).items():
                self.weights[name] = tensor.double().numpy()
        embedding = self.weights["model.embed_tokens.weight"]
        self.embedding = embedding
        self.head = self.weights.get("lm_head.weight", embedding)

    def linear(self, name, x):
        y = x @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, name, x):
        scale = np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps)
        return x / scale * self.weights[f"{name}.weight"]


class Rope:
    def __init__(self, model, options):
        dim = model.head_dim
        base, divisor = model.rope_theta, 1.0
        if options.rope_scaling == "linear":
            divisor = options.rope_factor
        elif options.rope_scaling == "ntk":
            base *= options.rope_factor ** (dim / (dim - 2))
        self.frequency = base ** (-np.arange(0, dim, 2) / dim) / divisor

    def rotate(self, x, positions):
        """x [tokens, heads, head_dim]; positions [tokens] or one number for all."""
        angle = np.broadcast_to(positions, x.shape[:1])[:, None] * self.frequency
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class LayerState:
    """What one layer remembers, and what its queries see."""

    def __init__(self, model, options, rope, layer, result):
        self.model, self.options, self.rope = model, options, rope
        self.layer, self.result = layer, result
        self.k = np.zeros((0, model.kv_heads, model.head_dim))  # raw
        self.k_near = self.k  # rotated at their own positions
        self.v = self.k
        # infllm only:
        self.score = np.zeros((model.q_heads, 0))
        self.sinks = 0  # positions 0 .. sinks - 1 are in the sinks
        self.blocks = []  # each: range of positions
        self.representatives = []  # each [q_heads, head_dim]

    def attend(self, q, k, v):
        """Projections of one exec block, [tokens, heads, head_dim] -> [tokens, q_heads, head_dim].
        """
        o = self.options
        begin = len(self.k)
        positions = np.arange(begin, begin + len(q))
        self.k = np.concatenate([self.k, k])
        self.k_near = np.concatenate([self.k_near, self.rope.rotate(k, positions)])
        self.v = np.concatenate([self.v, v])
        self.score = np.pad(self.score, ((0, 0), (0, len(q))))
        q_near = self.rope.rotate(q, positions)

        if o.policy == "full":
            return np.stack([self.softmax(q_near[i], range(p + 1), None, [], None)[0]
                             for i, p in enumerate(positions)])

        if o.policy == "streaming-llm":
            far_angle = o.n_local + o.n_init - 1
            sink_keys = self.k_near  # rotated at their own positions: those in the cache
        else:
            far_angle = o.n_local - 1
            sink_keys = self.k
        q_far = self.rope.rotate(q, far_angle)
        if o.policy == "infllm":
            always_far, remainder = self.far_positions(q_far, begin + len(q))

        out = []
        for i, p in enumerate(positions):
            near = range(max(0, p - o.n_local + 1), p + 1)
            if o.policy == "infllm":
                everything = o.compat == "reference"
                far = always_far + [j for j in remainder if everything or p - j >= o.n_local]
            else:
                far = [j for j in range(min(o.n_init, p + 1)) if p - j >= o.n_local]
            row, near_probability = self.softmax(q_near[i], near, q_far[i], far, sink_keys)
            out.append(row)
            self.score[:, near.start:near.stop] += near_probability
        if o.policy == "infllm":
            self.settle()
        return np.stack(out)

    def softmax(self, q_near, near, q_far, far, far_keys):
        """One query over near and far positions: (output [q_heads, head_dim], probability of the
        near ones [q_heads, near])."""
        m = self.model
        group = m.q_heads // m.kv_heads
        scale = 1 / math.sqrt(m.head_dim)
        near = list(near)

        def logits(query, keys):
            grouped = query.reshape(m.kv_heads, group, m.head_dim)
            return np.einsum("kgd,nkd->kgn", grouped, keys) * scale

        all_logits = logits(q_near, self.k_near[near])
        if far:
            all_logits = np.concatenate([all_logits, logits(q_far, far_keys[far])], axis=-1)
        weight = np.exp(all_logits - all_logits.max(axis=-1, keepdims=True))
        weight /= weight.sum(axis=-1, keepdims=True)
        out = np.einsum("kgn,nkd->kgd", weight, self.v[near + far])
        return (out.reshape(m.q_heads, m.head_dim),
                weight[..., :len(near)].reshape(m.q_heads, len(near)))

    def far_positions(self, q_far, end):
        """The positions that every query of an exec block ending at `end` sees as far, and those
        of the remainder that can be far for some of them."""
        selected = self.select(q_far)
        always = list(range(self.sinks)) + [j for b in selected for j in self.blocks[b]]
        remainder_begin = self.blocks[-1].stop if self.blocks else self.sinks
        return always, list(range(remainder_begin, max(remainder_begin, end - self.options.n_local)))

    def select(self, q_far):
        o = self.options
        count = len(self.blocks)
        if count <= o.top_k:
            return list(range(count))
        query = q_far.mean(axis=0)
        per_head = np.einsum("hd,bhd->hb", query, np.stack(self.representatives))
        if o.scoring == "head-vote":
            per_head = per_head / math.sqrt(self.model.head_dim)
            per_head = np.exp(per_head - per_head.max(axis=1, keepdims=True))
            per_head /= per_head.sum(axis=1, keepdims=True)
        scores = per_head.sum(axis=0)
        order = np.argsort(-scores, kind="stable")
        margin = (scores[order[o.top_k - 1]] - scores[order[o.top_k]]) / scores.std()
        self.result.select_margin = min(self.result.select_margin, margin)
        selected = sorted(order[:o.top_k].tolist())
        self.result.selections.append((self.layer, len(self.k) - len(q_far), selected))
        return selected

    def settle(self):
        """After an exec block: fills the sinks, then cuts blocks, from beyond the window."""
        o = self.options
        outside = len(self.k) - o.n_local
        self.sinks = max(self.sinks, min(o.n_init, outside))
        while True:
            begin = self.blocks[-1].stop if self.blocks else self.sinks
            if begin + o.block_tokens > outside:
                return
            block = range(begin, begin + o.block_tokens)
            self.blocks.append(block)
            self.representatives.append(self.representative(block))

    def representative(self, block):
        top = self.options.repr_top_k
        group = self.model.q_heads // self.model.kv_heads
        rows = []
        for head in range(self.model.q_heads):
            score = self.score[head, block.start:block.stop]
            order = np.argsort(-score, kind="stable")
            if top < len(order):
                margin = score[order[top - 1]] - score[order[top]]
                self.result.representative_margin = min(self.result.representative_margin, margin)
            rows.append(self.k[block.start + order[:top], head // group].mean(axis=0))
        return np.stack(rows)


def run(model, options, ids):
    """One streaming pass over `ids`. Returns a Result."""
    result = Result(logits=np.zeros((0, 0)))
    rope = Rope(model, options)
    states = [LayerState(model, options, rope, i, result) for i in range(model.layers)]
    rows = []
    for begin in range(0, len(ids), options.exec_block):
        x = model.embedding[ids[begin:begin + options.exec_block]]
        for i, state in enumerate(states):
            prefix = f"model.layers.{i}"
            h = model.norm(f"{prefix}.input_layernorm", x)
            q, k, v = (model.linear(f"{prefix}.self_attn.{name}_proj", h)
                       .reshape(len(h), -1, model.head_dim) for name in "qkv")
            out = state.attend(q, k, v).reshape(len(h), -1)
            x = x + model.linear(f"{prefix}.self_attn.o_proj", out)
            h = model.norm(f"{prefix}.post_attention_layernorm", x)
            gate = model.linear(f"{prefix}.mlp.gate_proj", h)
            up = model.linear(f"{prefix}.mlp.up_proj", h)
            x = x + model.linear(f"{prefix}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
        rows.append(model.norm("model.norm", x) @ model.head.T)
    result.logits = np.concatenate(rows)
    return result


def add_option_flags(parser):
    choices = {"policy": ["full", "streaming-llm", "lm-infinite", "infllm"],
               "rope_scaling": ["none", "linear", "ntk"],
               "scoring": ["mean", "head-vote"],
               "compat": ["none", "reference"]}
    for field in dataclasses.fields(Options):
        parser.add_argument("--" + field.name.replace("_", "-"), type=type(field.default),
                            default=field.default, choices=choices.get(field.name),
                            help="default: %(default)s")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face directory")
    parser.add_argument("--ids", required=True, help="JSON file: a list of token ids")
    add_option_flags(parser)
    args = vars(parser.parse_args())
    model = Model(args.pop("model"))
    with open(args.pop("ids"), encoding="utf-8") as file:
        ids = json.load(file)
    result = run(model, Options(**args), ids)
    token_nll = result.token_nll(ids)
    print(json.dumps({"nll": token_nll.mean(), "tokens": len(ids),
                      "argmax": result.argmax().tolist(), "token_nll": token_nll.tolist(),
                      "min_top2_margin": result.top2_margins().min(),
                      "select_margin": result.select_margin,
                      "representative_margin": result.representative_margin}))


if __name__ == "__main__":
    main()
