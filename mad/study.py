"""The Optuna study of a tuning: a trial for each candidate, which outlives the process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mad.errors import MadError

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial


def open_study(outputs: Path, name: str) -> Study:
    """Return the study of a name, in ``tune/NAME.log`` below the outputs folder; that of an earlier run if it is there.

    Raises:
        MadError: if Optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage
    except ImportError as error:
        raise MadError(f"mad-tune needs Optuna: pip install 'mad[tune]' ({error})") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (folder := outputs / "tune").mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / f"{name}.log")))
    return optuna.create_study(study_name=name, storage=storage, direction="minimize", load_if_exists=True)


def trial_of(study: Study, name: str) -> Trial:
    """Return a candidate's trial; that of an earlier run if there is one."""
    from optuna.trial import Trial

    for each in study.get_trials(deepcopy=False):
        if each.user_attrs.get("candidate") == name:
            return Trial(study, each._trial_id)
    trial = study.ask()
    trial.set_user_attr("candidate", name)
    trial.set_user_attr("stolen", {})
    return trial


def finish(study: Study, trial: Trial, value: float | None) -> None:
    """Tell the study how a trial ended: its value, or None for one that was left out; nothing if it knows."""
    from optuna.trial import TrialState

    study.tell(trial, value, state=TrialState.PRUNED if value is None else None, skip_if_finished=True)


def leave_out(study: Study, trial: Trial, rung: int, why: str) -> None:
    """Note at which rung and why a candidate is left out, and end its trial; a later run leaves it out there, too."""
    trial.set_user_attr("failure", why)
    trial.set_user_attr("failed_at", rung)
    finish(study, trial, None)
