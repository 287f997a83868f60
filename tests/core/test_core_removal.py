"""Room on the disk, below which a training does not start."""

from __future__ import annotations

from pathlib import Path

from kronos_pipeline.removal import free_bytes


def test_the_room_for_a_folder_that_is_yet_to_be_made_is_that_of_its_disk(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "out" / "state") > 0
