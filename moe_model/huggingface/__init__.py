"""Import from and export to Hugging Face: DeepSeek-V3, DeepSeek-V2, GLM-4.7-Flash."""
