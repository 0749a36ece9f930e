"""GPT and Llama, and the parts they are made of."""
