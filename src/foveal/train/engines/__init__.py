"""One process or several behind the same few verbs; no other room asks which is running."""
