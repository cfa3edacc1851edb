"""GPT in Hugging Face's words."""
