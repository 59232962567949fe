"""The run log: the only interface between a trainer and the microscope.

``LOGS/<run>/metrics.jsonl``: one run per file, one JSON object per line, append-only. Standard
library and msgspec only.
"""
