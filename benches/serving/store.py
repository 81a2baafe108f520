"""Results, one JSON line each, under a key; a later one replaces an earlier one."""

import json
import time
from pathlib import Path


class Store:
    def __init__(self, path):
        self.path = Path(path)
        self.lines = {}
        if self.path.exists():
            for text in self.path.read_text().splitlines():
                line = json.loads(text)
                self.lines[line["key"]] = line

    def add(self, key, value):
        self.lines[key] = {"key": key, "at": round(time.time()), "value": value}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as out:
            out.write(json.dumps(self.lines[key]) + "\n")

    def get(self, key):
        line = self.lines.get(key)
        return line and line["value"]

    def below(self, prefix):
        """Results whose keys begin so, by what follows."""
        found = {}
        for key, line in self.lines.items():
            if key.startswith(prefix):
                found[key.removeprefix(prefix)] = line["value"]
        return found
