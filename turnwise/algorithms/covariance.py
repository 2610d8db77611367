"""Selection by covariance (Cui et al. 2025, arXiv 2505.22617): the tokens that make entropy collapse.

A token whose log-prob and advantage are both far above (or below) the mean sharpens the policy most:

    cov_t = (A_t - mean A) (log π_t - mean log π)                     means over the minibatch's action tokens

Here are the two choices of tokens; ``clip_cov`` and ``kl_cov`` say what becomes of them. Both are made once an
optimizer step, with the policy as it then is, over the whole minibatch; released: over each microbatch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from turnwise.learning.parts import MinibatchView, required
from turnwise.learning.primitives import token_covariance


def covariance(view: MinibatchView, logprobs: Tensor) -> Tensor:
    """cov_t of a minibatch, [B, T]."""
    return token_covariance(required(view.batch.advantages, "advantages"), logprobs, view.batch.action_mask)


def draw(eligible: Tensor, mask: Tensor, share: float, seed: tuple[int, ...]) -> Tensor:
    """max(1, share of the action tokens) of the eligible ones, or all if there are fewer; uniformly, [B, T] bool."""
    places = eligible.flatten().nonzero().squeeze(1).cpu()
    count = min(max(1, int(share * int(mask.sum()))), len(places))
    chosen = np.random.default_rng(seed).permutation(len(places))[:count]
    return _marked(places[torch.from_numpy(chosen)], mask)


def top_share(scores: Tensor, mask: Tensor, share: float) -> Tensor:
    """The max(1, share) of the action tokens with the highest scores, [B, T] bool."""
    places = mask.flatten().nonzero().squeeze(1)
    count = min(max(1, int(share * len(places))), len(places))
    return _marked(places[scores.flatten()[places].topk(count).indices], mask)


def _marked(places: Tensor, like: Tensor) -> Tensor:
    marked = torch.zeros(like.numel(), dtype=torch.bool)
    marked[places.cpu()] = True
    return marked.reshape(like.shape)
