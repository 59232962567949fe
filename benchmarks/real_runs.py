"""Real training runs, judged by the diagnosis and by brute force, side by side.

    python -m benchmarks.real_runs [--out DIR] [--steps 600] [--only NAME,...] [--judge-only]

Trains small MoE models on two CPU cores, a minute each: ``moe_model`` through ``train.py``, and
Hugging Face's Mixtral and Qwen3 MoE through a loop of their own. Their logs stay in DIR (by default
a new temporary folder); runs that are there and finished are not trained again.

What is true of a run is computed from its log with numpy (``real/oracle.py``), in the words of the
rules and without their code. Around every limit there is a grey zone: what lies in it may be found
or not. Agreement: everything beyond the grey zone was found, in its layers and while it lasted, and
nothing else at the severity of a warning or above. ``~`` marks what lies in the grey zone, ``(~)``
what does so on its harmless side. ERODING is a forecast: it is judged by what came of it. At the
end, for each run that follows the printed remedy of another: whether the cause is gone.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine, options_of
from benchmarks.real.comparison import Comparison, compare, found_words, true_words
from benchmarks.real.plans import PLANS, Plan, Where, is_finished, log_of, train


def main() -> None:
    options = options_of(__doc__, out=Path, steps=600, only="", judge_only=False, threads=1, seed=0)
    names = [plan.name for plan in PLANS]
    only = [name.strip() for name in options.only.split(",") if name.strip()] or names
    if unknown := sorted(set(only) - set(names)):
        sys.exit(f"--only {', '.join(unknown)}: no such run; there are {', '.join(names)}")
    folder = (options.out or Path(tempfile.mkdtemp(prefix="real-runs-"))).resolve()
    print(machine())
    print(f"logs in {folder}", flush=True)
    plans = [plan for plan in PLANS if plan.name in only]
    with tempfile.TemporaryDirectory() as scratch:
        where = Where(folder, Path(scratch), options.steps, options.seed)
        for plan in plans if not options.judge_only else ():
            if not is_finished(log_of(plan, where), options.steps):
                print(train(plan, where, options.threads), flush=True)
        report(plans, where)


def report(plans: list[Plan], where: Where) -> None:
    """Each run in full, then all of them in a table."""
    found: dict[str, Comparison | str] = {}
    for plan in plans:
        print(f"\n{plan.name}: {plan.about}")
        try:
            found[plan.name] = compare(log_of(plan, where))
        except FileNotFoundError:
            found[plan.name] = "no log"
        except (IndexError, KeyError, ValueError) as error:  # it broke off before its first step
            found[plan.name] = f"no log that can be judged: {error!r}"
        show(found[plan.name])
    print(f"\n{'run':<18}{'steps':>6}{'s':>6}  {'agree':<6}{'missed':>7}{'false':>6}")
    for name, result in found.items():
        if isinstance(result, str):
            print(f"{name:<18}  {result}")
            continue
        log, agrees = result.log, "yes" if result.agrees else "no"
        print(
            f"{name:<18}{log.steps[-1]:>6}{log.seconds:>6.0f}  {agrees:<6}"
            f"{len(result.missed):>7}{len(result.false):>6}"
        )
    judged = [result for result in found.values() if not isinstance(result, str)]
    steps = sum(len(result.log.steps) for result in judged)
    false = sum(len(result.false) for result in judged)
    if judged:
        print(
            f"{sum(result.agrees for result in judged)} of {len(judged)} runs agree; {false} false "
            f"alarms in {steps:,} steps, {1e4 * false / steps:.1f} in 10,000"
        )
    for plan in plans:
        sick, cured = found.get(plan.cures), found[plan.name]
        if isinstance(sick, Comparison) and isinstance(cured, Comparison) and sick.causes:
            cause, remedy = next(iter(sick.causes.items()))
            outcome = "NOT gone" if cause in cured.causes else "gone"
            print(f"{plan.cures}: {cause}. {remedy}\n  {plan.name}: {outcome} {[*cured.causes]}")


def show(result: Comparison | str) -> None:
    """Truth, verdict and difference of one run."""
    if isinstance(result, str):
        print(f"  {result}")
        return
    log = result.log
    ended = "" if log.finished else f", ended: {log.ended.get('reason', 'broke off')}"
    lowest = ", ".join(
        f"{name} {c:.2f}" for name, c in zip(log.names, result.lowest_collapse_index, strict=True)
    )
    print(f"  {log.steps[-1]} steps, loss {log.scalar('loss')[-1]:.2f}{ended}; lowest c: {lowest}")
    for title, lines in (
        ("brute force", list(true_words(result)) or ["nothing"]),
        ("diagnosis", list(found_words(result)) or ["nothing"]),
        ("missed", result.missed),
        ("false", result.false),
    ):
        for line in lines:
            print(f"  {title:<12}{line}")
            title = ""
    print(
        f"  {'agreement':<12}{'yes' if result.agrees else 'NO'}; {len(result.notes)} notes",
        flush=True,
    )


if __name__ == "__main__":
    main()
