"""The quickstart's starting model: a small Qwen2 that knows ReSearch's format only imperfectly."""
