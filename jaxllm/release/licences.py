"""The licence of a release: said by a person, never chosen for one. No jax."""

import re
from dataclasses import dataclass
from pathlib import Path

from jaxllm.core.errors import ConfigError
from jaxllm.release.layout import NOT_STATED

_TEXTS = Path(__file__).parent / "licences"
_SPDX = re.compile(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*")


@dataclass(frozen=True)
class Licence:
    """Of the weights: an SPDX expression and the text of LICENSE. data: of the data, an expression or 'not stated'."""

    spdx: str
    text: str
    data: str


def licence_of(spdx: str | None, file: Path | None, data: str | None) -> Licence:
    """From the command line. ConfigError: none was named, it is no SPDX expression, or its text is not here."""
    carried = sorted(p.stem for p in _TEXTS.glob("*.txt"))
    if spdx is None:
        raise ConfigError(
            f"a release needs the licence that you give its weights: --licence {carried[0]}, or --licence SPDX-ID "
            f"--licence-file FILE with its text"
        )
    for option, value in (("--licence", spdx), ("--data-licence", data)):
        if value is not None and value != NOT_STATED and not _SPDX.fullmatch(value):
            raise ConfigError(f"{option} {value}: write an SPDX expression, as Apache-2.0 or LicenseRef-My-Own")
    if spdx == NOT_STATED:
        raise ConfigError(f"--licence {spdx}: without one nobody may use the weights; name one")
    if file is None:
        if spdx not in carried:
            raise ConfigError(
                f"--licence {spdx}: its text is not carried ({', '.join(carried)} is); give --licence-file FILE"
            )
        file = _TEXTS / f"{spdx}.txt"
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"--licence-file {file} is no text in UTF-8") from None
    if not text.strip():
        raise ConfigError(f"--licence-file {file} is empty")
    return Licence(spdx, text, NOT_STATED if data is None else data)
