#!/usr/bin/env python3
"""Has Hugging Face's transformers write a tiny GPT-2 and read what Strata wrote.

    pip install torch numpy safetensors transformers
    python3 tests/golden/transformers_gpt2.py

README.md beside this file says what the files hold. The weights are gpt2.py's. `exported` is
written by Strata before:

    STRATA_UPDATE_GOLDEN=1 build/release/bin/engine_gpt2_files_test --gtest_filter='*Exports*'
"""

import json
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import load_file, save_file

from gpt2 import CONFIG

HERE = pathlib.Path(__file__).parent
SHARD_BYTES = 20_000


def make_model(weights):
    config = transformers.GPT2Config(
        **CONFIG,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,  # the defaults are above the vocabulary
        eos_token_id=None,
    )
    model = transformers.GPT2LMHeadModel(config)
    result = model.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys and result.missing_keys in ([], ["lm_head.weight"]), result
    return model


def logits(model, tokens):
    """By fp64 arithmetic from the model's weights as they are."""
    with torch.no_grad():
        return model.double().eval()(tokens).logits.float().contiguous()


def save(model, name, **arguments):
    """Returns the directory as from_pretrained opens it."""
    directory = HERE / "transformers" / name
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory, **arguments)
    (directory / "generation_config.json").unlink(missing_ok=True)
    return reopen(directory)


def reopen(directory):
    model, info = transformers.GPT2LMHeadModel.from_pretrained(
        directory, dtype="auto", output_loading_info=True
    )
    wrong = {key: value for key, value in info.items() if value}
    assert not wrong, f"{directory}: {wrong}"
    return model


def main():
    inputs = load_file(HERE / "gpt2.safetensors")
    weights = {
        name.removeprefix("weight."): tensor
        for name, tensor in inputs.items()
        if name.startswith("weight.")
    }
    tokens = inputs["tokens"][0]
    results = {"tokens": tokens}
    results["head_fp32"] = logits(save(make_model(weights), "head_fp32"), tokens.long())
    base = make_model(weights).half()
    results["base_fp16"] = logits(save(base.transformer, "base_fp16"), tokens.long())
    sharded = save(make_model(weights).bfloat16(), "sharded_bf16", max_shard_size=SHARD_BYTES)
    results["sharded_bf16"] = logits(sharded, tokens.long())

    exported = reopen(HERE / "exported")
    assert exported.dtype == torch.bfloat16, exported.dtype
    results["exported"] = logits(exported, tokens.long())
    truth = load_file(HERE / "gpt2_fp32.safetensors")["true.logits"].reshape_as(results["exported"])
    for name, values in results.items():
        if name != "tokens":
            error = (values - truth).abs().max() / truth.abs().max()
            print(f"{name}: logits are within {error:.1e} of gpt2.py's")
    about = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    save_file(results, HERE / "transformers.safetensors", {"about": json.dumps(about)})


if __name__ == "__main__":
    main()
