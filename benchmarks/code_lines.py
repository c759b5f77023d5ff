"""Count the code lines of the package, per room: without blank lines, comments, docstrings and imports.

python3 benchmarks/code_lines.py [FOLDER]
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path


def code_lines(text: str) -> int:
    """Return the number of lines of a Python file that hold code other than imports."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if is_documented and ast.get_docstring(node) is not None:
            node = node.body[0]
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        skipped |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(map(str.strip, text.splitlines()), start=1)
    return sum(bool(line) and not line.startswith("#") and number not in skipped for number, line in lines)


def main() -> None:
    """Print the number of lines of every folder and of the files beside them."""
    package = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "nvae")
    counts: Counter[str] = Counter()
    for file in package.rglob("*.py"):
        folders = file.relative_to(package).parts[:-1]
        for depth in range(len(folders) + 1):
            counts["/".join(("nvae", *folders[:depth]))] += code_lines(file.read_text(encoding="utf-8"))
    for folder, count in sorted(counts.items()):
        print(f"{count:6,}  {folder}")


if __name__ == "__main__":
    main()
