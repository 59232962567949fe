"""Cached verdicts on finished runs, in the state folder.

One small file per verdict, named after everything it depends on: the state of the log, the version
and its rules, and the criteria. If any of them changes, the run is judged again. Damaged files are
ignored, and a disk that cannot be written disables the cache.
"""

import hashlib
import re
from functools import cache
from importlib import metadata
from pathlib import Path

import msgspec

from microscope_tui.diagnosis import Criteria
from microscope_tui.runlog import Identity, safe_text
from microscope_tui.watch.state_folder import read_small, remove_oldest, state_folder, write_whole
from microscope_tui.watch.verdict import Verdict

MOST_KEPT = 1000
_MOST_BYTES = 64 << 10
_MOST_CELLS = 200
_OUR_FILE = re.compile(r"[0-9a-f]{32}\.json|\.[0-9a-f]{32}-\w+\.tmp")
_JUDGING = ("diagnosis", "measures.py", "runlog", "watch")
"""Parts of the package that a verdict depends on."""


class _Entry(msgspec.Struct):
    key: str
    verdict: Verdict


class VerdictCache:
    """The cached verdicts for one set of criteria."""

    def __init__(self, criteria: Criteria, folder: Path | None = None, *, keeps: bool = True):
        """``keeps``: new verdicts are written; ``folder``: by default one in the state folder."""
        self._folder = folder or state_folder() / "verdicts"
        self._keeps = keeps
        ignored = ",".join(sorted(criteria.ignore))
        self._criteria = repr((criteria.profile, ignored, criteria.limits, criteria.baseline))

    def load(self, identity: Identity) -> Verdict | None:
        """The verdict on a log in this state; ``None`` if there is no valid one."""
        key = self._key(identity)
        try:
            data = read_small(self._folder / f"{key}.json", _MOST_BYTES)
            entry = msgspec.json.decode(data, type=_Entry)
        except (OSError, ValueError, RecursionError):
            return None  # there is none, or it is damaged: the run is judged again
        return _safe(entry.verdict) if entry.key == key else None

    def keep(self, identity: Identity, verdict: Verdict) -> None:
        """Store a verdict; only those on the newest logs are kept."""
        if not self._keeps:
            return
        key = self._key(identity)
        data = msgspec.json.encode(_Entry(key, verdict))
        if len(data) > _MOST_BYTES:
            return
        try:
            write_whole(self._folder / f"{key}.json", data, identity.modified_ns)
        except OSError:
            self._keeps = False  # a full or read-only disk only disables the cache
            return
        remove_oldest(self._folder, _OUR_FILE, MOST_KEPT)

    def _key(self, identity: Identity) -> str:
        depends_on = repr((_product(), self._criteria, tuple(identity)))
        return hashlib.sha256(depends_on.encode()).hexdigest()[:32]


def _safe(verdict: Verdict) -> Verdict:
    """The verdict with sanitised texts: the file is untrusted."""
    return msgspec.structs.replace(
        verdict,
        troubles=tuple(
            msgspec.structs.replace(
                trouble,
                rule=safe_text(trouble.rule, _MOST_CELLS),
                layers=tuple(safe_text(layer, _MOST_CELLS) for layer in trouble.layers),
            )
            for trouble in verdict.troubles
        ),
        no_verdict=None
        if verdict.no_verdict is None
        else safe_text(verdict.no_verdict, _MOST_CELLS),
        evidence=safe_text(verdict.evidence, _MOST_CELLS),
    )


@cache
def _product() -> tuple[str, str]:
    """The version, and the state of the files that judge: a checkout changes without a version."""
    package, files = Path(__file__).parents[1], hashlib.sha256()
    for name in _JUDGING:
        for path in sorted([package / name, *(package / name).rglob("*.py")]):
            try:
                status = path.stat()
            except OSError:
                continue  # not installed as files: the version alone has to do
            if path.suffix == ".py":
                files.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    try:
        version = metadata.version("moe-microscope")
    except metadata.PackageNotFoundError:
        version = ""  # run from a checkout that is not installed
    return version, files.hexdigest()
