"""Readers of runs and dumps that other tools wrote, one file or folder per format.

A reader turns what it finds into records of the run log; everything above reads those and knows no
other format.
"""
