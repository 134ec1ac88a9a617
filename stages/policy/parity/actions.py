"""The action tokenizer on every bin edge, and what becomes of the gripper."""

from collections.abc import Iterator

from stages.policy.action_tokens import ActionCodec
from stages.policy.parity.checks import ACTION, Check, Fixture, close, same


def compare_actions(codec: ActionCodec, fixture: Fixture) -> Iterator[Check]:
    """Every array of actions.npz but the retokenized text, which takes a tokenizer."""
    tokenizer = codec.tokenizer
    for values, ids in (("enc_in_f64", "enc_ids_f64"), ("enc_in_f32", "enc_ids_f32"), ("batch_in", "batch_ids")):
        if arrays := fixture.find(values, ids):
            yield same(ids, [(tokenizer.encode(arrays[0]), arrays[1])])
    if arrays := fixture.find("dec_ids", "dec_values"):
        yield close("dec_values", [(tokenizer.decode(arrays[0]), arrays[1])], ACTION)
    if arrays := fixture.find("enc_in_f64", "roundtrip"):
        yield close("roundtrip", [(tokenizer.decode(tokenizer.encode(arrays[0])), arrays[1])], ACTION)
    if arrays := fixture.find("bins", "bin_centers"):
        yield close("bins, bin_centers", [(tokenizer.edges, arrays[0]), (tokenizer.centers, arrays[1])], ACTION)
    if arrays := fixture.find("action_token_begin_idx"):
        yield same("action_token_begin_idx", [(tokenizer.first_id - 1, arrays[0])])
    if arrays := fixture.find("gripper_in", "gripper_normalized_binarized"):
        # The original turns the sign in a step of its own, for the simulator, where open is -1.
        ours = codec.to_environment(arrays[0])[:, -1]
        yield close("gripper_normalized_binarized", [(-ours, arrays[1][:, -1])], ACTION)
    if arrays := fixture.find("gripper_in", "gripper_inverted"):
        yield close("gripper_inverted", [(codec.to_environment(arrays[0]), arrays[1])], ACTION)
