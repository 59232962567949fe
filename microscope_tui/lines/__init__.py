"""Screen content as lines of text with roles: the app colours them, snapshot prints them.

``table`` is the main screen, ``charts`` are curves and bars over an axis, ``pages`` are the other
screens and the list of runs. No terminals, colours or keys here.
"""
