"""What a request may say, and how its images are read within limits."""
