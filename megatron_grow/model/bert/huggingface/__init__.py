"""BERT in Hugging Face's words."""
