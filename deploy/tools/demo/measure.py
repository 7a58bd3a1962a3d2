#!/usr/bin/env python3
"""Short-context accuracy of the demo model: full attention, at its training length.

An answer counts if every token of it is the most likely one given the right ones before it, which is
when greedy decoding gives the whole answer. Only the first question for a name counts.

    deploy/tools/demo/measure.py --books BOOKS_DIR --model MODEL_DIR
"""

import argparse
import pathlib

import torch
from exercises import Exercises
from safetensors.torch import load_file
from train import MAX_LENGTH, Batches, Llama, name_words, read_books


def load(directory):
    tensors = load_file(directory / "model.safetensors")
    model = Llama()
    with torch.no_grad():
        for name, p in model.named_parameters():
            parts = name.split(".")
            match = [k for k in tensors if k.split(".")[-2] == parts[-1]
                     and (parts[0] != "layers" or k.startswith(f"model.layers.{parts[1]}."))]
            p.copy_(tensors[match[0]].float())
    return model.eval()


@torch.no_grad()
def accuracy(model, batches, family, names, length, answers):
    right = seen = 0
    while seen < answers:
        rows = []
        for _ in range(16):
            ids, weights = batches.encode(batches.exercises.exercise(length, names, family, names))
            rows.append((ids[:MAX_LENGTH + 1], weights[:MAX_LENGTH + 1]))
        width = max(len(r[0]) for r in rows)
        ids = torch.tensor([r[0] + [0] * (width - len(r[0])) for r in rows])
        hits = model(ids[:, :-1]).argmax(-1) == ids[:, 1:]
        for row, (_, weights) in enumerate(rows):
            at = 1
            while at < len(weights):
                end = at
                while end < len(weights) and weights[end] > 5:
                    end += 1
                if end > at and end < len(weights):
                    seen += 1
                    right += hits[row, at - 1:end - 1].all().item()
                at = max(at + 1, end)
    return right / seen, seen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", required=True)
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--answers", type=int, default=200, help="answers per line (default %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    books = read_books(args.books)
    batches = Batches(args.model / "tokenizer.model", books, name_words(books), 4711)
    model = load(args.model)
    print("| exercise | statements, at most | tokens | answers | right |\n|---|--:|--:|--:|--:|")
    for family, _ in Exercises.FAMILIES:
        for names in (1, 4, 16) if family.__name__ not in ("number_string",) else (1,):
            if family.__name__ == "pairs" and names == 16:
                continue
            share, seen = accuracy(model, batches, family, names, MAX_LENGTH, args.answers)
            print(f"| {family.__name__.replace('_', ' ')} | {names} | {MAX_LENGTH} | {seen} | {share:.1%} |", flush=True)
    with torch.no_grad():
        losses = []
        for _ in range(20):
            ids, _ = batches.encode([(batches.book_slice(batches.rng, 3000), 1.0)])
            ids = torch.tensor(ids[:MAX_LENGTH + 1])[None]
            losses.append(torch.nn.functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:]).item())
        print(f"\nProse of the training books: {sum(losses) / len(losses):.3f} nats per token.")


if __name__ == "__main__":
    main()
