"""What stops a run that its user can mend."""

import contextlib
import traceback
from collections.abc import Iterator

from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop

from mmlocalattn.files import NO_SPACE


class RunError(ValueError):
    """A run that was stopped from inside, by a hook; the message says what to do."""


@contextlib.contextmanager
def run_errors(config: str | None = None) -> Iterator[None]:
    """End the program with ``error: ...`` for a :class:`RunError` and for a full disk.

    Whatever else goes wrong once a run has begun is not foreseen: its traceback stays.

    Args:
        config: File of the run, for what goes wrong before: see :func:`build_errors`.
    """
    try:
        with build_errors(config):
            yield
    except RunError as error:
        raise SystemExit(f'error: {error}') from None
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        where = f' {error.filename}' if error.filename else ''
        raise SystemExit(f'error: the disk takes no more{where} ({error.strerror})') from None


@contextlib.contextmanager
def build_errors(config: str | None = None) -> Iterator[None]:
    """Raise a :class:`RunError` of one line for whatever goes wrong while a config is built.

    MMEngine builds a part when it needs it, so that this is all before the first iteration.

    Args:
        config: Its file, which is named.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as error:  # of any class that a config names
        loops = _loops(error)
        if not loops:
            raise RunError(f'{config or "the config"}: {reason_of(error)}') from error
        runner = _runner_of_first_batch(error, loops)
        if runner is None:
            raise
        from mmlocalattn.training.fit_check import misfit  # which imports this

        message = misfit(error, runner.model, runner.cfg)
        raise RunError(f'{config or "the config"}: {message}') from error


def _loops(error: BaseException) -> list[tuple[BaseLoop, int]]:
    """The loops of a run that an error came through, with the numbers of their batches from 0."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [
        (frame.f_locals['self'], frame.f_locals.get('idx', 0))
        for frame in frames
        if frame.f_code.co_name == 'run' and isinstance(frame.f_locals.get('self'), BaseLoop)
    ]


def _runner_of_first_batch(
    error: BaseException, loops: list[tuple[BaseLoop, int]]
) -> Runner | None:
    """The runner whose model does not take the first batch, before which nothing is done."""
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    loop, index = loops[-1]
    # Not of the runner, which would build a training to tell: a test need not have its data.
    is_first = index == 0 and getattr(loops[0][0], 'iter', 0) == 0
    return loop.runner if is_first and names & {'train_step', 'val_step', 'test_step'} else None


def reason_of(error: BaseException) -> str:
    """Which type of a config goes wrong, in which way, and where."""
    if isinstance(error, TypeError) and isinstance(error.__context__, TypeError):
        error = error.__context__  # MMEngine puts the address of a hook behind it
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    reason = ' '.join(text.split())
    if isinstance(error, KeyError) and ' is not in the ' in reason:
        return f'{reason.partition(". Please")[0]}; is it spelt so, and its package imported?'
    reason = f'{type(error).__name__}: {reason}'
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    building = [frame for frame in frames if frame.f_code.co_name == 'build_from_cfg']
    if building:
        known = building[-1].f_locals
        kind = known.get('obj_cls') or known.get('obj_type') or 'an entry'
        reason = f'{getattr(kind, "__name__", kind)} cannot be built: {reason}'
    last = traceback.extract_tb(error.__traceback__)[-1]
    if last.name != 'build_from_cfg':  # MMEngine's, which says nothing
        reason += f' ({last.filename.rpartition("site-packages/")[2]}, line {last.lineno})'
    return reason
