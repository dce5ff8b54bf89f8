"""Make tests/golden/*.jsonl once: a small text of our own, from the docstrings and functions of this package.

The text is frozen: making it anew changes every golden value.

    python tools/make_golden_text.py tests/golden
"""

import ast
import json
import sys
from pathlib import Path


def main(out: Path) -> None:
    root = Path(__file__).resolve().parents[1] / "jaxllm"
    prose, code = [], []
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            name = module if isinstance(node, ast.Module) else f"{module}:{node.name}:{node.lineno}"
            words = ast.get_docstring(node)
            if words and len(words) > 60:
                prose.append({"id": name, "text": words})
            if (
                isinstance(node, ast.FunctionDef)
                and 300 < len(source := ast.get_source_segment(text, node) or "") < 1500
            ):
                code.append({"id": name, "text": source})
    for name, documents, most in (("prose", prose, 45_000), ("code", code, 60_000)):
        size, lines = 0, []
        for document in documents:
            if (size := size + len(document["text"])) > most:
                break
            lines.append(json.dumps(document, ensure_ascii=False, sort_keys=True))
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
