"""pandas tables in and out; pandas is imported only where a caller has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from statewise.client.items import is_frame
from statewise.errors import ConfigError

if TYPE_CHECKING:
    from statewise.client.values import Forecast, Generation, Prediction, Score


def feature_names(series: Any) -> tuple[str, ...] | None:
    """Return the names of a table's columns, or a named Series' own; None for other input."""
    if not is_frame(series):
        return None
    if hasattr(series, "columns"):
        return tuple(map(str, series.columns))
    return None if series.name is None else (str(series.name),)


def continued_index(series: Any, horizon: int) -> Any:
    """Return the index of the `horizon` items behind a table; None for input without one.

    Dates go on by their frequency and a range by its step; behind any other index the items are numbered from 0.
    """
    if not is_frame(series):
        return None
    import pandas as pd

    index = series.index
    if isinstance(index, pd.RangeIndex):
        first = index[-1] + index.step
        return pd.RangeIndex(first, first + horizon * index.step, index.step, name=index.name)
    if isinstance(index, pd.PeriodIndex):
        return pd.period_range(index[-1] + 1, periods=horizon, freq=index.freq, name=index.name)
    frequency = _frequency(index) if isinstance(index, pd.DatetimeIndex) else None
    if frequency is None:
        return pd.RangeIndex(horizon)
    return pd.date_range(index[-1], periods=horizon + 1, freq=frequency, name=index.name)[1:]


def _frequency(index: Any) -> Any:
    """Return the frequency of dates, inferred where they have none; None where they have no regular one."""
    import pandas as pd

    if index.freq is not None:
        return index.freq
    try:
        return pd.infer_freq(index)
    except (ValueError, TypeError):
        return None  # fewer than three dates


def forecast_table(forecast: Forecast) -> Any:
    """Return a table with a row for each item, and for each feature its mean and its quantiles."""
    pd = _pandas()
    num_features = forecast.mean.shape[1]
    names: Any = forecast.features or range(num_features)
    levels = [round(level, 6) for level in forecast.levels]
    columns = pd.MultiIndex.from_product([names, ["mean", *levels]], names=["feature", "quantile"])
    values = np.concatenate([forecast.mean[None], forecast.quantiles])  # [mean and levels, horizon, features]
    rows = values.transpose(1, 2, 0).reshape(len(forecast.mean), -1)
    return pd.DataFrame(rows, index=forecast.index, columns=columns)


def generation_table(generation: Generation) -> Any:
    """Return a table with a row for each item: its token or its numbers, and its log-probability where there is one."""
    pd = _pandas()
    if generation.vectors is not None:
        table = pd.DataFrame(generation.vectors)
    else:
        table = pd.DataFrame({"token": list(generation.tokens)})
    if generation.log_probabilities:
        table["log_probability"] = [entry.log_probability for entry in generation.log_probabilities]
    return table


def prediction_table(prediction: Prediction) -> Any:
    """Return a table with a row for each label with its probability, each tag, or each number of a vector."""
    pd = _pandas()
    if prediction.probabilities is not None:
        items = prediction.probabilities.items()
        return pd.DataFrame({"label": [name for name, _ in items], "probability": [value for _, value in items]})
    if prediction.tags is not None:
        names = ("label", "probability", "start", "end")
        return pd.DataFrame({name: [getattr(tag, name) for tag in prediction.tags] for name in names})
    vector = prediction.embedding if prediction.embedding is not None else prediction.value
    return pd.DataFrame({"value": vector})


def score_table(score: Score) -> Any:
    """Return a table with a row for each item that has a log-probability, and its token where there are tokens."""
    pd = _pandas()
    scored = score.tokens[len(score.tokens) - len(score.log_probabilities) :] if score.tokens else ()
    columns: dict[str, Any] = {"token": list(scored)} if scored else {}
    return pd.DataFrame(columns | {"log_probability": score.log_probabilities})


def _pandas() -> Any:
    try:
        import pandas as pd
    except ImportError as error:
        raise ConfigError("to_dataframe() needs pandas: pip install pandas") from error
    return pd
