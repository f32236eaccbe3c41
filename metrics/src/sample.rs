//! The values of one metric, each with its labels.

use afterimage_protocol::latency::Latencies;

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Number(f64),
    Latencies(Box<Latencies>),
}

/// The values of one metric.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    /// Labels that all of them have.
    common: Vec<(&'static str, String)>,
    found: Vec<(Vec<(&'static str, String)>, Value)>,
}

impl Samples {
    /// What is added from now on has these labels.
    pub fn label(&mut self, labels: &[(&'static str, &str)]) {
        self.common = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    }

    /// A number; none if it is not known: what is not known is left out, and never 0.
    pub fn number(&mut self, value: Option<f64>) {
        self.labelled(&[], value);
    }

    /// A count.
    pub fn count(&mut self, value: Option<u64>) {
        self.number(value.map(|value| value as f64));
    }

    /// Microseconds, as seconds.
    pub fn us(&mut self, value: Option<u64>) {
        self.number(value.map(|us| us as f64 / 1e6));
    }

    /// 1 or 0.
    pub fn flag(&mut self, value: Option<bool>) {
        self.count(value.map(u64::from));
    }

    /// A number with labels of its own.
    pub fn labelled(&mut self, labels: &[(&'static str, &str)], value: Option<f64>) {
        if let Some(value) = value {
            self.push(labels, Value::Number(value));
        }
    }

    /// One series for each of `states`, 1 for the one that is the case and 0 for the others.
    pub fn states<'a>(
        &mut self,
        label: &'static str,
        states: impl IntoIterator<Item = &'a str>,
        is: Option<&str>,
    ) {
        let Some(is) = is else { return };
        for state in states {
            self.labelled(&[(label, state)], Some(f64::from(u8::from(state == is))));
        }
    }

    /// How long things took.
    pub fn latencies(&mut self, latencies: Option<&Latencies>) {
        if let Some(latencies) = latencies {
            self.push(&[], Value::Latencies(Box::new(*latencies)));
        }
    }

    fn push(&mut self, labels: &[(&'static str, &str)], value: Value) {
        let own = labels.iter().map(|(name, value)| (*name, (*value).to_owned()));
        self.found.push((self.common.iter().cloned().chain(own).collect(), value));
    }

    pub fn into_vec(self) -> Vec<(Vec<(&'static str, String)>, Value)> {
        self.found
    }
}
