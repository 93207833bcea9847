"""Settings of an engine; the engines of all models share them."""

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError


class EngineSettings(BaseModel):
    """Sizes and limits of one engine. Frozen; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    max_rows: int = Field(default=16, ge=1, le=65536)
    """Streams that run at once; each holds one row of state."""

    max_positions: int | None = Field(default=None, ge=2)
    """Most positions of one request, prompt and output together; by default (and at most) the model's own."""

    state_memory: ByteSize | None = Field(default=None, gt=0)
    """Bytes of state over all rows ("512MB", "2GiB"); by default half of the free memory, shared by the models."""

    prefix_memory: ByteSize | None = Field(default=None, ge=0)
    """Bytes of saved prompt beginnings, beside `state_memory`; by default a quarter of it, at most 2 GiB. 0: off."""

    max_waiting: int = Field(default=256, ge=0)
    """Requests that may wait for a row; the next one is refused with RESOURCE_EXHAUSTED."""

    max_waiting_tokens: int = Field(default=262144, ge=1)
    """Prompt items that may wait, over all waiting requests."""

    prefill_chunk: int = Field(default=64, ge=1)
    """Most items of one prompt in one run, so that a long prompt does not stall running streams."""

    token_budget: int = Field(default=512, ge=1)
    """Most prompt and source items in one step, over all its rows; one whole chunk, behind its whole source, is always
    taken."""

    mixed_steps: bool = True
    """Whether a prompt's chunk is read in the run that decodes, where the bundle has a graph for it: more throughput
    for a second copy of the weights in memory."""

    cuda_graphs: bool = True
    """Whether decode steps on a GPU are captured as CUDA graphs, where they can be."""

    decode_ms: float = Field(default=15.0, gt=0)
    """Milliseconds that one decode run may take; sets how many items each row makes in it."""

    max_decode_steps: int = Field(default=32, ge=1)
    """Most items that a row makes in one decode run."""

    default_max_tokens: int = Field(default=256, ge=1)
    """Items generated where a request names no number."""

    max_tokens: int = Field(default=65536, ge=1)
    """Most items that a request may ask for."""

    max_prompt_tokens: int = Field(default=65536, ge=1)
    """Longest prompt, the start token included."""

    max_beams: int = Field(default=16, ge=2)
    """Most beams of one beam search; each holds a row, so `max_rows` bounds them too."""

    max_stop_strings: int = Field(default=8, ge=0)
    """Most stop strings of one request."""

    max_top_log_probabilities: int = Field(default=20, ge=0)
    """Most alternatives returned beside each chosen token."""

    batch_delay_ms: float = Field(default=2.0, ge=0, le=1000)
    """Longest wait of a whole sequence (Predict, Score) for others to share its batch."""

    max_batch_rows: int = Field(default=32, ge=1)
    """Most sequences in one such batch."""

    max_batch_tokens: int = Field(default=8192, ge=16)
    """Most items in one such batch, padding included, and of one such sequence: what a run needs grows with it."""

    max_inputs: int = Field(default=256, ge=1)
    """Most sequences of one Predict or Score request."""

    max_waiting_inputs: int = Field(default=4096, ge=1)
    """Sequences that may wait for a batch; `max_waiting_tokens` bounds their items too."""

    intra_op_threads: int = Field(default=0, ge=0)
    """Threads that compute one run; 0 takes all cores."""


def describe_faults(error: ValidationError, known: Iterable[str]) -> list[str]:
    """One line for each setting at fault: its name, the reason and the value; for an unknown name the nearest known."""
    known, lines = list(known), []
    for fault in error.errors(include_url=False):
        value = "" if fault["type"] == "missing" else f", got {fault['input']!r}"
        is_unknown = fault["type"] == "extra_forbidden"
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1) if is_unknown else ()
        meant = f"; did you mean {near[0]}?" if near else ""
        lines.append(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}{value}{meant}")
    return lines
