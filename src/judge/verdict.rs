//! The verdict on a case, from how its programs ended. Values only.

use crate::execution::of_end;
use crate::task::{Outcome, Report, Status, Verdict};

/// SIGPIPE: it wrote to somebody who had ended (signal(7)).
const PIPE: i32 = 13;

/// What a checker says by its exit status: 0 accepted, 1 wrong, and anything else is its own failure.
pub fn of_checker(report: &Report) -> Verdict {
    match report.outcome {
        Outcome::Exited(0) => Verdict::Accepted,
        Outcome::Exited(1) => Verdict::WrongAnswer,
        _ => Verdict::CheckerError,
    }
}

/// The verdict on a solution that talked with an interactor. Who ended first counts: what became of the other may be only
/// because of that.
pub fn of_interaction(solution: &Report, interactor: &Report) -> Verdict {
    let said = of_checker(interactor);
    let own = of_end(solution);
    let was_cut_off = |report: &Report| report.outcome == Outcome::Signalled(PIPE);
    if solution.ended_at <= interactor.ended_at {
        return match own {
            Some(own) => own,
            // It ended in the middle of the talk.
            None if was_cut_off(interactor) => Verdict::WrongAnswer,
            None => said,
        };
    }
    match (own, said) {
        // It was told so before whatever it did then.
        (_, Verdict::WrongAnswer) => Verdict::WrongAnswer,
        // It waited for longer than the interactor may live.
        (_, Verdict::CheckerError) if Status::of(interactor) == Status::Timeout => Verdict::TimeLimitExceeded,
        (_, Verdict::CheckerError) => Verdict::CheckerError,
        (Some(Verdict::RuntimeError), said) if was_cut_off(solution) => said,
        (own, said) => own.unwrap_or(said),
    }
}

/// The verdict on all: the first that is not accepted.
pub fn of_all(verdicts: impl IntoIterator<Item = Verdict>) -> Verdict {
    verdicts.into_iter().find(|verdict| *verdict != Verdict::Accepted).unwrap_or(Verdict::Accepted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Limit;

    fn ended(outcome: Outcome, ended_at: u64) -> Report {
        Report { outcome, ended_at, ..Report::not_executed("") }
    }

    #[test]
    fn a_checker_says_it_by_its_exit_status() {
        let says = |outcome| of_checker(&ended(outcome, 1));
        assert_eq!(says(Outcome::Exited(0)), Verdict::Accepted);
        assert_eq!(says(Outcome::Exited(1)), Verdict::WrongAnswer);
        for failure in [Outcome::Exited(2), Outcome::Signalled(11), Outcome::Stopped(Limit::CpuTime, 1)] {
            assert_eq!(says(failure), Verdict::CheckerError);
        }
    }

    #[test]
    fn who_ended_first_decides_in_an_interaction() {
        let (ok, wrong, fail) = (Outcome::Exited(0), Outcome::Exited(1), Outcome::Exited(3));
        let slow = Outcome::Stopped(Limit::WallTime, 1);
        let table = [
            ((ok.clone(), 1), (ok.clone(), 2), Verdict::Accepted),
            ((ok.clone(), 1), (wrong.clone(), 2), Verdict::WrongAnswer),
            ((Outcome::Signalled(13), 2), (wrong.clone(), 1), Verdict::WrongAnswer),
            ((slow.clone(), 2), (wrong.clone(), 1), Verdict::WrongAnswer),
            ((Outcome::Signalled(11), 1), (wrong.clone(), 2), Verdict::RuntimeError),
            ((wrong.clone(), 1), (ok.clone(), 2), Verdict::RuntimeError),
            ((slow.clone(), 1), (ok.clone(), 2), Verdict::TimeLimitExceeded),
            ((Outcome::Signalled(13), 2), (ok.clone(), 1), Verdict::Accepted),
            ((Outcome::Signalled(13), 2), (fail.clone(), 1), Verdict::CheckerError),
            ((wrong.clone(), 2), (fail.clone(), 1), Verdict::CheckerError),
            ((ok.clone(), 1), (Outcome::Signalled(13), 2), Verdict::WrongAnswer),
            ((wrong, 2), (slow.clone(), 1), Verdict::TimeLimitExceeded),
            ((ok.clone(), 1), (fail, 2), Verdict::CheckerError),
            ((ok, 2), (slow, 1), Verdict::TimeLimitExceeded),
        ];
        for (solution, interactor, expected) in table {
            let verdict =
                of_interaction(&ended(solution.0.clone(), solution.1), &ended(interactor.0.clone(), interactor.1));
            assert_eq!(verdict, expected, "{solution:?} {interactor:?}");
        }
    }

    #[test]
    fn the_first_that_is_not_accepted_counts_for_all() {
        use Verdict::{Accepted, Skipped, WrongAnswer};
        assert_eq!(of_all([Accepted, WrongAnswer, Skipped]), WrongAnswer);
        assert_eq!(of_all([Accepted, Accepted]), Accepted);
    }
}
