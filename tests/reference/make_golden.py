"""Makes the golden folder of a family: a tiny random model and what transformers says of it (docs/formats/golden.md).

usage: make_golden.py FAMILY FOLDER      with the Python of `scripts/lathe_cache.py reference`
"""

import pathlib
import sys

import cpu_torch

cpu_torch.prepare()

import torch  # noqa: E402
import transformers  # noqa: E402
from make_case import make_reference, random_ids_and_labels, write_case  # noqa: E402

# What every family has, small, and no two sizes alike.
SIZES = {"vocab_size": 128, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
         "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "bos_token_id": 1,
         "eos_token_id": 2, "pad_token_id": None}

# A family's class of configuration, and every fact of it set to something that shows.
FAMILIES = {
    "granite": (transformers.GraniteConfig, {"embedding_multiplier": 12.0, "attention_multiplier": 0.21, "residual_multiplier": 0.22,
                                             "logits_scaling": 6.0, "attention_bias": True, "mlp_bias": True,
                                             "tie_word_embeddings": True}),
}


def main():
    family, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    kind, facts = FAMILIES[family]
    torch.manual_seed(7)
    # Wider than the usual 0.02, so that attention and gates are not all but flat; norms and biases away from 1 and 0.
    config = kind(**SIZES, **facts, initializer_range=0.15)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    generator = torch.Generator().manual_seed(11)
    ids, labels = random_ids_and_labels(config.vocab_size, length=40, context=13, generator=generator)
    prompt = torch.randint(0, config.vocab_size, (1, 9), generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    write_case(folder, model, make_reference(model, ids, labels, context=13, greedy_prompt=prompt))


if __name__ == "__main__":
    main()
