"""Everything that happens to a training, its log and its watchers, at random and for long."""
