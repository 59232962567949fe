"""Output of the commands: verdicts, news of a followed run, explanations, exports, the doctor."""
