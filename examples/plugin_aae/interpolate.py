"""Words on the way from one word to another: `python interpolate.py statement exception`, beside a running server.

The server encodes both words to vectors, and decodes points between them.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from statewise import Client
from statewise.client import DEFAULT_ADDRESS


def encode(client: Client, model: str, words: list[str]) -> NDArray[np.float32]:
    """Encode words to vectors `[word, latent]`."""
    return np.stack([prediction.embedding for prediction in client.predict(model, words)])


def decode(client: Client, model: str, vector: NDArray[np.float32]) -> str:
    """Decode a vector `[latent]` to a word."""
    return client.generate(model, "", source=vector[None], max_tokens=24, temperature=0).text


def interpolate(client: Client, model: str, first: str, last: str, steps: int) -> list[str]:
    """Return words at even distances on the straight line between the vectors of two words."""
    start, end = encode(client, model, [first, last])
    return [
        decode(client, model, start + (end - start) * share) for share in np.linspace(0, 1, steps, dtype=np.float32)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first")
    parser.add_argument("last")
    parser.add_argument("--model", default="words")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--address", default=DEFAULT_ADDRESS)
    given = parser.parse_args()
    with Client(given.address, timeout=30) as client:
        print(*interpolate(client, given.model, given.first, given.last, given.steps), sep="  ")


if __name__ == "__main__":
    main()
