"""Datasets as the files that other trainers read: OpenAI, TRL, verl, ShareGPT, plain episodes."""
