"""Names of the command line's flags for the arguments that errors name."""

from __future__ import annotations

from statewise.errors import InvalidRequestError

_FLAGS = {
    "num_beams": "--beams",
    "num_hypotheses": "--hypotheses",
    "num_paths": "--paths",
    "prompt": "PROMPT",
    "context": "--file",
    "inputs": "TEXTS",
    "model": "MODEL",
}
"""Flags that are not spelled as their argument."""

_SAME = {
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "logprobs", "source", "length_penalty"),
    "horizon",
}


def in_flags(error: InvalidRequestError) -> InvalidRequestError:
    """Return the error with the flag's name in place of the argument's."""
    name, *rest = (error.field or "").replace("[", ".[").split(".")
    flag = _FLAGS.get(name) or (f"--{name.replace('_', '-')}" if name in _SAME else None)
    return error if flag is None else error.renamed("".join([flag, *rest]))
