"""The checks for a GPU, on the CPU: what they find is found, and the report says no more."""

import getpass
import json
import socket
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_report


@pytest.mark.filterwarnings("ignore")  # what the compiler says about itself
def test_every_check_passes_on_a_cpu_and_the_report_names_no_host(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    assert gpu_report.main(["--device", "cpu", "--out", str(out)]) == 0
    text = out.read_text("utf-8")
    checks = json.loads(text)["checks"]
    assert [*checks] == [*gpu_report.CHECKS]
    assert all(check["passed"] and check["numbers"] for check in checks.values())
    for private in (socket.gethostname(), str(Path.home()), "/tmp", getpass.getuser() + "@"):
        assert private not in text


def test_a_check_that_breaks_or_fails_is_told_without_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(place: gpu_report.Place) -> gpu_report.Result:
        raise OSError(f"{place.folder} is full")

    wrong = {"broken": broken, "wrong": lambda place: (False, {"apart": 1.0})}
    monkeypatch.setattr(gpu_report, "CHECKS", wrong)
    assert gpu_report.main(["--device", "cpu", "--out", str(tmp_path / "r.json")]) == 1
    checks = json.loads((tmp_path / "r.json").read_text("utf-8"))["checks"]
    assert checks["broken"]["error"] == "OSError"
    assert "full" not in json.dumps(checks)
    assert checks["wrong"]["passed"] is False


def test_other_weights_fail_the_comparison() -> None:
    one = gpu_report.losses_and_gradients(torch.device("cpu"), torch.float32)
    other = (one[0], {name: 1.1 * gradient for name, gradient in one[1].items()})
    assert gpu_report.compared(one, one, 1e-4, 1e-3)[0]
    assert not gpu_report.compared(other, one, 1e-4, 1e-3)[0]
