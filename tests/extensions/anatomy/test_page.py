"""The page of the format: its example reads what the writer wrote."""

import re
import subprocess
import sys
from pathlib import Path

from tests.extensions.anatomy.test_file import write

PAGE = (Path(__file__).parents[3] / "docs" / "routing-file.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_reads_a_file(tmp_path: Path) -> None:
    for experts in (8, 300):
        ids = [[[(token + layer) % 8, 7] for token in range(12)] for layer in range(2)]
        write(tmp_path / "routing.bin", ids, experts, capacity=20)
        code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
        command = [sys.executable, "-W", "error", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == ["b'fox' [5, 7]", "[ 2  2  2  2  1  1  1 13]"]
