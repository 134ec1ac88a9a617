"""Reward programs written by Claude: the prompt, the conversation with the Messages API, and what is kept of it."""
