"""OpenAI's endpoints, one module each: what to ask a back end for, what to read in its answers, what to take out again."""
