#!/usr/bin/env python3
"""Trains the demo model of deploy/demo: a small Llama, on sequences of at most 512 tokens.

Ordinary causal attention over the whole sequence, plain RoPE: nothing of InfLLM is in the training.
The curriculum lengthens sequences and adds names; the learning rate is constant, then falls to zero
over the last quarter. State is saved every few minutes; the same command goes on from there.

    pip install torch numpy safetensors sentencepiece
    deploy/tools/demo/train.py --books BOOKS_DIR --out OUT_DIR --minutes 120
"""

import argparse
import json
import math
import multiprocessing
import pathlib
import random
import re
import time

import numpy as np
import sentencepiece
import torch
import torch.nn as nn
import torch.nn.functional as F
from exercises import ASSISTANT, END, USER, Exercises
from safetensors.torch import save_file

# Kept out of the training: haystack and perplexity text of the evaluation.
HELD_OUT = ("David Copperfield.md", "Bleak House.md")
VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 2048, 256, 4, 8, 4, 32, 704
MAX_LENGTH = 512
TOKENS_PER_STEP = 8192
# (share of the run, sequence lengths, most names in an exercise, shares of dense / exercises; rest: prose)
CURRICULUM = ((0.04, (64,), 0, 1.0, 0.0), (0.08, (96,), 3, 0.5, 0.35), (0.25, (128,), 4, 0.12, 0.68),
              (0.5, (256,), 8, 0.06, 0.69), (1.01, (256, 512, 512), 32, 0.04, 0.76))


# Text ------------------------------------------------------------------------------------------

def read_books(directory):
    """One string per book. Runs of blank lines and the publisher's head are dropped."""
    books = []
    for path in sorted(pathlib.Path(directory).rglob("*.md")):
        if path.name in HELD_OUT:
            continue
        text = path.read_text(errors="ignore")
        text = text.split("-------", 1)[-1]
        text = re.sub(r"[ \t]*\n[ \t]*", "\n", text)
        books.append(re.sub(r"\n{3,}", "\n\n", text).strip())
    return books


def name_words(books, count=15000):
    """Lower-case words of 3 to 9 letters, the most frequent first: what names are made of."""
    counts = {}
    for book in books:
        for word in re.findall(r"\b[a-z]{3,9}\b", book[:300_000]):
            counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=counts.get, reverse=True)[60:60 + count]


def slicer(books):
    weights = [len(b) for b in books]

    def book_slice(rng, characters):
        book = rng.choices(books, weights)[0]
        start = rng.randrange(max(1, len(book) - characters - 200))
        stop = book.find(". ", start, start + 200)  # from the start of a sentence
        start = stop + 2 if stop > 0 else start
        return book[start:start + characters]
    return book_slice


def train_tokenizer(books, words, out):
    rng = random.Random(5)
    exercises = Exercises(words, slicer(books), 6)
    corpus = out / "tokenizer_corpus.txt"
    with corpus.open("w") as f:
        for book in books:
            for _ in range(max(1, len(book) // 40_000)):
                start = rng.randrange(max(1, len(book) - 4000))
                f.write(book[start:start + 4000].replace("\n", " ") + "\n")
        for _ in range(300):
            text = "".join(t for t, _ in exercises.exercise(200, 6))
            for mark in (USER, ASSISTANT, END):
                text = text.replace(mark, "")
            f.write(text.replace("\n", " ") + "\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(out / "tokenizer"), vocab_size=VOCAB, model_type="bpe",
        split_digits=True, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, max_sentence_length=20000, character_coverage=0.9998,
        user_defined_symbols=[USER, ASSISTANT, END], minloglevel=1)
    corpus.unlink()


# Batches ---------------------------------------------------------------------------------------

class Batches:
    """Sequences of ids with a loss weight per target, for a place in the curriculum."""

    def __init__(self, tokenizer_path, books, words, seed):
        self.sp = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
        self.rng = random.Random(seed)
        self.book_slice = slicer(books)
        self.exercises = Exercises(words, self.book_slice, seed + 1)

    def encode(self, pieces):
        """ids and weights of [(text, weight)]: encoded as one text, as it will be asked."""
        text = "".join(t for t, _ in pieces)
        weight_at = np.empty(len(text) + 1, np.float32)
        at = 0
        for t, w in pieces:
            weight_at[at:at + len(t)] = w
            at += len(t)
        proto = self.sp.encode(text, out_type="immutable_proto")
        ids = [self.sp.bos_id()] + [p.id for p in proto.pieces]
        weights = [0.0] + [float(weight_at[max(p.begin, min(p.end, len(text)) - 1)]) for p in proto.pieces]
        return ids, weights

    def sequence(self, length, most_names, dense, exercise):
        ids, weights = [], []
        while len(ids) < length + 1:
            kind = self.rng.random()
            left = length + 1 - len(ids)
            if kind < dense or left < 40:
                pieces = self.exercises.dense((3, 4, 5, 6) if length <= 128 else (4, 8, 12, 16))
            elif kind < dense + exercise:
                pieces = self.exercises.exercise(left, most_names)
            else:
                pieces = [(self.book_slice(self.rng, left * 5), 1.0)]
            i, w = self.encode(pieces)
            ids += i
            weights += w
        return ids[:length + 1], weights[:length + 1]

    def batch(self, progress):
        _, lengths, names, dense, exercise = next(c for c in CURRICULUM if progress < c[0])
        length = self.rng.choice(lengths)
        rows = [self.sequence(length, names, dense, exercise) for _ in range(TOKENS_PER_STEP // length)]
        return np.array([r[0] for r in rows], np.int64), np.array([r[1] for r in rows], np.float32)


def produce(queue, progress, *args):
    torch.set_num_threads(1)
    batches = Batches(*args)
    while True:
        queue.put(batches.batch(progress.value))


# Model -----------------------------------------------------------------------------------------

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        def matrix(out_features, in_features, scale=1.0):
            return nn.Parameter(torch.randn(out_features, in_features) * (scale / math.sqrt(in_features)))
        deep = 1 / math.sqrt(2 * LAYERS)
        self.q_proj = matrix(HEADS * HEAD_DIM, WIDTH)
        self.k_proj = matrix(KV_HEADS * HEAD_DIM, WIDTH)
        self.v_proj = matrix(KV_HEADS * HEAD_DIM, WIDTH)
        self.o_proj = matrix(WIDTH, HEADS * HEAD_DIM, deep)
        self.gate_proj = matrix(FFN, WIDTH)
        self.up_proj = matrix(FFN, WIDTH)
        self.down_proj = matrix(WIDTH, FFN, deep)
        self.input_layernorm = nn.Parameter(torch.ones(WIDTH))
        self.post_attention_layernorm = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        h = F.rms_norm(x, (WIDTH,), self.input_layernorm, 1e-5)
        qkv = F.linear(h, torch.cat([self.q_proj, self.k_proj, self.v_proj]))
        qkv = qkv.view(b, t, HEADS + 2 * KV_HEADS, HEAD_DIM)
        qk, v = qkv[:, :, :HEADS + KV_HEADS], qkv[:, :, HEADS + KV_HEADS:]
        low, high = qk.chunk(2, -1)
        qk = torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(v.dtype)
        q, k, v = (a.transpose(1, 2) for a in (qk[:, :, :HEADS], qk[:, :, HEADS:], v))
        group = HEADS // KV_HEADS
        o = F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1),
                                           v.repeat_interleave(group, 1), is_causal=True)
        x = x + F.linear(o.transpose(1, 2).reshape(b, t, HEADS * HEAD_DIM), self.o_proj)
        h = F.rms_norm(x, (WIDTH,), self.post_attention_layernorm, 1e-5)
        gate, up = F.linear(h, torch.cat([self.gate_proj, self.up_proj])).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down_proj)


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Parameter(torch.randn(VOCAB, WIDTH) * 0.05)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(WIDTH))
        angle = torch.outer(torch.arange(MAX_LENGTH).float(),
                            10000.0 ** (-torch.arange(HEAD_DIM // 2) / (HEAD_DIM // 2)))
        self.register_buffer("cos", angle.cos()[:, None], persistent=False)
        self.register_buffer("sin", angle.sin()[:, None], persistent=False)

    def forward(self, ids):
        t = ids.shape[1]
        x = F.embedding(ids, self.embed_tokens)
        for layer in self.layers:
            x = layer(x, self.cos[:t], self.sin[:t])
        return F.linear(F.rms_norm(x, (WIDTH,), self.norm, 1e-5), self.embed_tokens)


def token_losses(model, ids):
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")


# Training --------------------------------------------------------------------------------------

def export(model, out):
    """The Hugging Face layout, bf16."""
    tensors = {"model.embed_tokens.weight": model.embed_tokens, "model.norm.weight": model.norm}
    for i, layer in enumerate(model.layers):
        for name, p in layer.named_parameters():
            room = "self_attn." if name[0] in "qkvo" else "mlp." if name.endswith("_proj") else ""
            room = "" if "layernorm" in name else room
            tensors[f"model.layers.{i}.{room}{name}.weight"] = p
    save_file({k: v.detach().to(torch.bfloat16).contiguous().cpu() for k, v in tensors.items()},
              out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "vocab_size": VOCAB, "max_position_embeddings": MAX_LENGTH, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": 1, "eos_token_id": [2, 5], "torch_dtype": "bfloat16"}, indent=2) + "\n")


def answer_accuracy(model, device, make, progress, batches=4):
    """Share of answer tokens predicted right, on fresh exercises."""
    right = total = 0
    with torch.no_grad():
        for _ in range(batches):
            ids, weights = make.batch(progress)
            ids = torch.from_numpy(ids).to(device)
            mask = torch.from_numpy(weights[:, 1:] > 5).to(device)
            with torch.autocast(device, torch.bfloat16):
                hit = model(ids[:, :-1]).argmax(-1) == ids[:, 1:]
            right += (hit & mask).sum().item()
            total += mask.sum().item()
    return right / max(1, total)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", required=True, help="directory with books as Markdown")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="where the model and its state go")
    parser.add_argument("--minutes", type=float, default=120, help="length of the whole run (default %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)

    books = read_books(args.books)
    words = name_words(books)
    tokenizer = args.out / "tokenizer.model"
    if not tokenizer.exists():
        train_tokenizer(books, words, args.out)

    model = Llama().to(device)
    matrices = [p for layer in model.layers for p in layer.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = [torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)]
    step = tokens = 0
    spent = 0.0  # seconds of earlier runs
    state_file = args.out / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for o, s in zip(optimizers, state["optimizers"]):
            o.load_state_dict(s)
        step, tokens, spent = state["step"], state["tokens"], state["seconds"]
        print(f"goes on at step {step}, {spent / 60:.0f} min", flush=True)

    progress = multiprocessing.Value("d", spent / 60 / args.minutes)
    queue = multiprocessing.Queue(6)
    seed = args.seed * 1000 + step
    for i in range(2 if device == "cpu" else 12):
        multiprocessing.Process(target=produce, daemon=True,
                                args=(queue, progress, tokenizer, books, words, seed + 100_003 * i)).start()
    make = Batches(tokenizer, books, words, 987)
    forward = torch.compile(token_losses, dynamic=False)

    start = time.time()
    saved = start
    log = (args.out / "log.txt").open("a")
    while True:
        seconds = spent + time.time() - start
        p = seconds / 60 / args.minutes
        progress.value = min(p, 0.9999)
        if p >= 1:
            break
        rate = args.lr * min(1, (step + 1) / 100) * min(1, (1 - p) / 0.25)
        for o in optimizers:
            for group in o.param_groups:
                group["lr"] = rate
        ids, weights = queue.get()
        ids = torch.from_numpy(ids).to(device)
        weights = torch.from_numpy(weights[:, 1:]).flatten().to(device)
        with torch.autocast(device, torch.bfloat16):
            losses = forward(model, ids)
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        step += 1
        tokens += ids.shape[0] * (ids.shape[1] - 1)
        if step % 50 == 0:
            with torch.no_grad():
                answer = losses[weights > 5].mean().item()
                prose = losses[weights == 1].mean().item()
            line = (f"step {step} tokens {tokens / 1e6:.2f}M min {seconds / 60:.1f} length {ids.shape[1] - 1} "
                    f"loss {loss.item():.3f} answer {answer:.3f} prose {prose:.3f}")
            if step % 200 == 0:
                line += f" accuracy {answer_accuracy(model, device, make, p if p < 1 else 0.9999):.3f}"
            print(line, flush=True)
            print(line, file=log, flush=True)
        if time.time() - saved > 180:
            saved = time.time()
            torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
                        "step": step, "tokens": tokens, "seconds": seconds}, args.out / "state.tmp")
            (args.out / "state.tmp").rename(state_file)
            export(model, args.out)
    export(model, args.out)
    torch.save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers],
                "step": step, "tokens": tokens, "seconds": seconds}, state_file)
    print("done", flush=True)


if __name__ == "__main__":
    main()
