"""Examples as columns of numbers on the disk: written once, mapped by every process."""
