"""What a command prints: verdicts, news of a followed run, explanations, exports, the doctor."""
