"""A model that judges episodes by a rubric: scores, or a ranking among the episodes of one task.

`transcripts` makes an episode a text, `prompts` asks and reads answers, `asking` speaks to the server within a budget, `verdicts`
decides what must be asked and what is known already, `memory` keeps verdicts in the store.
"""
