"""The running program: it opens screens, draws pictures of them, remembers choices."""
