"""Real English sentences that everybody who has the same Python has: prose of the language reference and of the
docstrings of the standard library (the figures in the repository: Python 3.11)."""

import ast
import pathlib
import random
import re
import sysconfig


def texts():
    """Prose of the language reference and of the docstrings of the standard library."""
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py")) + sorted(library.glob("[a-z]*/*.py")):
        if "site-packages" in path.parts or "test" in path.parent.name:
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found = (ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, kinds))
        yield from (text for text in found if text)


def sentences():
    """Different sentences of 8 to 30 words that are words for the most part, in an order that is fixed."""
    seen = {}
    for text in texts():
        for block in re.split(r"\n\s*\n", text):
            block = " ".join(block.split())
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", block):
                words = sentence.split()
                plain = sum(bool(re.fullmatch(r"[A-Za-z][A-Za-z'-]*[,.;:]?", w)) for w in words)
                if 8 <= len(words) <= 30 and plain >= 0.9 * len(words) and sentence[-1] == ".":
                    seen.setdefault(sentence)
    made = sorted(seen)
    random.Random(0).shuffle(made)
    return made
