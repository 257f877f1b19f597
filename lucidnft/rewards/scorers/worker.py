"""The other end of `ExternalReward`: answers requests for scores, one JSON line each, until its input ends.

    python worker.py SCORER.py '{"device": "cuda", ...}'

SCORER.py defines `build(**options)`, which returns a function from a list of image paths to a list of numbers.
Runs in the scorer's own environment, so it needs nothing but Python 3.8.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback


def main() -> None:
    """Say that the scorer is there, then answer; whatever the scorer prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of compiled code too

    def answer(**value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        score = runpy.run_path(sys.argv[1])["build"](**json.loads(sys.argv[2]))
    except Exception as error:
        traceback.print_exc()
        answer(error=f"{type(error).__name__}: {error}")
        return
    answer(ready=True)
    for line in sys.stdin:
        try:
            answer(scores=[float(value) for value in score(json.loads(line)["images"])])
        except Exception as error:
            traceback.print_exc()
            answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
