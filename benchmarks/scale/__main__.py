"""The tables of docs/scale.md.

python -m benchmarks.scale memory            each process, from shapes and settings
python -m benchmarks.scale time              a step of GRPO, and published pushes
python -m benchmarks.scale measure FOLDER    the simulation against this processor, on a chat model
python -m benchmarks.scale together FOLDER --python VLLM    one recipe alone, sharded, sharded with vLLM
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.scale import memory, simulate


def main(words: list[str]) -> int:
    """Prints one table; returns the exit status."""
    if words == ["memory"]:
        lines = [*memory.table(), "", *memory.parts()]
    elif words == ["time"]:
        lines = [*simulate.table(), "", *simulate.published()]
    elif words[:1] == ["together"]:
        from benchmarks.scale.together import main as together

        return together(words[1:])
    elif words[:1] == ["measure"] and len(words) == 2:
        from benchmarks.scale.measure import of_folder

        lines = of_folder(Path(words[1]))
    else:
        print(__doc__, file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
