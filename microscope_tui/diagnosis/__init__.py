"""The judgement: router records in, episodes with Verdict / Why / Next out.

``engine.Diagnosis`` is the entrance. It streams: one record in, changed episodes out.
"""
