"""What several screens draw with: lines of text with roles, heat cells, curves, words.

No terminals, colours or keys here; also the writers of CSV and JSON.
"""
