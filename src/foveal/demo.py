"""The whole walk on a tiny model and bundled pictures: convert, evaluate, train, report."""
