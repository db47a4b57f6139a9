"""What a model holds and what its passes cost, asked of the model itself."""
