"""The policy-gradient loss from its formulas, in plain torch: what `train --algorithm reinforce|rloo|grpo` must equal."""

import torch


def episode_advantages(algorithm, tasks, rewards):
    """One advantage an episode: its reward; minus the mean of its siblings; minus the mean, over the std of all."""
    out = []
    for i, (task, reward) in enumerate(zip(tasks, rewards, strict=True)):
        group = torch.tensor(
            [r for t, r in zip(tasks, rewards, strict=True) if t == task], dtype=torch.float64
        )
        others = [r for j, (t, r) in enumerate(zip(tasks, rewards, strict=True)) if t == task and j != i]
        if algorithm == "reinforce":
            out.append(reward)
        elif algorithm == "rloo":
            out.append(reward - sum(others) / len(others))
        else:
            out.append(0.0 if group.std() == 0 else float((reward - group.mean()) / group.std()))
    return out


def loss(model, calls, epsilon, beta, denominator, mask_prompt=True, correct_kl=True):
    """Sum over sampled tokens of clipped objective and KL, over a constant; one call at a time, no padding.

    calls: (prompt ids, completion ids, advantage, behaviour log-probabilities, reference log-probabilities).
    """
    total = 0.0
    for prompt, completion, advantage, behaviour, reference in calls:
        ids = torch.tensor([prompt + completion])
        logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
        logps = logps.gather(1, ids[0, 1:, None])[:, 0]
        if mask_prompt:
            logps = logps[len(prompt) - 1 :]
        else:  # a mutation: prompt tokens are learnt too, as if they had been sampled at ratio 1
            filler = logps[: len(prompt) - 1].detach()
            behaviour, reference = torch.cat([filler, behaviour]), torch.cat([filler, reference])
        ratio = (logps - behaviour).exp()
        objective = torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)
        kl = (reference - logps).exp() - (reference - logps) - 1
        total = total + (-objective + beta * kl * (ratio if correct_kl else 1.0)).sum()
    return total / denominator
