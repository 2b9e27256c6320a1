"""Lines of JSON on stdout."""

import json
import sys


def report(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def describe(error: BaseException) -> str:
    """An error with the errors of its group, or its cause."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(describe(one) for one in error.exceptions)
    text = f"{type(error).__name__}: {error}"
    return f"{text} <- {describe(error.__cause__)}" if error.__cause__ else text
