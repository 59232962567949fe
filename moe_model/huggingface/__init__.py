"""Models to and from Hugging Face: DeepSeek-V3 and -V2, GLM-4.7-Flash; see :mod:`.command`."""
