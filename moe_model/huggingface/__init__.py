"""Models to and from Hugging Face's ``DeepseekV3ForCausalLM``; see :mod:`.command`."""
