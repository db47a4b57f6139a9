"""What one GPU shows of this package, in minutes."""
