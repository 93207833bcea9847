from __future__ import annotations

from pathlib import Path

from statewise_training.plots.curves import collect, plot, write_csv

HEADER = "epoch,learning_rate,step,train_loss,validation_loss\n"


def write(folder: Path, attempt: int, *rows: str) -> None:
    path = folder / f"version_{attempt}" / "metrics.csv"
    path.parent.mkdir()
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))


def test_the_attempts_of_a_run_make_one_log(tmp_path: Path) -> None:
    """A later attempt replaces what it has run again, also the tenth after the second; rows of one step are one."""
    write(tmp_path, 2, "0,0.1,1,3.0,", "0,,1,,2.9", "1,0.1,3,2.0,")
    write(tmp_path, 10, "1,0.1,2,1.5,")

    rows = collect(tmp_path)

    assert [row["step"] for row in rows] == [2, 3]
    assert rows[0] == {"step": 2, "train_loss": 3.0, "validation_loss": 2.9, "learning_rate": 0.1}
    assert rows[1]["train_loss"] == 1.5


def test_an_attempt_that_logged_nothing_changes_nothing(tmp_path: Path) -> None:
    """A run that was stopped before its first row leaves the log as it was."""
    write(tmp_path, 0, "0,0.1,1,3.0,")
    write(tmp_path, 1)

    assert [row["step"] for row in collect(tmp_path)] == [2]


def test_the_log_is_a_table_with_empty_cells(tmp_path: Path) -> None:
    """Steps are whole numbers; what was not measured is empty."""
    write_csv([{"step": 2.0, "train_loss": 1.5}], tmp_path / "metrics.csv")

    assert (tmp_path / "metrics.csv").read_text() == ("step,train_loss,validation_loss,learning_rate\n2,1.5,,\n")


def test_a_picture_is_drawn_of_any_log(tmp_path: Path) -> None:
    """An empty log and one without validations give a picture, too."""
    for rows in ([], [{"step": 2.0, "train_loss": 1.5}], [{"step": 2.0, "validation_loss": 1.5}]):
        plot(rows, tmp_path / "loss.png", title="t", unit="nats per item", best_step=2)

        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
