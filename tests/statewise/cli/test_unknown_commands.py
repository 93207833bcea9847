"""Commands that do not exist."""

from __future__ import annotations

from typing import Any

import pytest

from statewise import cli


def refusal(capfd: Any, *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    return str(capfd.readouterr().err)


@pytest.mark.parametrize(("typo", "meant"), [("trian", "train"), ("exprot", "export"), ("model", "models")])
def test_a_misspelt_command_is_answered_with_the_one_that_was_meant(capfd: Any, typo: str, meant: str) -> None:
    """The nearest commands are suggested, the nearest first."""
    assert f"No such command '{typo}'. Did you mean '{meant}'" in refusal(capfd, typo, "run.yaml")


def test_a_command_like_no_other_is_only_refused(capfd: Any) -> None:
    """Nothing is suggested where nothing is near."""
    assert "Did you mean" not in refusal(capfd, "xyzzy")
