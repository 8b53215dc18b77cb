"""An LLM's likelihoods, gradients and texts against plain transformers calls."""

import dataclasses

import numpy as np
import torch
from torch.nn import functional

from inversedmixup.models.sampling import GREEDY, Sampling
from tiny import SENTENCES

SAMPLED = Sampling(temperature=1.5, top_p=0.95, max_tokens=10)


def soft_tokens(llm, rows=9, k=3):
    return torch.randn(rows, k, llm.dim, generator=torch.Generator().manual_seed(0)) * 3


def reference_nll(llm, soft, ids):
    """One text at a time, through the model's own forward and its full logits."""
    embedded = llm.lm.get_input_embeddings()(torch.tensor([ids[:-1]], dtype=torch.long))
    prefix = llm.whole_prefix(soft[None])
    if llm.encoder_decoder:
        logits = llm.lm(inputs_embeds=prefix, decoder_input_ids=torch.tensor([[llm.start, *ids[:-1]]])).logits[0]
    else:
        logits = llm.lm(inputs_embeds=torch.cat([prefix, embedded], 1)).logits[0, prefix.shape[1] - 1 :]
    return functional.cross_entropy(logits, torch.tensor(ids), reduction="none")


def check_likelihood(llm):
    soft = soft_tokens(llm)
    targets = llm.targets(SENTENCES[:9], 64)
    ours, theirs = soft.clone().requires_grad_(), soft.clone().requires_grad_()
    a = llm.nll(ours, targets)
    b = torch.cat([reference_nll(llm, row, ids) for row, ids in zip(theirs, targets, strict=True)])
    a.sum().backward()
    b.sum().backward()
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def check_decoding(llm):
    soft = soft_tokens(llm)
    mask = torch.ones(soft.shape[:2], dtype=torch.long)
    generated = llm.lm.generate(
        inputs_embeds=soft, attention_mask=mask, do_sample=False, max_new_tokens=10, pad_token_id=llm.eos
    )  # fmt: skip
    ids = generated[:, 1:] if llm.encoder_decoder else generated
    expected = [llm.text([*row, llm.eos]) for row in ids.tolist()]
    assert llm.decode(soft, dataclasses.replace(GREEDY, max_tokens=10)) == expected
    uniforms = np.random.default_rng(0).random((27, SAMPLED.max_tokens))
    shared = llm.decode(soft, SAMPLED, uniforms, candidates=3)
    assert len(set(shared)) > 5
    assert shared == llm.decode(soft.repeat_interleave(3, dim=0), SAMPLED, uniforms)
    assert shared == llm.decode(soft, SAMPLED, uniforms, candidates=3, batch_size=4)
