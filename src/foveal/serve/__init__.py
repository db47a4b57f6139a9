"""The tuned model behind an endpoint that speaks OpenAI's chat protocol, and a page to try it."""
