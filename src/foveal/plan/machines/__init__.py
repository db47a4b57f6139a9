"""What machines can do: by their makers' word, or measured at hand."""
