"""What we lean on in TRL that it does not promise: a new release must fail here before it can train wrongly."""

from __future__ import annotations

import inspect

import trl
from transformers import Trainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_trainer import SFTTrainer

from spanloop_trainer.algorithms.policy_gradient import LoggedPolicyTrainer


def test_version_is_the_pinned_one() -> None:
    assert trl.__version__ == "1.16.0"


def test_we_override_only_what_feeds_the_loss() -> None:
    ours = {name for name, value in vars(LoggedPolicyTrainer).items() if inspect.isfunction(value)}
    assert ours == {
        "__init__",
        "get_train_dataloader",
        "_collate",
        "_set_signature_columns_if_needed",
        "_prepare_inputs",
    }
    for name in ours - {"__init__", "_collate"}:
        assert callable(getattr(GRPOTrainer, name))
    assert LoggedPolicyTrainer._compute_loss is GRPOTrainer._compute_loss
    assert LoggedPolicyTrainer.compute_loss is GRPOTrainer.compute_loss


def test_signatures() -> None:
    def parameters(function: object) -> list[str]:
        return list(inspect.signature(function).parameters)  # type: ignore[arg-type]  # any callable will do

    assert parameters(GRPOTrainer._compute_loss) == ["self", "model", "inputs"]
    assert parameters(GRPOTrainer._prepare_inputs) == ["self", "generation_batch"]
    assert parameters(Trainer._prepare_inputs)[:2] == ["self", "inputs"]
    assert parameters(GRPOTrainer.__init__)[:3] == ["self", "model", "reward_funcs"]


def test_the_loss_reads_the_keys_that_we_supply() -> None:
    source = inspect.getsource(GRPOTrainer._compute_loss)
    for key in (
        '"prompt_ids"',
        '"prompt_mask"',
        '"completion_ids"',
        '"completion_mask"',
        '"tool_mask"',
        '"advantages"',
        '"old_per_token_logps"',
        '"ref_per_token_logps"',
        '"num_items_in_batch"',
        "self.beta",
        "if advantages.dim() == 1",
    ):
        assert key in source, f"GRPOTrainer._compute_loss no longer reads {key}"


def test_sft_takes_rows_with_labels() -> None:
    assert "skip_prepare_dataset" in inspect.getsource(SFTTrainer.__init__)
    assert '["input_ids", "labels", "seq_lengths"]' in inspect.getsource(
        SFTTrainer._set_signature_columns_if_needed
    )
    assert "per_token_loss.sum() /" in inspect.getsource(SFTTrainer.compute_loss)
