"""The run log: the one thing that a trainer and the microscope share.

``LOGS/<run>/metrics.jsonl``: one run a file, one JSON object a line, append-only. The format is
documented in ``docs/run-log.md``. Standard library and msgspec only.
"""
