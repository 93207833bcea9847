"""Words as short strings: `python -m statewise_aae.words FILE` writes them as JSON Lines.

The words are from the source files of Python's standard library, so nothing is downloaded.
"""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from collections import Counter
from pathlib import Path

_WORD = re.compile(r"(?<![A-Za-z])[a-z]{3,12}(?![A-Za-z])")


def words() -> list[str]:
    """Return every word of 3 to 12 lowercase letters that occurs in at least three files, sorted."""
    library = Path(sysconfig.get_path("stdlib"))
    num_files: Counter[str] = Counter()
    # The tests are left out: many of their strings are not words.
    for file in (*library.glob("*.py"), *library.glob("[!t]*/*.py")):
        num_files.update(set(_WORD.findall(file.read_text(encoding="utf-8", errors="ignore"))))
    return sorted(word for word, number in num_files.items() if number > 2)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("".join(json.dumps({"text": word}) + "\n" for word in words()))
