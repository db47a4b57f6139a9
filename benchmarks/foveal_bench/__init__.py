"""Speed and memory of training beside the published recipe's way, on the machine at hand."""
