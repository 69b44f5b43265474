#!/usr/bin/env python3
"""Checks that SPECIFICATION.md tells the truth: each test that it names exists.

Test names are the words in backquotes, of three or more parts joined by `_`, in its tables. Also lists
the tests `defect_<number>_…` that it does not name yet.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

text = (ROOT / "SPECIFICATION.md").read_text()
rows = [line for line in text.splitlines() if line.startswith("|")]
named = {name for row in rows for name in re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+){2,})`", row)}
sources = [p for top in ("crates", "fuzz") for p in (ROOT / top).rglob("*.rs") if "target" not in p.parts]
known = {name for path in sources for name in re.findall(r"\bfn ([a-z0-9_]+)", path.read_text())}

missing = sorted(named - known)
for name in missing:
    print(f"SPECIFICATION.md names the test {name}, which does not exist")
for name in sorted(n for n in known - named if re.match(r"defect_\d+_", n)):
    print(f"note: {name} exists and is not named")
pending = sum("*pending*" in row for row in rows)
print(f"COUNT: {len(named)} tests named, {len(missing)} missing, {pending} rows pending")
sys.exit(1 if missing else 0)
