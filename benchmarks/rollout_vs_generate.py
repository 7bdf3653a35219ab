"""Multi-turn sampling: `python benchmarks/rollout_vs_generate.py [--json]`.

64 episodes of 10 turns, each of 40 tokens read and 20 sampled, with a random Qwen3 of about a
million parameters in fp32 on one thread. The embedded engine keeps the keys and values of each
episode; batched `transformers.generate` reads the whole history again at each turn. All histories
are equally long, so that `generate` needs no padding: its best case. Target: a ratio of 3.5.
Not a test: CPU seconds depend on the machine; read the ratio.
"""

from __future__ import annotations

import time

import torch
from table import show

from turnwise.agents.engines.base import GenRequest, Sampling
from turnwise.agents.engines.embedded import EmbeddedEngine
from turnwise.trainers.tiny import tiny_model

EPISODES, TURNS, READ, SAMPLED, VOCAB = 64, 10, 40, 20, 1024


def observations() -> torch.Tensor:
    """int64 [turns, episodes, read]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(6, VOCAB, (TURNS, EPISODES, READ), generator=generator)


def by_engine(model: torch.nn.Module, read: torch.Tensor) -> list[float]:
    """CPU seconds of each turn."""
    engine = EmbeddedEngine(model, slots=EPISODES, max_len=TURNS * (READ + SAMPLED) + 1)
    histories: list[list[int]] = [[] for _ in range(EPISODES)]
    seconds = []
    for turn in range(TURNS):
        start = time.process_time()
        requests = []
        for i, history in enumerate(histories):
            history += read[turn, i].tolist()
            requests.append(GenRequest(str(i), history, Sampling(SAMPLED), turn * EPISODES + i))
        for history, output in zip(histories, engine.generate(requests), strict=True):
            assert len(output.token_ids) == SAMPLED
            history += output.token_ids
        seconds.append(time.process_time() - start)
    return seconds


@torch.no_grad()
def by_generate(model: torch.nn.Module, read: torch.Tensor) -> list[float]:
    """CPU seconds of each turn."""
    histories = torch.zeros(EPISODES, 0, dtype=torch.int64)
    how = {"do_sample": True, "top_k": 0, "top_p": 1.0, "eos_token_id": None, "pad_token_id": 0}
    seconds = []
    for turn in range(TURNS):
        start = time.process_time()
        histories = torch.cat((histories, read[turn]), 1)
        mask = torch.ones_like(histories)
        histories = model.generate(
            histories, attention_mask=mask, max_new_tokens=SAMPLED, min_new_tokens=SAMPLED, **how
        )
        seconds.append(time.process_time() - start)
    assert histories.shape[1] == TURNS * (READ + SAMPLED)
    return seconds


def main() -> None:
    """Run both in one process, one after the other."""
    torch.set_num_threads(1)
    model = tiny_model(VOCAB, hidden=128, layers=4, heads=4, kv_heads=2, ffn=384, seed=0)
    read = observations()
    by_engine(model, read[:, :, :1].repeat(1, 1, READ))  # warm up
    ways = {"embedded engine": by_engine(model, read), "generate": by_generate(model, read)}
    rows = [
        {"way": way, "CPU s": f"{sum(s):.2f}", "turn 1": f"{s[0]:.2f}", "turn 10": f"{s[-1]:.2f}"}
        for way, s in ways.items()
    ]
    ours, theirs = (sum(s) for s in ways.values())
    parameters = sum(p.numel() for p in model.parameters())
    show(
        f"{EPISODES} episodes x {TURNS} turns x ({READ} read + {SAMPLED} sampled) tokens",
        rows,
        parameters=parameters,
        ratio=round(theirs / ours, 2),
        target=3.5,
    )


if __name__ == "__main__":
    main()
