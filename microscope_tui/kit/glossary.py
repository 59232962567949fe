"""The words that several screens print as names, with what they mean; ``?`` lists them.

A key is a word as the screen has it, and other forms of it, with commas between them. Words of one
screen are in its own file. A test looks for every name that a screen can print.
"""

LAYER = {"layer": "one router and its experts; L5 is the sixth decoder layer, counted from 0"}
SHARE = {"share": "share of the tokens that chose the expert"}
ENTROPY = {"entropy H, ent.": "of the router's choice for one token, in nats; low is confident"}
BIAS = {"bias": "added to an expert's score when experts are chosen, to balance their load"}
MARGIN = {
    "margin": "score of the last chosen expert less that of the first one left out; 0 is a tie",
}

LAYERS = {
    **LAYER,
    "load": "tokens of an expert ÷ the fair share: 1 is fair, 0 none, 4 four times its share",
    **SHARE,
    "balance c, bal.": "how evenly experts are used: 1 is even, 0 all on top-k experts (collapse)",
    **ENTROPY,
    "dropped, drop": "share of assignments that found their expert full and were lost",
    "max load": "load of the busiest expert of the layer",
    "top-2": "each token goes to 2 experts (top-k: to k)",
    "k unknown, E unknown": "neither the log nor --top-k or --num-experts gives it: no c is "
    "computed",
}
CELLS = {
    **BIAS,
    "rank, ranks": "a device of expert parallelism; load per rank adds up the experts that it "
    "holds",
    "assumed": "the log does not give the number of ranks",
    "difference, reference": "load now ÷ load at the step or run that b or p chose",
    "by load": "experts from busy to idle",
}
CONDITIONS = {
    "dead": "chosen by no token in the steps shown",
    "starving": "less than a tenth of the fair share",
    "under, over": "clearly below, clearly above the fair share",
    "fair": "about the fair share",
    "hot": "several times the fair share",
}
HEADER = {
    "loss": "cross-entropy of the next token, mean over the batch, in nats",
    "tok/s": "tokens that the training takes in a second",
    "live, slow": "the log grows as usual; grows more slowly than usual",
    "stalled, crashed?": "silent for a minute; for ten minutes; if the run had long pauses, for "
    "longer",
    "usually, no end record": "time between two steps; silent at its last planned step",
    "finished, stopped, failed": "how the run ended, by its own last record",
    "waiting, no router data": "no step yet; finished, and no known key in it",
    "deleted": "the log was removed, what was read stays",
}
ALERTS = {
    "CRITICAL, WARNING, NOTE, METER": "C act now, W look into it, I information, M the "
    "measurement is at fault",
    "onset, alarm": "first step of the evidence; step at which it was enough to report",
    "active, recovered, later": "continues; over; begins after the step shown",
    "seen": "you marked it with A",
    "not judged yet, warm-up": "the first steps, in which uneven experts are normal",
    "gathering evidence": "something is wrong, for too few steps so far for an alert",
    "healthy": "judged, and nothing found",
}
TIME = {
    "PAUSED, PLAYING 4x": "one step is held; the run is played back, 4 columns a second",
    "step 0 ▁▄▇": "the whole run in one line: ▁ healthy, ▄ warning, ▇ critical, ╎ restart",
    "restart, evaluation": "the run was resumed at this step; the model was evaluated after it",
    "1 column = 8 steps": "steps that one column of the line covers",
    "bad line": "not readable and skipped; `moe-microscope check --format-only` shows the repair",
    "part 3 / 5": "an evaluation has parts (batches, dumps) in place of training steps",
    "sampled": "the log is still being read: a sample of its steps",
    "time travel from step": "a full spool: older steps of the pipe were dropped",
}
CHARTS = {
    "mean": "entropy of the mean probabilities: high if experts are evenly used",
    "validation": "loss on the validation set",
    "lowest balance c": "the worst of all layers",
    "highest load": "load of the busiest expert of all layers",
    "gradient norm": "of all weights, before clipping",
    "learning rate": "of this step, as logged",
}
RUNS = {
    "age": "time since the log last grew",
    "verdict": "the worst active alert of the run",
    "to be judged, not judged": "runs that are over are judged one by one, newest first",
    "diagnosis at": "share of the log that is judged",
    "archived": "a compressed log (.gz, .zst): its end is known once it is open",
    "error": "the log cannot be read",
    "open, pinned, selected": "on the screens; compared with; picked with space",
}
