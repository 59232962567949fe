"""The run log: the one thing that a trainer and the microscope share.

``LOGS/<run>/metrics.jsonl``: one run a file, one JSON object a line, append-only.
Standard library and msgspec only.
"""
