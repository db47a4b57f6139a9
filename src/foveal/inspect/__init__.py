"""Examples as a model will see them, on one page, before anything is paid for."""
