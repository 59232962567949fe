"""Where experts should live: a placement scored on steps that it was not fitted to."""
