"""Makes a reference case of docs/formats/golden.md from a transformers model in fp32."""

import contextlib
import copy

import safetensors.torch
import torch
from transformers import cache_utils


@contextlib.contextmanager
def assigned_states():
    """Recurrent states are replaced, not written in place: autograd needs those that it has read."""
    kind, name = cache_utils.LinearAttentionLayer, "update_recurrent_state"
    original = getattr(kind, name)

    def assign(self, recurrent_states, state_idx=0, **kwargs):
        self.recurrent_states[state_idx] = recurrent_states
        self.is_recurrent_states_initialized[state_idx] = True
        return recurrent_states

    setattr(kind, name, assign)
    try:
        yield
    finally:
        setattr(kind, name, original)


def cross_entropy(logits, labels):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def make_reference(model, input_ids, labels, context, greedy_prompt, greedy_tokens=24):
    """The tensors of reference.safetensors; `model` in fp32, `labels` -100 where nothing is graded."""
    out = {"input_ids": input_ids, "labels": labels, "frozen.context": torch.tensor([context])}
    logits = model(input_ids=input_ids, use_cache=False).logits
    loss = cross_entropy(logits[:, :-1], labels[:, 1:])
    out |= {"full.logits": logits, "full.loss": loss}
    out |= {f"full.grad.{name}": g for name, g in gradients(model, loss).items()}

    with torch.no_grad():
        past = model(input_ids=input_ids[:, :context], use_cache=True).past_key_values
    with assigned_states():
        logits = model(input_ids=input_ids[:, context:], past_key_values=copy.deepcopy(past), use_cache=True).logits
        loss = cross_entropy(logits[:, :-1], labels[:, context + 1 :])
        out |= {"frozen.logits": logits, "frozen.loss": loss}
        out |= {f"frozen.grad.{name}": g for name, g in gradients(model, loss).items()}

    out["greedy.prompt"] = greedy_prompt
    length = greedy_tokens
    out["greedy.output"] = model.generate(greedy_prompt, max_new_tokens=length, min_new_tokens=length, do_sample=False,
                                          attention_mask=torch.ones_like(greedy_prompt), pad_token_id=0)
    return {name: t.detach().clone() for name, t in out.items()}


def write_case(folder, model, reference, save_model=True):
    """A folder that build/parity takes."""
    if save_model:
        model.save_pretrained(folder)
    safetensors.torch.save_file(reference, folder / "reference.safetensors")


def random_ids_and_labels(vocab_size, length, context, generator, graded=0.6):
    ids = torch.randint(0, vocab_size, (2, length), generator=generator)
    keep = torch.rand((2, length), generator=generator) < graded
    keep[:, : context + 1] = False
    keep[:, -1] = True
    return ids, torch.where(keep, ids, -100)
