"""Numbers with their nouns and verbs: the forms, and that no message of the package has `1 ... are`."""

from __future__ import annotations

import re
from pathlib import Path

import tiltyard
from tiltyard.numerals import plural, verb

PLURAL_VERB = re.compile(r"""(plural\([^{}]*'\)|plural\([^{}]*"\)|:,)\} (are|were|have|do) """)


def test_forms() -> None:
    rows = [(1, "1 row is left out"), (0, "0 rows are left out"), (1200, "1,200 rows are left out")]
    for count, text in rows:
        assert f"{plural(count, 'row')} {verb(count, 'is', 'are')} left out" == text
        assert f"{plural(count, 'row is', 'rows are')} left out" == text


def test_no_verb_is_plural_whatever_its_number() -> None:
    """A verb that follows a formatted number agrees with it, or the sentence does without one."""
    assert PLURAL_VERB.search("""f"{plural(n, 'row')} are left out" """)
    assert not PLURAL_VERB.search("""f"{plural(n, 'row is', 'rows are')} left out" """)
    package = Path(tiltyard.__file__).parent
    found = [
        f"{path.relative_to(package)}:{number}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if PLURAL_VERB.search(line)
    ]
    assert found == []
