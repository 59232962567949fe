"""A planted model, from disk to the tables: what was built in is what the probe finds."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.extensions.anatomy.tables import MOST_TELLING
from tests.probe.folders import CHARACTERS, CLASSES, expert_of, planted, probe

LENGTH = 40_000


def texts() -> dict[str, str]:
    """Characters in random order, in exact numbers; each slice prefers other classes."""
    made = np.random.default_rng(0)
    found = {}
    for place, name in enumerate(("first", "second", "third")):
        odds = np.array([4.0 if expert_of(c) // 3 == place else 1.0 for c in CHARACTERS])
        ends = np.rint(np.cumsum(odds / odds.sum()) * LENGTH).astype(int)
        exact = np.repeat(list(CHARACTERS), np.diff(ends, prepend=0))
        found[name] = "".join(made.permutation(exact))
    return found


@pytest.fixture(name="found", scope="module")
def _found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    names = []
    for name, text in texts().items():
        (folder / name).write_text(text)
        names.append(f"{name}={folder / name}")
    model = planted(folder / "model")
    assert probe(model, *names, batch_size=64, output=folder / "out") == 0
    return folder / "out" / "routing.bin"


def test_every_token_has_the_planted_experts(found: Path) -> None:
    with Routing(found) as routing:
        whole = "".join(texts().values())
        assert routing.tokens == 3 * LENGTH
        assert b"".join(routing.text(0, routing.tokens)).decode() == whole
        for token in range(0, routing.tokens, 997):
            first = expert_of(whole[token])
            for layer in (0, 1):
                choice = routing.choice(layer, token)
                assert choice.experts == (first, (first + 1) % CLASSES)
                # The router sees √8 times the planted vector: logits 2√8, √8 and zeros.
                logits = [2 * math.sqrt(8), math.sqrt(8), *[0.0] * 6]
                total = sum(map(math.exp, logits))
                scores = [math.exp(one) / total for one in logits]
                assert sum(choice.weights) == pytest.approx(1, abs=1e-3)
                assert choice.weights[0] == pytest.approx(1 / (1 + math.exp(-logits[1])), abs=1e-3)
                assert choice.margin == pytest.approx(scores[1] - scores[2], abs=1e-3)
                entropy = -sum(p * math.log(p) for p in scores)
                assert choice.entropy == pytest.approx(entropy, abs=1e-3)


def test_slices_are_recovered_and_their_noise_is_small(found: Path) -> None:
    with Routing(found) as routing:
        tables = routing.tables
    truth = []
    for text in texts().values():
        classes = Counter(map(expert_of, text))
        truth.append([classes[e] + classes[(e - 1) % CLASSES] for e in range(CLASSES)])
    assert [[list(row) for row in rows] for rows in tables.counts] == [[row, row] for row in truth]
    ratios = np.abs(np.log2(np.array(truth) / np.mean(truth, axis=0)))
    assert max(tables.noise) < 0.1
    assert (ratios.min(axis=1) > 2 * np.array(tables.noise)).all()


def test_the_identity_of_the_token_explains_all_and_chance_nearly_nothing(found: Path) -> None:
    with Routing(found) as routing:
        assert routing.tables.identity == pytest.approx([1.0, 1.0], abs=0.01)
        assert routing.tables.identity_noise == pytest.approx([0.0, 0.0], abs=0.01)


def test_the_telling_tokens_of_an_expert_are_those_of_its_classes(found: Path) -> None:
    counts = Counter("".join(texts().values()))
    with Routing(found) as routing:
        tables = routing.tables
    for rows in tables.lifts:
        for expert, telling in enumerate(rows):
            classes = (expert, (expert - 1) % CLASSES)
            own = [n for n, c in enumerate(CHARACTERS) if expert_of(c) in classes]
            share = sum(counts[CHARACTERS[n]] for n in own) / (3 * LENGTH)
            best = sorted(own, key=lambda n: (-counts[CHARACTERS[n]], n))[:MOST_TELLING]
            assert [row[0] for row in telling] == best
            for token, count, lift in telling:
                assert count == counts[CHARACTERS[token]]
                assert lift == pytest.approx(1 / share, rel=0.01)
