"""Hold `data step` and `data find` of a run against each other, for every step and every document of its store.

    python tools/check_trace.py runs/quickstart

Exit code 1 if a step saw a document that `find` does not know of, or the other way round.
"""

import sys
from pathlib import Path

from jaxllm.ledger.find import steps_of_document
from jaxllm.ledger.trace import documents_of_step
from jaxllm.workspace import open_run, open_store


def main(folder: Path) -> int:
    run, store = open_store(open_run(folder), folder)
    by_step = {
        (step, row.row, row.source, span.id, span.start, span.stop)
        for step in range(1, run.steps + 1)
        for row in documents_of_step(store, run.data, run.seed, step)
        for span in row.spans
    }
    by_document, never = set(), 0
    for name, reader in store.sources.items():
        for number in range(reader.documents):
            document = reader.document(number).id
            found = steps_of_document(store, run.data, run.seed, document, source=name)
            never += found.never is not None
            by_document |= {(s.step, s.row, s.source, document, s.start, s.stop) for s in found.sightings}
    documents = sum(reader.documents for reader in store.sources.values())
    print(f"{run.steps} steps saw {len(by_step)} spans; {documents} documents were seen {len(by_document)} times")
    print(f"{never} documents were never seen; {len(by_step ^ by_document)} disagreements")
    return 1 if by_step ^ by_document else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
