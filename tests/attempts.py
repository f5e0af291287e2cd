"""Attempts of a run, written as its ranks would."""

from hpclbfl.runs.log.writer import RunLog


def add_attempt(folder, resumed_from_step, steps_of_rank, evals=(), events=()):
    """An attempt whose rank r, client r, logged the steps `steps_of_rank[r]`; the loss tells attempt, rank and step."""
    attempt = folder.next_attempt()
    attempt.write_provenance({"num_ranks": len(steps_of_rank), "attempt": attempt.number})
    for rank, steps in enumerate(steps_of_rank):
        attributes = {"rank": rank, "attempt": attempt.number, "resumed_from_step": resumed_from_step}
        with RunLog(attempt.rank_log(rank), attributes) as log:
            for step in steps:
                loss = attempt.number * 10000 + rank * 1000 + step
                log.append("steps", step=step, round=0, client=rank, local_batch_size=4, num_samples=8, loss=loss)
                log.append("layers", step=step, layer="fc.weight", grad_sq_norm=rank)
            for step in evals if rank == 0 else ():
                log.append("evals", step=step, num_samples=8, split="test", top1=attempt.number)
            for step in events:
                log.append("events", step=step, kind="note", text=f"attempt {attempt.number}")
            log.append("plans", step=0, client=0, local_batch_size=4, reason=f"{attempt.number}.{rank}")
    return attempt


def mark_done(folder, **fields):
    """DONE.json of a run that came to nothing, but for what the fields say."""
    folder.mark_done({"reason": "steps", "step": 0, "epoch": 0.0, "num_samples": 0, "hash": "", **fields})
