"""Tables and progress in a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..client import Client
from ..domain.search_space import OPTIONAL
from ..domain.structure import sizes_told
from ..errors import Unavailable
from ..schemas.comparison import CandidateOut, ComparisonOut, EstimateOut
from ..schemas.groups import GroupOut, RecordOut
from ..schemas.studies import PredictionOut, RankingOut, StrategyOut, StudyOut
from ..schemas.trials import TrialOut, TrialProgressOut

ENDED = ("completed", "cancelled", "failed")
# Classes shown by name.
MOST_CLASSES = 20


def watch(client: Client, study_id: str, console: Console, poll_seconds: float = 1.0) -> StudyOut:
    """Show a study's progress until it ends; waits for a server that is away."""
    progress = Progress(
        TextColumn("{task.description:<13}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[best]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
    search = progress.add_task("search", total=None, best="")
    recheck = progress.add_task("recheck", total=None, best="", start=False, visible=False)
    confirmation = progress.add_task("confirmation", total=None, best="", start=False)
    told, running = "", dict[str, TaskID]()
    # Into a file, a line for every change; in a terminal, bars that move.
    with Live(progress, console=console, refresh_per_second=2) if console.is_terminal else nullcontext():
        while True:
            try:
                study = client.study(study_id)
                comparison = client.comparison(study_id)
            except Unavailable as error:
                progress.update(search, best=f"[red]{error.detail}")
                time.sleep(poll_seconds)
                continue
            best = comparison.best_trial
            held = f"{study.search.waiting} waiting" if study.search.waiting else ""
            said = f"best so far {best['mean']:.4f} {comparison.metric} (trial {best['number']})" if best else ""
            said = ", ".join(filter(None, (held, said)))
            progress.update(search, total=study.search.planned, completed=study.search.finished, best=said)
            if console.is_terminal:
                _show_running(client, study_id, progress, running)
            if study.recheck.planned:
                progress.start_task(recheck)
                done = study.recheck.finished
                progress.update(recheck, total=study.recheck.planned, completed=done, visible=True)
            if study.confirmation.planned:
                progress.start_task(confirmation)
                progress.update(
                    confirmation,
                    total=study.confirmation.planned,
                    completed=study.confirmation.finished,
                    best=f"seeds on the {comparison.split} split",
                )
            line = _progress_line(study, said)
            if not console.is_terminal and line != told:
                console.print(line, highlight=False)
                told = line
            if study.state in ENDED:
                return study
            time.sleep(poll_seconds)


def _show_running(client: Client, study_id: str, progress: Progress, shown: dict[str, TaskID]) -> None:
    """A bar for each running trial."""
    there = {t.id: t for t in client.trials(study_id, state=["running"]) if t.progress is not None}
    for trial_id in [i for i in shown if i not in there]:
        progress.remove_task(shown.pop(trial_id))
    for trial_id, trial in there.items():
        assert trial.progress is not None, "those without were left out"
        if trial_id not in shown:
            shown[trial_id] = progress.add_task(f"  trial {trial.number}", total=trial.progress.total_steps, best="")
        at = trial.progress
        progress.update(shown[trial_id], total=at.total_steps, completed=at.step, best=f"step, {_progress(at)}")


def _progress_line(study: StudyOut, best: str) -> str:
    parts = [f"{study.state}: search {study.search.finished}/{study.search.planned}"]
    if study.recheck.planned:
        parts.append(f"recheck {study.recheck.finished}/{study.recheck.planned}")
    if study.confirmation.planned:
        parts.append(f"confirmation {study.confirmation.finished}/{study.confirmation.planned}")
    return ", ".join([*parts, best]) if best else ", ".join(parts)


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)


def _interval(estimate: EstimateOut | None) -> str:
    if estimate is None:
        return "–"
    interval = "" if estimate.low is None else f" [{estimate.low:+.3f}, {estimate.high:+.3f}]"
    return f"{estimate.mean:+.3f}{interval}"


def comparison_table(comparison: ComparisonOut) -> Table:
    """Candidates on the test split."""
    title = f"{comparison.study}: {comparison.metric} on the {comparison.split} split"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("candidate", "r1, r2, r", "alpha", "lr", "params", "budget", "seeds"):
        table.add_column(name, justify="left" if name == "candidate" else "right", no_wrap=name != "candidate")
    table.add_column("mean ± sd", justify="right")
    table.add_column("behind best", justify="right")
    for c in comparison.candidates:
        table.add_row(*_row(c))
    return table


_GROUP_VERDICTS = {
    "better": "searching won",
    "equal": "practically equal",
    "worse": "the guideline won",
    "undecided": "open",
    "same": "found nothing better",
    "too_few_seeds": "too few seeds",
}


def print_group(group: GroupOut, console: Console) -> None:
    """Linked studies with what they say together."""
    table = Table(title=f"{group.name}: {group.metric} on the test split", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("study", "budget", "best found", "guideline", "LoRA", "guideline behind", "verdict", "id"):
        table.add_column(name, justify="left" if name in ("study", "verdict", "id") else "right")
    for point in group.studies:
        rows = {row.name: row.estimate for row in point.candidates}
        means = [f"{found.mean:.4f}" if (found := rows.get(n)) else "–" for n in ("best", "guideline", "lora")]
        verdict = _GROUP_VERDICTS.get(point.verdict or "", str(point.state))
        table.add_row(point.label, f"{point.budget:,}", *means, _interval(point.gain), verdict, point.study_id)
    console.print(table)
    for sentence in group.sentences:
        console.print(sentence, markup=False, highlight=False)


def record_table(found: Sequence[RecordOut]) -> Table:
    """The record of predictors."""
    table = Table(title="Predictors against what searching found", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("predictor", "metric", "studies", "better", "same", "equal", "worse", "open", "behind best"):
        table.add_column(name, justify="left" if name in ("predictor", "metric") else "right")
    for one in found:
        behind = "–"
        if one.regret is not None:
            behind = f"{one.regret.mean:+.3f}"
            if one.regret.low is not None:
                behind += f" [{one.regret.low:+.3f}, {one.regret.high:+.3f}]"
        counts = (one.studies, one.better, one.same, one.equal, one.worse, one.undecided)
        table.add_row(one.predictor, one.metric, *map(str, counts), behind)
    return table


def _row(c: CandidateOut) -> list[str]:
    e = c.estimate
    mean = "–" if e is None else f"{e.mean:.4f}" + (f" ± {e.spread:.4f}" if e.spread is not None else "")
    flags = "".join(f"\n[dim]{flag}[/dim]" for flag in c.flags)
    return [
        c.title + flags,
        sizes_told(c.method, c.params),
        _number(c.params.get("alpha")),
        _number(c.params.get("learning_rate")),
        f"{c.parameters:,}",
        f"{c.share_of_budget:.0%}",
        f"{c.finished}/{c.planned}",
        mean,
        "–" if c.name == "best" else _interval(c.regret),
    ]


def print_comparison(comparison: ComparisonOut, console: Console) -> None:
    """The table, what it says of every predictor, and the notes."""
    console.print(comparison_table(comparison))
    for p in comparison.predictors:
        words = f"[bold]{p.predictor}[/bold]: {p.verdict}."
        if p.rank_of_winner is not None:
            words += f" It ranked the best found {p.rank_of_winner} of {p.ranked}."
        if p.spearman is not None:
            words += f" Rank correlation with {p.compared_trials} finished trials: {p.spearman:+.2f}."
        console.print(words)
    told = {p.predictor for p in comparison.predictors}
    for c in comparison.candidates:
        if c.verdict is not None and c.name not in told and c.verdict.kind not in ("same", "pending", "none"):
            console.print(f"[bold]{c.title}[/bold]: {c.verdict.sentence}.")
    for note in comparison.notes:
        console.print(f"[dim]{note}[/dim]")


def rankings_tables(ranking: RankingOut) -> list[Table]:
    """The head of a predictor's ranking, and those of each group of layers."""
    said = f"best pairs of {ranking.ranked} configurations"
    if ranking.state != "ready":
        said = f"{ranking.state}: {ranking.reason}"
    whole = f"{said}, one for all layers" if ranking.groups else said
    return [
        _ranking(f"{ranking.predictor}: {whole}", ranking.best),
        *(_ranking(f"{ranking.predictor}, {group} alone", best) for group, best in ranking.groups.items()),
    ]


def _ranking(title: str, best: Sequence[PredictionOut]) -> Table:
    table = Table(title=title)
    for name in ("r1, r2, r", "parameters", "score"):
        table.add_column(name, justify="right")
    table.add_column("why")
    for p in best:
        table.add_row(f"{p.r1}, {p.r2}, {p.r}", f"{p.parameters:,}", f"{p.score:.3f}", p.reason)
    return table


def strategies_table(strategies: Sequence[StrategyOut]) -> Table:
    """Samplers or pruners with their options and the defaults of these."""
    table = Table()
    for name in ("name", "objectives", "what it does", "options"):
        table.add_column(name)
    for s in strategies:
        options = s.options.get("properties", {})
        said = ", ".join(f"{name}: {option.get('default')}" for name, option in options.items())
        table.add_row(s.name, "several" if s.multi_objective else "one", s.summary, said or "–")
    return table


def studies_table(studies: Sequence[StudyOut]) -> Table:
    """Studies, a line each."""
    table = Table()
    for name in ("id", "name", "state", "phase", "search", "confirmation", "created"):
        table.add_column(name)
    for s in studies:
        table.add_row(
            s.id,
            s.name,
            s.state,
            s.phase,
            f"{s.search.finished}/{s.search.planned}",
            f"{s.confirmation.finished}/{s.confirmation.planned}",
            f"{s.created_at:%Y-%m-%d %H:%M}",
        )
    return table


def inputs_told(study: StudyOut) -> list[str]:
    """Lines about what a study is trained on, as its first trial read it, and about what is not adapted."""
    lines = []
    if study.inputs is not None:
        for name, split in study.inputs.splits.items():
            dropped = f", {split.dropped} dropped" if split.dropped else ""
            lines.append(f"{name}: {split.read} rows read{dropped}, {split.used} used ({split.origin})")
        if study.inputs.classes is not None:
            shown, more = study.inputs.classes[:MOST_CLASSES], len(study.inputs.classes) - MOST_CLASSES
            lines.append(f"classes: {', '.join(shown)}{f' and {more} more' if more > 0 else ''}")
        lines += study.inputs.notes
    return lines + study.notes


def further_parameters(params: Iterable[Mapping[str, object]]) -> list[str]:
    """Parameters that only some studies search, in the order of the search space."""
    there = {name for given in params for name in given}
    return [name for name in OPTIONAL if name in there]


def _progress(progress: TrialProgressOut) -> str:
    """Such as ``40/120, 2 min left``."""
    if progress.total_steps is None:
        return f"for {_time(progress.seconds)}"
    left = "" if progress.left is None else f", {_time(progress.left)} left"
    return f"{progress.step}/{progress.total_steps}{left}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def trials_table(trials: Sequence[TrialOut], metric: str) -> Table:
    """Trials, a line each."""
    table = Table()
    others = further_parameters(t.params for t in trials)
    names = ["#", "for", "state", "method", "r1, r2, r", "alpha", "learning rate", *others, "seed", metric, "failure"]
    for name in names:
        table.add_column(name.replace("_", " "))
    for t in trials:
        value = t.metrics.get(metric)
        table.add_row(
            str(t.number),
            t.candidate or t.phase,
            t.state if t.progress is None else f"{t.state} {_progress(t.progress)}",
            t.method,
            sizes_told(t.method, t.params),
            _number(t.params.get("alpha")),
            _number(t.params.get("learning_rate")),
            *(_number(t.params.get(name)) for name in others),
            str(t.seed),
            "–" if value is None else f"{value:.4f}",
            "" if t.failure is None else f"{t.failure.kind}: {t.failure.message}",
        )
    return table
