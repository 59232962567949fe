"""A writer that is killed at any moment and resumes, while a reader follows."""

from pathlib import Path

from tests.hostile.soak import soak


def test_a_follower_of_a_killed_writer_ends_with_the_state_of_the_file(tmp_path: Path) -> None:
    soaked = soak(tmp_path, seed=1, lives=6)
    assert soaked.difference == ""
    assert soaked.lives == 6
    assert soaked.restarts >= 1
    assert soaked.steps > 30
    assert soaked.defects == 0  # every torn line was cut off by the writer that came next
