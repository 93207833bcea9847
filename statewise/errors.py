"""The errors that Statewise raises on purpose, as one tree.

StatewiseError
├── InvalidRequestError      a request (or an argument) that can never succeed as it stands
├── NotFoundError            no such model, version or plugin
├── OverloadedError          no room now; the same request may succeed later
├── UnavailableError         the server is stopping, or a model is not ready
├── DeadlineExceededError    the caller's deadline passed first
├── CancelledError           the caller went away
├── BundleError              a bundle that is damaged, incomplete or not certified
├── ConfigError              a configuration, data set or checkpoint that cannot be used
├── ParityError              the export does not compute what PyTorch computes
├── DivergedError            a training run that has learnt nothing, or whose loss is no number
├── DataLossError            a model produced NaN or infinity for this request
└── InternalError            a step failed; our fault, not the caller's

`statewise/status.py` gives each its gRPC code, in one table; the clients read the same table backwards.
On the command line ParityError and DivergedError exit with 1, every other error with 2.
"""


class StatewiseError(Exception):
    """Base of every error raised on purpose; its message says what is wrong and what to do."""


class InvalidRequestError(StatewiseError):
    """A request that can never succeed; `field` names the culprit: an argument's name, or the wire's on the wire."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.message = message
        """Without the field's name."""
        self.field = field

    def renamed(self, field: str) -> "InvalidRequestError":
        """Return the same error with the field's name in another interface."""
        return InvalidRequestError(self.message, field=field)


class NotFoundError(StatewiseError):
    """No such model, version or plugin."""


class OverloadedError(StatewiseError):
    """The server has no room for the request now; retry with back-off."""


class UnavailableError(StatewiseError):
    """The server cannot be reached, is stopping, or the model is not ready."""


class DeadlineExceededError(StatewiseError):
    """The caller's deadline passed before the work was done."""


class CancelledError(StatewiseError):
    """The caller cancelled the request."""


class BundleError(StatewiseError):
    """A bundle that is damaged, incomplete or not certified."""


class ConfigError(StatewiseError):
    """A configuration, data set or checkpoint that cannot be used."""


class ParityError(StatewiseError):
    """The exported graph does not compute what the PyTorch model computes."""


class DivergedError(StatewiseError):
    """A training run that ends worse than a prediction that ignores the input, or whose loss is not finite."""


class DataLossError(StatewiseError):
    """The model produced NaN or infinity for this request."""


class InternalError(StatewiseError):
    """A step failed for a reason that is not the caller's."""
