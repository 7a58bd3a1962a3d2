#!/usr/bin/env python3
"""Makes the goldens of the attention policies: policy_oracle.py over small models.

    make_policy_goldens.py --data tests/data

reads the model directories and policies/story.txt of --data and writes policies/<model>.json:
{"model", "cases": [{"name", "options", "ids", "argmax" (per token), "nll" (of token t + 1 given
those up to t), "min_top2_margin", "near_ties" (positions where the best two logits are closer than
1e-3, so that argmax proves nothing there), "select_margin", "representative_margin"}]}.

Input is drawn anew until every selection of the run is decided by a margin far above the rounding
of fp32: ties are real (two blocks whose representatives are keys of the same tokens are equal in
the first layer), but which of two equal blocks is taken is not what these goldens are about.
Needs what policy_oracle.py needs, and sentencepiece.
"""

import argparse
import dataclasses
import json
import math
import os

import numpy as np

import policy_oracle

TOKENS = 420
LONG_TOKENS = 700
MIN_SELECT_MARGIN = 1e-4  # standard deviations of the block scores
MIN_REPRESENTATIVE_MARGIN = 1e-5  # probability
NEAR_TIE = 1e-3  # logits
BOS_ID = 1

SMALL = {"n_init": 4, "n_local": 32, "block_tokens": 8, "top_k": 2, "repr_top_k": 1}
MEDIUM = {"n_init": 8, "n_local": 64, "block_tokens": 16, "top_k": 4, "repr_top_k": 4}
ODD = {"n_init": 13, "n_local": 45, "block_tokens": 11, "top_k": 3, "repr_top_k": 3}
NO_SINKS = {"n_init": 0, "n_local": 40, "block_tokens": 10, "top_k": 2, "repr_top_k": 10}


def case_list():
    """(name, options, tokens) of every case."""
    def infllm(sizes, **more):
        return {"policy": "infllm", **sizes, **more}

    cases = []
    for policy in ("streaming-llm", "lm-infinite"):
        cases += [
            (f"{policy}", {"policy": policy, "n_init": 4, "n_local": 32}, TOKENS),
            (f"{policy}-linear", {"policy": policy, "n_init": 16, "n_local": 64,
                                  "rope_scaling": "linear"}, TOKENS),
            (f"{policy}-ntk", {"policy": policy, "n_init": 7, "n_local": 33,
                               "rope_scaling": "ntk", "exec_block": 8}, TOKENS),
            (f"{policy}-no-sinks", {"policy": policy, "n_init": 0, "n_local": 48,
                                    "exec_block": 1}, TOKENS),
        ]
    cases += [
        ("full", {"policy": "full"}, TOKENS),
        ("full-linear", {"policy": "full", "rope_scaling": "linear"}, TOKENS),
        ("full-ntk", {"policy": "full", "rope_scaling": "ntk", "rope_factor": 2.5}, TOKENS),
    ]
    for name, sizes in (("small", SMALL), ("medium", MEDIUM), ("odd", ODD)):
        cases += [
            (f"infllm-{name}-exec1", infllm(sizes, exec_block=1), TOKENS),
            (f"infllm-{name}-exec1-vote", infllm(sizes, exec_block=1, scoring="head-vote"),
             TOKENS),
            (f"infllm-{name}-exec8", infllm(sizes, exec_block=8), TOKENS),
            (f"infllm-{name}-exec8-reference", infllm(sizes, exec_block=8, compat="reference"),
             TOKENS),
            (f"infllm-{name}-exec32-vote", infllm(sizes, exec_block=32, scoring="head-vote"),
             TOKENS),
            (f"infllm-{name}-exec32-reference", infllm(sizes, exec_block=32, compat="reference"),
             TOKENS),
        ]
    cases += [
        ("infllm-medium-exec32", infllm(MEDIUM, exec_block=32), TOKENS),
        ("infllm-no-sinks-exec8", infllm(NO_SINKS, exec_block=8), TOKENS),
        ("infllm-odd-exec7", infllm(ODD, exec_block=7), TOKENS),
        ("infllm-small-exec1-linear", infllm(SMALL, exec_block=1, rope_scaling="linear"), TOKENS),
        ("infllm-small-exec1-ntk", infllm(SMALL, exec_block=1, rope_scaling="ntk"), TOKENS),
        ("infllm-medium-exec8-ntk-vote", infllm(MEDIUM, exec_block=8, rope_scaling="ntk",
                                                scoring="head-vote"), TOKENS),
        ("infllm-medium-exec32-linear-reference",
         infllm(MEDIUM, exec_block=32, rope_scaling="linear", compat="reference"), TOKENS),
        ("infllm-medium-exec1-long", infllm(MEDIUM, exec_block=1), LONG_TOKENS),
    ]
    return cases


# tiny-llama runs every case; what is about the policy alone need not be repeated with each model.
CASES_OF_OTHERS = {
    "full", "full-ntk", "streaming-llm", "streaming-llm-ntk", "lm-infinite", "lm-infinite-linear",
    "infllm-small-exec1", "infllm-small-exec8-reference", "infllm-medium-exec1",
    "infllm-medium-exec1-vote", "infllm-medium-exec8", "infllm-odd-exec32-vote",
    "infllm-odd-exec32-reference", "infllm-no-sinks-exec8", "infllm-small-exec1-ntk",
    "infllm-medium-exec1-long",
}


def random_ids(model):
    vocab = len(model.embedding)
    return lambda attempt, count: np.random.default_rng([attempt, vocab]).integers(
        vocab, size=count).tolist()


def story_ids(tokenizer_path, text_path):
    import sentencepiece
    tokenizer = sentencepiece.SentencePieceProcessor(tokenizer_path)
    with open(text_path, encoding="utf-8") as file:
        ids = tokenizer.encode(file.read())

    def draw(attempt, count):
        if attempt + count - 1 > len(ids):
            raise SystemExit(f"{text_path}: {len(ids)} tokens, too few for another attempt")
        return [BOS_ID] + ids[attempt:attempt + count - 1]
    return draw


def make_case(model, draw, name, options, count):
    for attempt in range(1000):
        ids = draw(attempt, count)
        result = policy_oracle.run(model, policy_oracle.Options(**options), ids)
        if (result.select_margin >= MIN_SELECT_MARGIN and
                result.representative_margin >= MIN_REPRESENTATIVE_MARGIN):
            break
    margins = result.top2_margins()
    case = {
        "name": name,
        "options": options,
        "ids": ids,
        "argmax": result.argmax().tolist(),
        "nll": [float(f"{x:.6g}") for x in result.token_nll(ids)],
        "min_top2_margin": float(f"{margins.min():.3g}"),
        "near_ties": np.flatnonzero(margins < NEAR_TIE).tolist(),
    }
    for key in ("select_margin", "representative_margin"):
        margin = getattr(result, key)
        if not math.isinf(margin):
            case[key] = float(f"{margin:.3g}")
    print(f"  {name}: attempt {attempt}, {len(result.selections)} selections, top-2 margin "
          f"{case['min_top2_margin']}", flush=True)
    return case


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="tests/data")
    parser.add_argument("--model", action="append",
                        choices=["tiny-llama", "tiny-mistral", "tiny-qwen2", "stories260K"],
                        help="make only this one's; may be repeated")
    args = parser.parse_args()

    for name in args.model or ["tiny-llama", "tiny-mistral", "tiny-qwen2", "stories260K"]:
        print(name)
        directory = os.path.join(args.data, name)
        model = policy_oracle.Model(directory)
        draw = random_ids(model)
        if name == "stories260K":
            draw = story_ids(os.path.join(directory, "tokenizer.model"),
                             os.path.join(args.data, "policies", "story.txt"))
        defaults = dataclasses.asdict(policy_oracle.Options())
        cases = [make_case(model, draw, case, {**defaults, **options}, count)
                 for case, options, count in case_list()
                 if name == "tiny-llama" or case in CASES_OF_OTHERS]
        path = os.path.join(args.data, "policies", f"{name}.json")
        with open(path, "w", encoding="utf-8") as file:  # one case per line
            lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
            file.write(f'{{"model":"{name}","cases":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
