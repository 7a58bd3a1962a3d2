"""The retrieval exercises that the demo model is trained on, and the formats it is later asked in.

Every exercise is a short text: statements hidden in a haystack, then questions. All formats are those
of the public evaluations (InfiniteBench passkey and KV retrieval, RULER, LongChat lines, bAbI), so that
`infllm eval` asks what was learnt; names and values are random in every exercise.
"""

import json
import random
import string

NOISE = ("The grass is green. The sky is blue. The sun is yellow. "
         "Here we go. There and back again.")
PEOPLE = ("Mary John Sandra Daniel Alice Bob Carol David Emma Frank Grace Henry Irene Jack Kate Liam "
          "Nora Oscar Paul Rose Sam Tom Vera Walter Anna Bill Fred Jeff Julie Lily").split()
PLACES = "bathroom bedroom garden hallway kitchen office cellar library stable tower".split()
THINGS = "apple football milk lamp letter sword ring coin map key".split()

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"


class Weighted(list):
    """Pieces of (text, loss weight): what a question's answer weighs in the loss."""

    def add(self, text, weight=1.0):
        self.append((text, weight))
        return self


def digits(rng, n):
    """n digits; half of the time out of two or three only: repeats are what copying confuses."""
    pool = string.digits
    if rng.random() < 0.4:
        pool = "".join(rng.sample(string.digits, rng.choice((2, 3))))
    return "".join(rng.choice(pool) for _ in range(n))


def alike(rng, n, count):
    """`count` values of n digits that mostly share their beginnings: a digit must be copied from the statement
    of the right name, not from wherever the last digits occur."""
    values = [digits(rng, n)]
    while len(values) < count:
        old = rng.choice(values)
        keep = rng.randrange(n)
        new = old[:keep] + digits(rng, n - keep)
        if rng.random() < 0.3:  # only one digit differs
            new = old[:keep] + rng.choice(string.digits) + old[keep + 1:]
        values.append(new)
    rng.shuffle(values)
    return values


def hex_id(rng, groups=(8,)):
    return "-".join("".join(rng.choice("0123456789abcdef") for _ in range(n)) for n in groups)


UUID = (8, 4, 4, 4, 12)


class Exercises:
    def __init__(self, words, book_slice, seed):
        """`words`: lower-case words for names. `book_slice(rng, characters)`: running text."""
        self.words = words
        self.book_slice = book_slice
        self.rng = random.Random(seed)

    # Names and values -------------------------------------------------------------------------

    def name(self):
        r = self.rng
        kind = r.random()
        if kind < 0.75:
            return f"{r.choice(self.words)}-{r.choice(self.words)}"
        if kind < 0.83:
            return r.choice(PEOPLE)
        if kind < 0.9:
            return r.choice(self.words)
        if kind < 0.95:
            return "".join(r.choice(string.ascii_uppercase) for _ in range(r.choice((3, 5))))
        return digits(r, r.choice((3, 4, 5)))

    def names(self, n):
        """n distinct names; often some share a word, so that half a name is not enough."""
        r = self.rng
        out = []
        while len(out) < n:
            if out and "-" in out[-1] and r.random() < 0.3:
                head, tail = out[-1].split("-")
                new = f"{head}-{r.choice(self.words)}" if r.random() < 0.5 else f"{r.choice(self.words)}-{tail}"
            else:
                new = self.name()
            if new not in out:
                out.append(new)
        return out

    def values(self, count, width):
        r = self.rng
        return alike(r, width, count) if r.random() < 0.35 else [digits(r, width) for _ in range(count)]

    # Haystacks --------------------------------------------------------------------------------

    def hay(self, characters, kind):
        r = self.rng
        if characters <= 0:
            return []
        if kind == "noise":
            return [NOISE] * (characters // len(NOISE) + 1)
        text = self.book_slice(r, characters)
        return [s for s in text.split(". ") if s]

    # Families: each returns (statements, ask) where ask() gives (question, prefix, answer) --------

    def pass_keys(self, n):
        r = self.rng
        if n == 1:
            key = digits(r, 5)
            s = [f"The pass key is {key}. Remember it. {key} is the pass key."]
            return s, lambda: ("What is the pass key?", "The pass key is", f" {key}", ".")
        names = self.names(n)
        width = r.choice((2, 3, 5, 5, 5, 5, 5, 5))
        keys = self.values(n, width)
        s = [f"The pass key of {a} is {k}. Remember it. {k} is the pass key of {a}." if r.random() < 0.7
             else f"The pass key of {a} is {k}." for a, k in zip(names, keys)]

        def ask():
            i = r.randrange(n)
            return (f"What is the pass key of {names[i]}?", f"The pass key of {names[i]} is", f" {keys[i]}", ".")
        return s, ask

    def number_string(self, n):
        r = self.rng
        key = list(digits(r, 5))
        for _ in range(5):
            i = r.randrange(len(key))
            key.insert(i, key[i])
        key = "".join(key)
        s = [f"The sequence of digits is {key}. Remember it. {key} is the sequence of digits."]
        return s, lambda: ("What is the sequence of digits?", "The sequence of digits is", f" {key}", ".")

    def magic(self, n):
        r = self.rng
        names = self.names(n)
        kind = "number" if r.random() < 0.9 else "word"
        per_name = [1] * n
        if r.random() < 0.25:
            per_name[r.randrange(n)] = r.choice((2, 3, 4))
        width = r.choice((2, 4, 5, 7, 7, 7, 7, 7, 7))
        numbers = iter(self.values(sum(per_name), width))
        values = [[next(numbers) if kind == "number" else r.choice(self.words) for _ in range(k)]
                  for k in per_name]
        s = [f"One of the special magic {kind}s for {a} is: {v}." for a, vs in zip(names, values) for v in vs]

        def ask():
            i = r.randrange(n)
            if len(values[i]) > 1 and r.random() < 0.7 or r.random() < 0.1:
                answer = " " + ", ".join(values[i])
                return (f"What are all the special magic {kind}s for {names[i]} mentioned in the provided text?",
                        f"The special magic {kind}s for {names[i]} mentioned in the provided text are", answer, ".")
            if n > 1 and r.random() < 0.1 and all(len(v) == 1 for v in values):
                some = r.sample(range(n), min(n, r.choice((2, 3, 4))))
                who = ", ".join(names[j] for j in some[:-1]) + f", and {names[some[-1]]}"
                return (f"What are all the special magic {kind}s for {who} mentioned in the provided text?",
                        f"The special magic {kind}s for {who} mentioned in the provided text are",
                        " " + ", ".join(values[j][0] for j in some), ".")
            return (f"What is the special magic {kind} for {names[i]} mentioned in the provided text?",
                    f"The special magic {kind} for {names[i]} mentioned in the provided text is",
                    f" {values[i][0]}", ".")
        return s, ask

    def bare(self, n):
        """The densest recall: pairs and nothing else."""
        r = self.rng
        names = self.names(n)
        width = r.choice((1, 2, 3, 5, 5, 7))
        values = self.values(n, width)
        verb = r.choice(("", " is", ":", " ="))
        s = [f"{a}{verb} {v}." for a, v in zip(names, values)]

        def ask():
            i = r.randrange(n)
            return ("", f"{names[i]}{verb}", f" {values[i]}", ".")
        return s, ask

    def lines(self, n):
        r = self.rng
        names = self.names(n)
        values = [digits(r, 5) for _ in names]
        s = [f"line {a}: REGISTER_CONTENT is <{v}>" for a, v in zip(names, values)]

        def ask():
            i = r.randrange(n)
            return (f"Tell me what is the <REGISTER_CONTENT> in line {names[i]}?",
                    f"The <REGISTER_CONTENT> in line {names[i]} is", f" <{values[i]}>", ".")
        return s, ask

    def pairs(self, n):
        """JSON key-value pairs, short ids mostly; the whole object is one statement."""
        r = self.rng
        shape = r.choice(((4,), (6,), (8,), (8,), (8, 4))) if n > 1 else UUID
        keys = [hex_id(r, shape) for _ in range(n)]
        values = [hex_id(r, shape) for _ in range(n)]
        s = ["JSON data:\n" + json.dumps(dict(zip(keys, values)))]

        def ask():
            i = r.randrange(n)
            return (f'Key: "{keys[i]}"', "The value associated with the specified key is:",
                    f' "{values[i]}"', "")
        return s, ask

    def variables(self, n):
        r = self.rng
        values = [digits(r, 5) for _ in range(max(1, n // 3))]
        chains = [[] for _ in values]
        s = []
        for _ in range(n):
            c = r.randrange(len(values))
            name = "".join(r.choice(string.ascii_uppercase) for _ in range(r.choice((3, 5))))
            s.append(f"VAR {name} = {values[c]}" if not chains[c] else f"VAR {name} = VAR {chains[c][-1]}")
            chains[c].append(name)

        def ask():
            c = r.choice([i for i, chain in enumerate(chains) if chain])
            return (f"Question: Find all variables that are assigned the value {values[c]} in the text above.",
                    f"Answer: According to the chain(s) of variable assignment in the text above, "
                    f"{len(chains[c])} variables are assgined the value {values[c]}, they are:",
                    " " + " ".join(chains[c]), "")
        return s, ask

    def facts(self, n):
        """Who went where and took what, after bAbI's first tasks: the last statement counts."""
        r = self.rng
        people = r.sample(PEOPLE, max(1, n // 2))
        where, has, s = {}, {}, []
        for _ in range(n):
            p = r.choice(people)
            if where.get(p) and r.random() < 0.25:
                has[r.choice(THINGS)] = p
                thing = next(t for t in reversed(has))
                s.append(f"{p} {r.choice(('took', 'picked up', 'got'))} the {thing} there.")
            else:
                where[p] = r.choice(PLACES)
                verb = r.choice(("went to", "moved to", "travelled to", "journeyed to"))
                s.append(f"{p} {verb} the {where[p]}.")

        def ask():
            if has and r.random() < 0.3:
                t = r.choice(list(has))
                return (f"Who has the {t}?", f"The {t} is with", f" {has[t]}", ".")
            p = r.choice(list(where))
            return (f"Where is {p}?", f"{p} is in the", f" {where[p]}", ".")
        return s, ask

    FAMILIES = ((pass_keys, 4), (number_string, 0.6), (magic, 4), (bare, 2), (lines, 0.7), (pairs, 0.7),
                (variables, 0.5), (facts, 0.5))

    # Whole exercises --------------------------------------------------------------------------

    def dense(self, pairs):
        """Short: bare pairs, then questions with replacement."""
        text = Weighted()
        s, ask = self.bare(self.rng.choice(pairs))
        text.add(" ".join(s), 0.3)
        asked_before = set()
        for _ in range(len(s) + 3):
            _, prefix, answer, stop = ask()
            text.add(" " + prefix, 0.3).add(answer, 1.5 if prefix in asked_before else 6.0).add(stop)
            asked_before.add(prefix)
        return text

    INSTRUCTIONS = {
        "magic": ("Some special magic numbers are hidden within the following text. Make sure to memorize it. "
                  "I will quiz you about the numbers afterwards.\n"),
        "variables": ("Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"),
        "pairs": "Extract the value corresponding to the specified key in the JSON object below.\n\n",
        "lines": ("Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and "
                  "contains a '<REGISTER_CONTENT>' at the end of the line as a numerical value.\n\n"),
        "facts": "Read the text and answer the questions.\n\n",
    }
    INSTRUCTION = ("There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
                   "I will quiz you about the important information.\n\n")

    def exercise(self, length, most_names, family=None, n=None):
        """About `length` tokens: instruction?, haystack with statements, questions with replacement."""
        r = self.rng
        family = family or r.choices([f for f, _ in self.FAMILIES], [w for _, w in self.FAMILIES])[0]
        name = family.__name__
        n = n or (1 if r.random() < 0.15 else r.randint(1, most_names))
        if name in ("pairs", "lines", "variables", "facts"):
            n = max(2, min(n, length // 24)) if r.random() < 0.9 else 1
        # About 3 characters a token in prose, 2.2 in statements and questions, which must have room.
        while True:
            statements, ask = family(self, n)
            questions = [ask() for _ in range(r.randint(1, 2) if n == 1 else r.randint(max(2, n // 2), n + 2))]
            asked = sum(len(q) * 0.6 + len(p) + len(a) + 2 for q, p, a, _ in questions)
            needed = (sum(map(len, statements)) + asked) / 2.2
            if needed < length or n <= 2:
                break
            n = n * 3 // 4
        bare = name == "bare"
        chat = r.random() < 0.3
        room = int((length * r.uniform(0.4, 1.0) - needed) * 3)
        kind = r.choices(("book", "noise", "none"), (0.55, 0.25, 0.2))[0]
        hay = [] if kind == "none" else self.hay(room, kind)
        if name not in ("variables", "facts"):
            r.shuffle(statements)
        slots = sorted(r.randint(0, len(hay)) for _ in statements)
        context, j = [], 0
        for i in range(len(hay) + 1):
            while j < len(slots) and slots[j] == i:
                context.append(statements[j])
                j += 1
            if i < len(hay):
                context.append(hay[i] if kind == "noise" else hay[i] + ".")

        text = Weighted()
        if chat:
            text.add(f"{USER}\n", 0.0)
        if r.random() < 0.4:
            text.add(self.INSTRUCTIONS.get(name, self.INSTRUCTION), 0.1)
        glue = "\n" if name in ("lines", "variables") and not hay else " "
        text.add(glue.join(context), 0.3 if kind == "noise" else 0.6)
        asked_before = set()
        for i, (question, prefix, answer, stop) in enumerate(questions):
            # A repeated question can be answered by looking at its last answer: it teaches little.
            weight = 1.5 if prefix in asked_before else 6.0
            asked_before.add(prefix)
            if chat:
                text.add("\n" if i == 0 else f"{END}\n{USER}\n", 0.3)
                text.add((question or prefix.strip() + "?") + f"{END}\n{ASSISTANT}\n", 0.3)
                if r.random() < 0.3:
                    text.add(answer.strip(), weight).add(stop)
                else:
                    text.add(prefix, 0.3).add(answer, weight).add(stop)
                continue
            glue = r.choice(("\n", "\n\n")) if i == 0 else "\n"
            if bare:
                text.add(" " + prefix, 0.3)
            elif r.random() < 0.35:
                text.add(glue + prefix, 0.3)
            else:
                text.add(glue + question + r.choice((" ", "\n", " ")) + prefix, 0.3)
            text.add(answer, weight).add(stop)
        if chat:
            text.add(END, 0.3)
        return text
