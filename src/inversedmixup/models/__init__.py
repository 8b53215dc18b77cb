"""The models: task model, adaptor, LLM, and the pair that ties them together."""
