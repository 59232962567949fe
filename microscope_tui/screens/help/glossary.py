"""The glossary, listed by ``?``: a test looks here for the words that the screens can print."""

from collections.abc import Mapping, Sequence

Words = Sequence[tuple[str, str]]

_TEXT = """
# layers
layer: one router and its experts; L5 is the sixth decoder layer, counted from 0
load: tokens of an expert ÷ the fair share: 1 is fair, 0 none, 4 four times its share
share: share of the tokens that chose the expert
balance c, bal.: how evenly experts are used: 1 is even, 0 all on top-k experts (collapse)
entropy H, ent.: of the router's choice for one token, in nats; low is confident
dropped, drop: share of assignments that found their expert full and were lost
max load: load of the busiest expert of the layer
top-2: each token goes to 2 experts (top-k: to k)
k unknown, E unknown: neither the log nor --top-k or --num-experts gives it: no c is computed
# cells
bias: added to an expert's score when experts are chosen, to balance their load
over capacity: share of the tokens that chose the expert and found it full
rank, ranks: a device of expert parallelism; load per rank adds up the experts that it holds
assumed: the log does not give the number of ranks
difference, reference: load now ÷ load at the step or run that b or p chose
by load, in groups: experts from busy to idle; overloaded, fair, starving, dead together
# conditions
dead: chosen by no token in the steps shown
starving: less than a tenth of the fair share
under, over: clearly below, clearly above the fair share
fair: about the fair share
hot: several times the fair share
# quadrants
collapsed: few experts get all tokens, at any entropy
specialised: experts evenly used, and each token has a clear choice: the goal
uniform: experts evenly used because the router hardly distinguishes tokens
undecided: between specialised and uniform, usual early in training
# header
loss: cross-entropy of the next token, mean over the batch, in nats
tok/s: tokens that the training takes in a second
live, slow: the log grows as usual; grows more slowly than usual
stalled, crashed?: silent for a minute; for ten minutes; if the run had long pauses, for longer
usually, no end record: time between two steps; silent at its last planned step
finished, stopped, failed: how the run ended, by its own last record
waiting, no router data: no step yet; finished, and no known key in it
deleted: the log was removed, what was read stays
# alerts
CRITICAL, WARNING, NOTE, METER: C act now, W look into it, I information, M the measurement is at
  fault
onset, alarm: first step of the evidence; step at which it was enough to report
active, recovered, later: continues; over; begins after the step shown
seen: you marked it with A
not judged yet, warm-up: the first steps, in which uneven experts are normal
gathering evidence: something is wrong, for too few steps so far for an alert
healthy: judged, and nothing found
# alert_list
rule: the kind of trouble; `moe-microscope explain RULE` describes it in full
cause: what explains this alert and others; `next` is its remedy
severity: how bad it is, at its worst step
crit, warn, info, error: critical, warning, note; the measurement is at fault
end: the step of the recovery, or active
value: the worst value against its limit
evidence, grades: the steps that show it; when it became a warning, when critical
before: earlier alerts of this rule in this layer
confidence: where the numbers come from: exact counts, or summaries only
# time
PAUSED, PLAYING 4x: one step is held; the run is played back, 4 columns a second
step 0 ▁▄▇: the whole run in one line: ▁ healthy, ▄ warning, ▇ critical, ╎ restart
restart, evaluation: the run was resumed at this step; the model was evaluated after it
1 column = 8 steps: steps that one column of the line covers
bad line: not readable and skipped; `moe-microscope check --format-only` shows the repair
part 3 / 5: an evaluation has parts (batches, dumps) in place of training steps
sampled: the log is still being read: a sample of its steps
polling, file events: how changes of the log are noticed
through a pipe: the log comes from the standard input
time travel from step: a full spool: older steps of the pipe were dropped
# map
lowest, highest: the worst value of the layer in the steps of one column
measure: what the cells show: balance c, max load, entropy H, dropped
# charts
mean: entropy of the mean probabilities: high if experts are evenly used
validation: loss on the validation set
lowest balance c: the worst of all layers
highest load: load of the busiest expert of all layers
gradient norm: of all weights, before clipping
learning rate: of this step, as logged
# numbers
overview: loss, balance, load, gradient norm and learning rate, a chart each
z-loss, highest logit: mean of the squared logsumexp of a router's logits; the largest of them
router gradient: norm of the gradient of a router's weights; here the mean of the layers
disagreement: share of the choices that another engine makes differently
tokens/s, step time (s), memory (bytes): speed, seconds a step, peak of the device
●, +: drawn as the first line; as the second one
log axis: the highest value is more than 100 times the usual one
# expert
place: of the experts of this layer by load: 1 is the busiest
findings: alerts that name this expert
steps sampled: steps read again from the log for these curves
# compare
A, B: A is the reference (b sets it), B the step or run shown
change: B minus A
lr, tokens: learning rate; tokens of the step
same order, order: 1: the same experts are busy in A and B, 0: others, -1: the idle ones
# runs
age: time since the log last grew
verdict: the worst active alert of the run
to be judged, not judged: runs that are over are judged one by one, newest first
diagnosis at: share of the log that is judged
archived: a compressed log (.gz, .zst): its end is known once it is open
error: the log cannot be read
open, pinned, selected: on the screens; compared with; picked with space
# probe
probe: a finished model on a text: `moe-microscope probe` writes down every choice
token, id: a piece of the text as the model reads it; its number in the vocabulary
slice, window: a named part of the text; the stretch that the model saw at once
expert: chosen by the router for a token; a token goes to the k best
this token, others: its experts have colours, here and in the text; all others are grey
busiest: the experts with the largest shares of all choices in this layer
# tokens
weight: how much the output of a chosen expert counts
margin: score of the last chosen expert less that of the first one left out; 0 is a tie
only expert: tokens of one expert are highlighted, brightest where it has the largest weight
a b c, ^ ': below the text: the expert by its letter; ^ largest weight, ' also chosen
↵ → · �: newline, tab, a token without a character of its own, bytes that are not text
# slices
-1.0, +2.0: log2 of the share in the slice ÷ the share overall: half, four times as much
chance, ·: what shuffled slices reach too, in 99 of 100; a dot is no more than that
few: fewer than 10 choices are expected in this slice: the ratio may be chance
none: the expert was never chosen in this slice
prefer, avoid: a share in some slice that differs from its share overall beyond chance
most telling: tokens that go to the expert far more often than tokens overall
lift: how many times as often as overall the token goes to this expert
token identity: share of the routing that is explained by which token it is, 0 to 1
shuffled: the same with the tokens in random order: what chance explains
# mismatch
A, B: A: the probe of the pinned run; B: that of the open one, of the same tokens
differ: share of (token, layer) choices whose set of experts is not the same
tenths: the choices in ten parts of equal size, the smallest margins first
swap: the expert that only A chose, and the one that B chose in its place
# placement
balancedness: mean load of the ranks ÷ that of the busiest, step by step: 1 is even
today, refined: neighbouring experts on one rank, as engines place them; the computed placement
load: of a rank ÷ the mean of the ranks; in the cells of an expert ÷ the fair share
gain, pays: balancedness on later steps less that of today; it is at least 0.01 and beyond chance
ageing, refit: the lost time won back, by steps since the fit; when a tenth of it is gone
"""


def _sections() -> Mapping[str, Words]:
    """Parts of the text by name, entries by ``=`` and the first word."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in _TEXT.replace("\n  ", " ").strip().split("\n"):
        words, colon, meaning = line.partition(": ")
        if not colon:
            part = found[line.removeprefix("# ")] = []
            continue
        part.append((words, meaning))
        found[f"={words.split()[0].rstrip(',')}"] = [(words, meaning)]
    return found


_PARTS = _sections()


def glossary(parts: str) -> list[tuple[str, str]]:
    """The named parts of the text, or one entry as ``=word``."""
    return [entry for part in parts.split() for entry in _PARTS[part]]
