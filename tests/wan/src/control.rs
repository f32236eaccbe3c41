//! The commands that change a link while it is up, one a line: `delay 20ms`, `loss 0.1`, `rate 100`,
//! `cut ab`, `heal`.

use std::{fmt, str::FromStr, time::Duration};

use crate::profile::Direction;

/// One line of control.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Command {
    /// `delay 20ms [both|ab|ba]`: one-way delay.
    Delay(Duration, Direction),
    /// `loss 0.1 [both|ab|ba]`: loss in percent.
    Loss(f64, Direction),
    /// `rate 100 [both|ab|ba]`: Mbit/s, 0 for no limit.
    Rate(f64, Direction),
    /// `cut both|ab|ba`: nothing passes.
    Cut(Direction),
    /// `heal`: ends every cut.
    Heal,
    /// `counters`: what has happened so far.
    Counters,
}

/// A line that is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The first word is unknown.
    #[error("unknown command `{0}`: use delay, loss, rate, cut, heal or counters")]
    Unknown(String),
    /// A word is missing or is not what belongs there.
    #[error("`{line}`: expected `{usage}`")]
    Usage {
        /// What was typed.
        line: String,
        /// What can be typed.
        usage: &'static str,
    },
}

impl FromStr for Command {
    type Err = CommandError;

    fn from_str(line: &str) -> Result<Self, CommandError> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (&verb, rest) = words.split_first().ok_or_else(|| CommandError::Unknown(String::new()))?;
        let (usage, parsed) = match verb {
            "delay" => (
                "delay 20ms [both|ab|ba]",
                value_and_direction(rest, |word| humantime::parse_duration(word).ok())
                    .map(|(delay, direction)| Command::Delay(delay, direction)),
            ),
            "loss" => (
                "loss PERCENT [both|ab|ba]",
                value_and_direction(rest, |word| word.parse().ok())
                    .map(|(loss_pct, direction)| Command::Loss(loss_pct, direction)),
            ),
            "rate" => (
                "rate MBIT [both|ab|ba]",
                value_and_direction(rest, |word| word.parse().ok())
                    .map(|(rate_mbit, direction)| Command::Rate(rate_mbit, direction)),
            ),
            "cut" => (
                "cut both|ab|ba",
                match rest {
                    [word] => direction(word).map(Command::Cut),
                    _ => None,
                },
            ),
            "heal" => ("heal", rest.is_empty().then_some(Command::Heal)),
            "counters" => ("counters", rest.is_empty().then_some(Command::Counters)),
            _ => return Err(CommandError::Unknown(verb.to_owned())),
        };
        parsed.ok_or_else(|| CommandError::Usage { line: line.trim().to_owned(), usage })
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::AToB => "ab",
            Direction::BToA => "ba",
            Direction::Both => "both",
        })
    }
}

fn value_and_direction<T>(words: &[&str], value: impl Fn(&str) -> Option<T>) -> Option<(T, Direction)> {
    match words {
        [word] => Some((value(word)?, Direction::Both)),
        [word, way] => Some((value(word)?, direction(way)?)),
        _ => None,
    }
}

fn direction(word: &str) -> Option<Direction> {
    match word {
        "ab" => Some(Direction::AToB),
        "ba" => Some(Direction::BToA),
        "both" => Some(Direction::Both),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        let cases = [
            ("delay 20ms", Command::Delay(Duration::from_millis(20), Direction::Both)),
            ("delay 1500us ab", Command::Delay(Duration::from_micros(1500), Direction::AToB)),
            ("  loss   0.1 ba ", Command::Loss(0.1, Direction::BToA)),
            ("rate 100", Command::Rate(100.0, Direction::Both)),
            ("cut both", Command::Cut(Direction::Both)),
            ("cut ab", Command::Cut(Direction::AToB)),
            ("heal", Command::Heal),
            ("counters", Command::Counters),
        ];
        for (line, expected) in cases {
            assert_eq!(line.parse(), Ok(expected), "{line}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_what_to_type() {
        for line in ["delay", "delay 20", "delay 20ms up", "loss much", "rate", "cut", "cut ab ba", "heal ab"]
        {
            let error = line.parse::<Command>().expect_err(line);
            assert!(matches!(error, CommandError::Usage { .. }), "{line}: {error}");
        }
        assert_eq!("".parse::<Command>(), Err(CommandError::Unknown(String::new())));
        assert_eq!("mend".parse::<Command>(), Err(CommandError::Unknown("mend".to_owned())));
    }
}
